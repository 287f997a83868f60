"""The metadata of each materialisation, as the Dagster UI shows it: figures, tables, pictures."""

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
from kronos_pipeline.errors import count
from kronos_pipeline.orchestration.setting_names import name_settings
from kronos_pipeline.orchestration.sketch import sketch

if TYPE_CHECKING:
    from kronos_pipeline.training.publish import TrainingResult

_PREVIEW_BARS = 5
_IMAGE_WIDTH = 960
"""Pixels, of the plots' 1200; the dialog of a laptop's browser is narrower and cuts off the rest."""
_COLOURS = 64
"""Enough for the plots; Dagster's event log stores the pictures, and few colours take a third of the bytes. Pillow's
octree keeps the colour of each thin line; its median cut gives two models one colour."""
_METRICS = {
    "mae": "MAE (price)",
    "mape": "MAPE (%)",
    "mase": "MASE",
    "scaled_crps": "CRPS (scaled)",
    "bias": "bias (price)",
    "directional_accuracy": "right way (%)",
    "coverage_80": "80 % holds (%)",
    "width_80": "width of 80 % (% of the close)",
}
"""Names of the trained model's metrics, which the asset's page plots over time."""
_RIVALS = ("base", "naive")
_METRICS_OF_RIVALS = ("mae", "mase", "scaled_crps")
_TRAINING = {
    "selection_loss": "selection loss (nats)",
    "untouched_loss": "selection loss before (nats)",
    "seconds": "time (s)",
}
"""Names of a training's figures that differ from those of its summary."""
_PICTURES = {
    "holdout": ("forecasts", "forecasts beside the truth"),
    "fan": ("fan chart", "intervals beside the truth"),
    "steps": ("error by step", "error by bars ahead"),
    "reliability": ("reliability", "coverage of the intervals"),
    "calibration": ("calibration", "coverage by volatility, and P(up)"),
    "forecast": ("fan chart", "the bars to come, with intervals"),
    "record": ("track record", "running skill and coverage"),
}
_PICTURE = "data:image/png;base64,"
SUMMARY = "summary"
"""Metadata of each materialisation: the result in a line. A run's last message repeats it."""
LAST_BAR = "last bar"
"""Metadata of an adapter's materialisation: the last bar of its data, from which the sensor counts new bars."""
OBSTACLES = "why not"
"""Metadata of `champion`: the main reason against each target that the model is not champion of."""
WARNINGS = "warnings"
"""Metadata of what an asset did without, such as an MLflow server that does not answer."""
DRIFTED, FINDING, KIND = "drifted", "finding", "kind of champion"
"""Metadata of `drift` for the sensor: whether the champion drifted, the finding's identity, and the champion's kind."""


def bars_metadata(bars: Bars) -> dict[str, Any]:
    """Return number of bars, date range, notes, and the newest bars."""
    stamps = bars.frame["timestamps"]
    first, last = _cell(stamps.iloc[0]), _cell(stamps.iloc[-1])
    odd = count(len(bars.notes), "note") if bars.notes else "nothing odd"
    return {
        SUMMARY: f"{count(len(bars), 'bar')} from {first} to {last}, {odd}",
        **sketch({"close": bars.frame["close"]}),
        "dagster/row_count": len(bars),
        "first bar": first,
        LAST_BAR: last,
        "notes": dg.MetadataValue.md(bullets(bars.notes) or "nothing odd"),
        "newest bars": dg.MetadataValue.md(markdown_table(bars.frame.tail(_PREVIEW_BARS))),
        "file": dg.MetadataValue.path(bars.source),
        "time zone": bars.time_zone or "not stated in the file",
        "content hash": bars.content_hash,
    }


def windows_metadata(windows: WindowSet) -> dict[str, Any]:
    """Return the windows per split, the span of each split, and the excluded windows by reason."""
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
    left_out = [f"{reason}: {number:,}" for reason, number in windows.excluded.items() if number]
    return {
        SUMMARY: f"{counts['train']:,} train, {counts['selection']:,} selection, {counts['holdout']:,} holdout windows",
        "dagster/row_count": len(windows.rows),
        **{f"{split} windows": number for split, number in counts.items()},
        "splits": dg.MetadataValue.md(markdown_table(pd.DataFrame(splits))),
        "left out": dg.MetadataValue.md(bullets(left_out) or "none"),
        "lookback (bars)": windows.lookback,
        "horizon (bars)": windows.horizon,
    }


