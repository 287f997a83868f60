"""What the UI shows of each materialisation."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import pandas as pd

from kronos_pipeline.artifacts import MANIFEST, read_json
from kronos_pipeline.config import Recipe
from kronos_pipeline.data.bars import Bars
from kronos_pipeline.data.windows import WindowSet

if TYPE_CHECKING:
    from kronos_pipeline.training.publish import TrainingResult

_PREVIEW_BARS = 5
_IMAGE_WIDTH = 960
"""Of the plots' 1200 pixels; the dialog of a laptop's browser is narrower, and cuts off what does not fit."""
_COLOURS = 64
"""As many as the plots need; every picture is kept in Dagster's event log, and so takes a third of the bytes."""
_COLUMNS = {
    "timestamps": ("datetime64[ns]", "start of the bar, in the file's own local time"),
    "open": ("float64", "price"),
    "high": ("float64", "price; no lower than open, low and close"),
    "low": ("float64", "price; no higher than open, high and close"),
    "close": ("float64", "price"),
    "volume": ("float64", "units traded"),
    "amount": ("float64", "money traded"),
}
_OWN = ("mae", "mape", "mase", "scaled_crps", "bias", "directional_accuracy", "coverage_80", "width_80")
"""Metrics of the trained model that the asset's page draws over time."""
_RIVALS = ("base", "naive")
_OF_RIVALS = ("mae", "mase", "scaled_crps")
_PICTURES = {
    "holdout": ("forecasts", "forecasts beside the truth"),
    "fan": ("fan chart", "intervals beside the truth"),
    "steps": ("error by step", "error by bars ahead"),
    "reliability": ("reliability", "how often the intervals hold"),
    "forecast": ("fan chart", "the bars to come, with intervals"),
}
LAST_BAR = "last bar"
"""Under this name an adapter's materialisation says which bar its data ended with, for the sensor to count from."""


def bars_columns() -> dg.TableSchema:
    """The columns of `raw_bars`, for the asset's page."""
    return dg.TableSchema([dg.TableColumn(name, kind, text) for name, (kind, text) in _COLUMNS.items()])


def bars_metadata(bars: Bars) -> dict[str, Any]:
    """Count, date range, what is odd, and the newest bars."""
    stamps = bars.frame["timestamps"]
    return {
        "dagster/row_count": len(bars),
        "first bar": stamps.iloc[0].isoformat(),
        LAST_BAR: stamps.iloc[-1].isoformat(),
        "time zone": bars.time_zone or "not said by the file",
        "file": bars.source,
        "content hash": bars.content_hash,
        "notes": dg.MetadataValue.md(bullets(bars.notes) or "nothing odd"),
        "newest bars": dg.MetadataValue.md(markdown(bars.frame.tail(_PREVIEW_BARS))),
    }


def windows_metadata(windows: WindowSet) -> dict[str, Any]:
    """Windows per split, what each split spans, and what was left out and why."""
    stamps = windows.bars.frame["timestamps"]
    blocks = {"train": 0, "selection": windows.selection_start, "holdout": windows.holdout_start}
    ends = [*list(blocks.values())[1:], len(stamps)]
    counts = windows.counts()
    splits = [
        {
            "split": split,
            "windows": counts[split],
            "bars": end - start,
            "from": stamps.iloc[start],
            "to": stamps.iloc[end - 1],
        }
        for (split, start), end in zip(blocks.items(), ends, strict=True)
        if end > start
    ]
    left_out = [f"{reason}: {count:,}" for reason, count in windows.excluded.items() if count]
    return {
        "dagster/row_count": len(windows.rows),
        **{f"{split} windows": count for split, count in counts.items()},
        "splits": dg.MetadataValue.md(markdown(pd.DataFrame(splits))),
        "left out": dg.MetadataValue.md(bullets(left_out) or "none"),
        "lookback (bars)": windows.lookback,
        "horizon (bars)": windows.horizon,
    }


def training_metadata(result: TrainingResult, recipe: Recipe, windows: Sequence[WindowSet]) -> dict[str, Any]:
    """Losses, speed, device and settings of a training."""
    from kronos_pipeline.evaluation.reports.plots import loss_plot  # imports matplotlib

    summary = {key: value for key, value in result.summary.items() if value is not None}
    numbers = {key: float(value) for key, value in summary.items() if isinstance(value, float)}
    settings = pd.DataFrame({"setting": key, "value": _text(value)} for key, value in recipe.model_dump().items())
    manifest = read_json(result.folder / MANIFEST)
    return {
        "base model": _base_label(manifest),
        **{key.replace("_", " "): numbers.get(key, value) for key, value in summary.items()},
        "losses": inline_image(loss_plot(result.history, "Losses by step"), "losses by step"),
        "settings": dg.MetadataValue.md(markdown(settings)),
        "folder": dg.MetadataValue.path(str(result.folder)),
        LAST_BAR: max(one.bars.frame["timestamps"].iloc[-1] for one in windows).isoformat(),
        "tickers": len(windows),
    }


