from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console
from test_evaluation_report import SKIPPED, build_evaluation, forecasts_of, manifest_of, windows_of

from kronos_pipeline.evaluation.tables import (
    evaluation_frame,
    evaluation_markdown,
    evaluation_table,
    holdout_metrics,
)


@pytest.fixture
def evaluation() -> dict[str, Any]:
    windows = [windows_of("AAPL", left_out=5), windows_of("EURUSD=X", 0.01)]
    return build_evaluation(forecasts_of(windows), "adapter", SKIPPED, manifest_of(windows))


def rendered(evaluation: dict[str, Any], width: int = 80) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(evaluation_table(evaluation))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return [line.rstrip() for line in text.splitlines()]


def test_the_table_fits_80_columns_with_every_model_and_no_number_is_cut(evaluation: dict[str, Any]) -> None:
    lines = rendered(evaluation)
    assert max(map(len, lines)) <= 80
    rows = {line.split()[0]: line.split() for line in lines if line.split()}
    shown = [float(cell) for cell in rows["AAPL"][1:5]]
    models = evaluation["per_symbol"][0]["models"]
    assert shown == pytest.approx(
        [models[name]["mae"] for name in ("adapter", "checkpoint", "base", "naive")], rel=5e-4
    )
    assert len(rows["EURUSD=X"]) == len(rows["AAPL"]) == 9
    assert rows["mean"][-2:] == [
        f"{evaluation['aggregate'][f'symbols_beating_{name}']}/2" for name in ("naive", "base")
    ]


def test_the_title_names_the_demo_model_and_the_notes_say_what_was_left_out_and_why(evaluation: dict[str, Any]) -> None:
    text = " ".join(rendered(evaluation, 120))
    assert "adapter on base model kronos-nano (embedded demo model)" in text
    assert "20 bars of 2 symbols forecast from 6 cutoffs." in text
    assert "Left out: 5 older cutoffs (--max-cutoffs)." in text
    assert "Skipped ACME: ACME.csv:3: Close: a price must be above 0 (found '-1')" in text
    for unit in ("(price)", "(%)"):
        assert unit in text


def test_brackets_in_a_reason_are_text_and_no_markup(evaluation: dict[str, Any]) -> None:
    evaluation["skipped"] = [{"symbol": "X", "reason": "[red]odd[/red] [/]"}]
    assert "Skipped X: [red]odd[/red] [/]" in " ".join(rendered(evaluation))


def test_an_undefined_metric_is_a_dash_and_its_reason_is_told(evaluation: dict[str, Any]) -> None:
    apple = evaluation["per_symbol"][0]
    apple.update(mape=None, undefined={"mape": "the close is 0 at 1 of 10 bars"}, beats_base=None)
    lines = rendered(evaluation, 120)
    (row,) = [line for line in lines if line.strip().startswith("AAPL ")]
    assert row.split().count("–") == 2
    assert any("AAPL: MAPE is undefined: the close is 0 at 1 of 10 bars." in line for line in lines)


def test_markdown_has_the_same_cells(evaluation: dict[str, Any]) -> None:
    title, table, *notes = evaluation_markdown(evaluation).split("\n\n")
    assert "embedded demo model" in title
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert {len(line) for line in lines} == {9}
    assert lines[0][1] == "MAE adapter (price)"
    assert [line[0] for line in lines[2:]] == ["AAPL", "EURUSD=X", "**mean**"]
    (row,) = [line.split() for line in rendered(evaluation) if line.strip().startswith("AAPL ")]
    assert lines[2] == row
    assert notes[-1].startswith("Skipped ACME")


def test_the_long_table_and_the_flat_metrics_hold_the_same_scores(evaluation: dict[str, Any]) -> None:
    frame = evaluation_frame(evaluation)
    assert len(frame) == 8
    flat = holdout_metrics(evaluation)
    assert set(flat) == {
        f"holdout/{model}/{metric}"
        for model in ("naive", "base", "checkpoint", "adapter")
        for metric in ("mae", "rmse", "mape")
    }
    assert flat["holdout/adapter/mae"] == pytest.approx(frame.loc[frame["model"] == "adapter", "mae"].mean())
    evaluation["aggregate"]["models"]["adapter"]["mape"] = None
    assert "holdout/adapter/mape" not in holdout_metrics(evaluation)