def training_metadata(result: TrainingResult, recipe: Recipe, windows: Sequence[WindowSet]) -> dict[str, Any]:
    """Return losses, speed, device and settings of a training."""
    from kronos_pipeline.evaluation.reports.plots import loss_plot  # imports matplotlib

    summary = {key: value for key, value in result.summary.items() if value is not None}
    settings = pd.DataFrame({"setting": key, "value": _cell(value)} for key, value in recipe.model_dump().items())
    manifest = read_json(result.folder / MANIFEST)
    selection, untouched = result.history["selection_loss"].dropna(), summary["untouched_loss"]
    return {
        SUMMARY: f"selection loss {summary['selection_loss']:.4f} nats, {_gain(summary)} "
        f"({untouched:.4f}), in {summary['seconds']:.0f} s on {summary['device']}, {result.folder}",
        **sketch({"selection loss": selection, "untouched model": [untouched, untouched]}),
        "losses": inline_image(loss_plot(result.history, "Losses by step"), "losses by step"),
        "base model": _base_label(manifest),
        **{_TRAINING.get(key, key.replace("_", " ")): rounded(value) for key, value in summary.items()},
        "folder": dg.MetadataValue.path(str(result.folder)),
        LAST_BAR: _cell(max(ticker_windows.bars.frame["timestamps"].iloc[-1] for ticker_windows in windows)),
        "tickers": len(windows),
        "settings": dg.MetadataValue.md(markdown_table(settings)),
    }


def _gain(summary: Mapping[str, Any]) -> str:
    """Return how the selection loss differs from that of the untouched model."""
    from kronos_pipeline.evaluation.reports.text_table import difference

    gain = difference(summary["selection_loss"], summary["untouched_loss"], 2)
    return f"{gain if gain.endswith('smaller') else 'no better'} than that of the untouched model"