def evaluation_metadata(
    evaluation: Mapping[str, Any],
    what: str = "Holdout",
    *,
    plots: Mapping[str, Path] | None = None,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """The tables, the verdicts in sentences, some scores as numbers, and pictures.

    Args:
        evaluation: as `build_evaluation` returns it.
        what: "Holdout" or "Backtest".
        plots: pictures by kind; see `HoldoutResult.plots`.
        notes: what was left out, and why.
    """
    from kronos_pipeline.evaluation.reports.tables import evaluation_sheet, leaderboard_sheet, verdict_sentences

    total, trained = evaluation["aggregate"], evaluation["model"]
    metadata: dict[str, Any] = {
        "leaderboard": dg.MetadataValue.md(leaderboard_sheet(evaluation, what).markdown()),
        "scores": dg.MetadataValue.md(evaluation_sheet(evaluation, what).markdown()),
        "verdicts": dg.MetadataValue.md(bullets(_verdicts(evaluation, verdict_sentences)) or "none"),
        **_numbers(total["models"], trained),
        "evaluated": f"{evaluation['holdout']['first']} to {evaluation['holdout']['last']}",
        "bars": total["bars"],
        "cutoffs": total["cutoffs"],
    }
    if said := [*evaluation["warnings"], *notes]:
        metadata["notes"] = dg.MetadataValue.md(bullets(said))
    return metadata | picture_metadata(plots or {})


def picture_metadata(plots: Mapping[str, Path]) -> dict[str, Any]:
    """Pictures by kind, each shown in a dialog, and where the full-sized ones lie."""
    if not plots:
        return {}
    shown = {_PICTURES[kind][0]: inline_image(path.read_bytes(), _PICTURES[kind][1]) for kind, path in plots.items()}
    return shown | {"pictures": dg.MetadataValue.md(bullets([f"`{path}`" for path in plots.values()]))}


def mlflow_metadata(run_id: str | None, link: str | None) -> dict[str, Any]:
    """The MLflow run and, where the address of an MLflow UI is set, its page."""
    if run_id is None:
        return {}
    return {"MLflow run": run_id} | ({"MLflow page": dg.MetadataValue.url(link)} if link else {})


def inline_image(png: bytes, text: str) -> dg.MarkdownMetadataValue:
    """A picture that the UI shows in a dialog, whatever machine it is opened from, and small enough to fit it."""
    from PIL import Image

    with Image.open(io.BytesIO(png)) as picture:
        small = picture.convert("RGB")
    small.thumbnail((_IMAGE_WIDTH, small.height), Image.Resampling.LANCZOS)
    encoded = io.BytesIO()
    small.quantize(_COLOURS).save(encoded, "PNG", optimize=True)
    return dg.MetadataValue.md(f"![{text}](data:image/png;base64,{base64.b64encode(encoded.getvalue()).decode()})")


def _verdicts(evaluation: Mapping[str, Any], sentences: Any) -> list[str]:
    trained, entries = evaluation["model"], evaluation["per_symbol"]
    # Of one symbol its own verdict counts, as it is corrected for all that were tested.
    entry = entries[0] if len(entries) == 1 else evaluation["aggregate"]
    return [f"{trained} {one}" for one in sentences(entry, trained)]


def _numbers(models: Mapping[str, Mapping[str, Any]], trained: str) -> dict[str, Any]:
    return {
        f"{model}/{metric}": dg.MetadataValue.float(models[model][metric])
        for model in (trained, *_RIVALS)
        if model in models
        for metric in (_OWN if model == trained else _OF_RIVALS)
        if models[model][metric] is not None
    }


def _base_label(manifest: Mapping[str, Any]) -> str:
    name = str(manifest["base_model"]["name"])
    return f"{name} (embedded demo model)" if manifest.get("demo") else name


def markdown(table: pd.DataFrame) -> str:
    """A table as GitHub Markdown."""
    rows = [[str(name) for name in table.columns], ["---"] * len(table.columns)]
    rows += [[_text(value) for value in row] for row in table.itertuples(index=False)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}" if abs(value) < 1e6 else f"{value:,.0f}"
    if isinstance(value, pd.Timestamp):
        return f"{value:%Y-%m-%d}" if value == value.normalize() else f"{value:%Y-%m-%d %H:%M:%S}"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value).replace("|", "\\|")


def bullets(lines: Sequence[str]) -> str:
    """Lines as a list in Markdown."""
    return "\n".join(f"- {line}" for line in lines)
