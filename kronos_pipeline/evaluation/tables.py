"""An evaluation as people read it: a table in the terminal, Markdown in the Dagster UI, flat metrics for MLflow."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd
from rich.markup import escape
from rich.table import Table

from kronos_pipeline.evaluation.forecasts import NAIVE
from kronos_pipeline.evaluation.metrics import METRICS

_UNDEFINED = "–"
_ORDER = ("adapter", "checkpoint", "base", NAIVE)

Entry = Mapping[str, Any]
Column = tuple[str, Callable[[Entry], str], Callable[[Entry], str]]
"""A header, the cell of a symbol's entry and the cell of the aggregate."""


def evaluation_table(evaluation: Mapping[str, Any]) -> Table:
    """A row per symbol, the aggregate last, and what was skipped and why below; units are in the headers.

    Args:
        evaluation: as `build_evaluation` returns it.
    """
    columns = _columns(evaluation)
    notes = escape("\n".join(_notes(evaluation)))
    table = Table(title=escape(_title(evaluation)), caption=notes or None, caption_justify="left")
    for number, (header, _, _) in enumerate(columns):
        table.add_column(header, justify="left" if number == 0 else "right", overflow="fold")
    for entry in evaluation["per_symbol"]:
        table.add_row(*(escape(cell(entry)) for _, cell, _ in columns))
    table.add_section()
    table.add_row(*(escape(cell(evaluation["aggregate"])) for _, _, cell in columns), style="bold")
    return table


def evaluation_markdown(evaluation: Mapping[str, Any]) -> str:
    """The same table as GitHub Markdown, for Dagster's metadata."""
    columns = _columns(evaluation)
    lines = [
        [header.replace("\n", " ") for header, _, _ in columns],
        ["---"] + ["---:"] * (len(columns) - 1),
        *([cell(entry) for _, cell, _ in columns] for entry in evaluation["per_symbol"]),
        [f"**{cell(evaluation['aggregate'])}**" for _, _, cell in columns],
    ]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return "\n\n".join([_title(evaluation), table, *_notes(evaluation)])


def evaluation_frame(evaluation: Mapping[str, Any]) -> pd.DataFrame:
    """A row per symbol and model: `mae` and `rmse` in price units, `mape` in percent, NaN where undefined."""
    return pd.DataFrame(
        [
            {"symbol": entry["symbol"], "model": model, **{metric: scores[metric] for metric in METRICS}}
            for entry in evaluation["per_symbol"]
            for model, scores in entry["models"].items()
        ]
    ).astype(dict.fromkeys(METRICS, "float64"))


def holdout_metrics(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """Each model's aggregate, flat, for a tracking run: `holdout/adapter/mae` and so on, without the undefined."""
    return {
        f"holdout/{model}/{metric}": scores[metric]
        for model, scores in evaluation["aggregate"]["models"].items()
        for metric in METRICS
        if scores[metric] is not None
    }


def _title(evaluation: Mapping[str, Any]) -> str:
    return f"Holdout: {evaluation['model']} on base model {evaluation['base_model']}"


def _columns(evaluation: Mapping[str, Any]) -> list[Column]:
    trained = evaluation["model"]
    rivals = [name for name in _ORDER if name in evaluation["aggregate"]["models"] and name != trained]
    symbols = evaluation["aggregate"]["symbols_evaluated"]
    columns: list[Column] = [
        ("Symbol", lambda entry: entry["symbol"], lambda _: f"mean of {symbols}"),
        _same(f"MAE\n{trained}\n(price)", lambda entry: _price(entry["mae"])),
        *(_rival(name) for name in rivals),
        _same(f"RMSE\n{trained}\n(price)", lambda entry: _price(entry["rmse"])),
        _same(f"MAPE\n{trained}\n(%)", lambda entry: _percent(entry["mape"])),
    ]
    columns += [
        (
            f"beats\n{name}\n(MAE)",
            lambda entry, name=name: _verdict(entry[f"beats_{name}"]),  # type: ignore[misc]
            lambda entry, name=name: f"{entry[f'symbols_beating_{name}']} of {symbols}",  # type: ignore[misc]
        )
        for name in (NAIVE, "base")
        if name in rivals
    ]
    columns.append(_same("bars", lambda entry: str(entry["bars"])))
    return columns


def _same(header: str, cell: Callable[[Entry], str]) -> Column:
    return header, cell, cell


def _rival(name: str) -> Column:
    return _same(f"MAE\n{name}\n(price)", lambda entry: _price(entry["models"].get(name, {}).get("mae")))


def _notes(evaluation: Mapping[str, Any]) -> list[str]:
    """What the table's cells cannot say: undefined metrics, cutoffs left out, skipped symbols."""
    notes = [
        f"{entry['symbol']}: {metric.upper()} undefined, {reason}."
        for entry in evaluation["per_symbol"]
        for metric, reason in entry.get("undefined", {}).items()
    ]
    if left_out := evaluation["aggregate"]["cutoffs_left_out"]:
        kept = evaluation["aggregate"]["cutoffs"]
        notes.append(f"{kept} cutoffs evaluated, the newest; {left_out} older ones left out (--max-cutoffs).")
    notes += [f"Skipped {one['symbol']}: {one['reason']}" for one in evaluation["skipped"]]
    return notes


def _price(value: float | None) -> str:
    """Four significant digits, as many decimals as that takes and at least two."""
    if value is None:
        return _UNDEFINED
    decimals = 2 if value == 0 else min(10, max(2, 3 - math.floor(math.log10(value))))
    return f"{value:,.{decimals}f}"


def _percent(value: float | None) -> str:
    return _UNDEFINED if value is None else f"{value:.2f}"


def _verdict(value: bool | None) -> str:
    return {True: "yes", False: "no", None: _UNDEFINED}[value]
