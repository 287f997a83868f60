"""An evaluation as people read it: a table in the terminal, Markdown in the Dagster UI, flat metrics for MLflow."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd
from rich.box import SIMPLE_HEAD
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
    table = Table(
        title=escape(_title(evaluation)),
        title_style="bold",
        caption=notes,
        caption_style="not dim not italic",
        caption_justify="left",
        box=SIMPLE_HEAD,  # and narrow gaps: with all four models the table still fits 80 columns
        show_edge=False,
        padding=(0, 0, 0, 1),
    )
    for number, (header, _, _) in enumerate(columns):
        table.add_column(header, justify="left" if number == 0 else "right", overflow="fold", vertical="bottom")
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
        ("Symbol", lambda entry: entry["symbol"], lambda _: "mean"),
        _same(f"MAE\n{trained}\n(price)", lambda entry: _price(entry["mae"])),
        *(_rival(name) for name in rivals),
        _same(f"RMSE\n{trained}\n(price)", lambda entry: _price(entry["rmse"])),
        _same(f"MAPE\n{trained}\n(%)", lambda entry: _percent(entry["mape"])),
    ]
    columns += [
        (
            f"beats\n{name}",
            lambda entry, name=name: _verdict(entry[f"beats_{name}"]),  # type: ignore[misc]
            lambda entry, name=name: f"{entry[f'symbols_beating_{name}']}/{symbols}",  # type: ignore[misc]
        )
        for name in (NAIVE, "base")
        if name in rivals
    ]
    return columns


def _same(header: str, cell: Callable[[Entry], str]) -> Column:
    return header, cell, cell


def _rival(name: str) -> Column:
    return _same(f"MAE\n{name}\n(price)", lambda entry: _price(entry["models"].get(name, {}).get("mae")))


def _notes(evaluation: Mapping[str, Any]) -> list[str]:
    """What the cells cannot say: how much was evaluated, what was left out, undefined metrics, skipped symbols."""
    total = evaluation["aggregate"]
    counts = [
        _count(total[key], word)
        for key, word in (("bars", "bar"), ("symbols_evaluated", "symbol"), ("cutoffs", "cutoff"))
    ]
    notes = [
        "{} of {} forecast from {}. To beat is to have the lower MAE, which may be chance.".format(*counts),
    ]
    if left_out := total["cutoffs_left_out"]:
        notes.append(f"Left out: {_count(left_out, 'older cutoff')} (--max-cutoffs).")
    notes += [
        f"{entry['symbol']}: {metric.upper()} is undefined: {reason}."
        for entry in evaluation["per_symbol"]
        for metric, reason in entry.get("undefined", {}).items()
    ]
    return notes + [f"Skipped {one['symbol']}: {one['reason']}" for one in evaluation["skipped"]]


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def _price(value: float | None) -> str:
    """Four significant digits, with as many decimals as that takes."""
    if value is None:
        return _UNDEFINED
    decimals = 3 if value == 0 else min(10, max(0, 3 - math.floor(math.log10(value))))
    return f"{value:,.{decimals}f}"


def _percent(value: float | None) -> str:
    return _UNDEFINED if value is None else f"{value:.2f}"


def _verdict(value: bool | None) -> str:
    return {True: "yes", False: "no", None: _UNDEFINED}[value]