def manifest_metadata(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a trained model's manifest says of its training: base model, losses, device, MLflow run."""
    summary = {key.replace("_", " "): value for key, value in manifest["training"].items() if value is not None}
    run = {"MLflow run": manifest["mlflow_run"]} if manifest.get("mlflow_run") else {}
    return {
        "base model": _base_label(manifest),
        **summary,
        "folder": dg.MetadataValue.path(str(folder)),
        "tickers": len(manifest["data"]),
        **run,
    }


def evaluation_metadata(
    evaluation: Mapping[str, Any],
    source: str = "Holdout",
    *,
    predictions: pd.DataFrame | None = None,
    plots: Mapping[str, Path] | None = None,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the result in a line, a sketch, tables, verdicts, pictures and some scores as numbers of an evaluation.

    Args:
        evaluation: as `build_evaluation` returns it.
        source: "Holdout" or "Backtest".
        predictions: the table of predictions of one ticker, for the sketch of its newest forecast.
        plots: pictures by kind; see `HoldoutResult.plots`.
        notes: models that were left out, with the reason.
    """
    from kronos_pipeline.evaluation.reports.summary import cutoffs_phrase
    from kronos_pipeline.evaluation.reports.tables import evaluation_table, leaderboard_table, verdict_sentences
    from kronos_pipeline.evaluation.reports.worth import headline

    total, trained = evaluation["aggregate"], evaluation["model"]
    span = [_cell(pd.Timestamp(evaluation["holdout"][end])) for end in ("first", "last")]
    metadata: dict[str, Any] = {
        SUMMARY: f"{source}: {headline(evaluation)}",
        **(_forecast_sketch(predictions, trained) if predictions is not None else {}),
        "evaluated": f"{cutoffs_phrase(evaluation['per_symbol'])}, {' to '.join(span)}",
        "leaderboard": dg.MetadataValue.md(leaderboard_table(evaluation, source).markdown()),
        "verdicts": dg.MetadataValue.md(bullets(_verdicts(evaluation, verdict_sentences)) or "none"),
        "scores": dg.MetadataValue.md(evaluation_table(evaluation, source).markdown()),
        **picture_metadata(plots or {}),
    }
    if warnings := [*evaluation["warnings"], *notes]:
        metadata["notes"] = dg.MetadataValue.md(bullets(warnings))
    return metadata | _numbers(total["models"], trained)


def _forecast_sketch(predictions: pd.DataFrame, model: str) -> dict[str, Any]:
    """Return a sketch of the newest forecast of a ticker beside the real closes."""
    newest = predictions[predictions["cutoff"] == predictions["cutoff"].max()].sort_values("step")
    real, forecast = (newest[newest["model"] == name] for name in ("naive", model))
    return sketch({"close": real["y"], model: forecast["mean"], "last close": real["mean"]})


def picture_metadata(plots: Mapping[str, Path]) -> dict[str, Any]:
    """Return pictures by kind, each shown in a dialog, and the paths of the full-sized files."""
    if not plots:
        return {}
    pictures = {_PICTURES[kind][0]: inline_image(path.read_bytes(), _PICTURES[kind][1]) for kind, path in plots.items()}
    return pictures | {"pictures": dg.MetadataValue.md(bullets([f"`{path}`" for path in plots.values()]))}


def mlflow_metadata(run_id: str | None, link: str | None) -> dict[str, Any]:
    """Return the id of an MLflow run and, if the address of an MLflow UI is set, its page."""
    if run_id is None:
        return {}
    return {"MLflow run": run_id} | ({"MLflow page": dg.MetadataValue.url(link)} if link else {})


def inline_image(png: bytes, caption: str) -> dg.MarkdownMetadataValue:
    """Return a picture inside the metadata itself, scaled to the UI's dialog, so that every browser can show it."""
    from PIL import Image

    with Image.open(io.BytesIO(png)) as picture:
        small = picture.convert("RGB")
    small.thumbnail((_IMAGE_WIDTH, small.height), Image.Resampling.LANCZOS)
    encoded = io.BytesIO()
    small.quantize(_COLOURS, Image.Quantize.FASTOCTREE).save(encoded, "PNG", optimize=True)
    return dg.MetadataValue.md(f"![{caption}]({_PICTURE}{base64.b64encode(encoded.getvalue()).decode()})")


def without_pictures(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return metadata without pictures inside it; the paths of their files stay."""
    return {
        name: value
        for name, value in metadata.items()
        if not (isinstance(value, dg.MarkdownMetadataValue) and _PICTURE in str(value.value))
    }


def _verdicts(evaluation: Mapping[str, Any], sentences: Any) -> list[str]:
    trained, entries = evaluation["model"], evaluation["per_symbol"]
    # For a single symbol its own verdict counts: it is corrected for all tickers that were tested.
    entry = entries[0] if len(entries) == 1 else evaluation["aggregate"]
    return [f"{trained} {sentence}" for sentence in sentences(entry, trained)]


def _numbers(models: Mapping[str, Mapping[str, Any]], trained: str) -> dict[str, Any]:
    return {
        f"{model} {_METRICS[metric]}": rounded(float(models[model][metric]))
        for model in (trained, *_RIVALS)
        if model in models
        for metric in (_METRICS if model == trained else _METRICS_OF_RIVALS)
        if models[model][metric] is not None
    }


def rounded(value: Any) -> Any:
    """Return a float with five significant digits, and any other value as it is."""
    return float(f"{value:.5g}") if isinstance(value, float) else value


def _base_label(manifest: Mapping[str, Any]) -> str:
    name = str(manifest["base_model"]["name"])
    return f"{name} (embedded demo model)" if manifest.get("demo") else name


def markdown_table(table: pd.DataFrame) -> str:
    """Return a table as GitHub Markdown."""
    rows = [[str(name) for name in table.columns], ["---"] * len(table.columns)]
    rows += [[_cell(value) for value in row] for row in table.itertuples(index=False)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}" if abs(value) < 1e6 else f"{value:,.0f}"
    if isinstance(value, pd.Timestamp):
        return f"{value:%Y-%m-%d}" if value == value.normalize() else f"{value:%Y-%m-%d %H:%M:%S}"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value).replace("|", "\\|")


def bullets(lines: Sequence[str]) -> str:
    """Return lines as a list in Markdown that names settings as the launchpad does."""
    return "\n".join(f"- {name_settings(line)}" for line in lines)
