from __future__ import annotations

import io
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from made_evaluations import SKIPPED, manifest_of, predictions_of, windows_of
from rich.console import Console

from kronos_pipeline.artifacts import ArtifactLayout, read_json
from kronos_pipeline.evaluation.predictions import VOLATILITY_RIVALS
from kronos_pipeline.evaluation.reports.tables import (
    evaluation_frame,
    evaluation_table,
    leaderboard_metrics,
    leaderboard_rows,
    leaderboard_table,
    run_metrics,
    save_leaderboard,
    verdict_sentences,
)
from kronos_pipeline.evaluation.reports.text_table import TextTable, price, print_tables
from kronos_pipeline.evaluation.scoring.metrics import METRICS, UNITS
from kronos_pipeline.evaluation.scoring.report import build_evaluation

MODELS = {"naive", "drift", "seasonal_naive", *VOLATILITY_RIVALS, "base", "checkpoint", "adapter"}
VARIANTS = {f"{model}_{kind}" for model in ("base", "checkpoint", "adapter") for kind in ("recentred", "rescaled")}


@pytest.fixture(scope="module")
def untouched_evaluation() -> dict[str, Any]:
    windows = [windows_of("AAPL", left_out=5), windows_of("EURUSD=X", 0.01)]
    return build_evaluation(predictions_of(windows), "adapter", SKIPPED, manifest_of(windows))


@pytest.fixture
def evaluation(untouched_evaluation: dict[str, Any]) -> dict[str, Any]:
    """An evaluation of two tickers, for a test to change."""
    return deepcopy(untouched_evaluation)


def rendered(text_table: TextTable, width: int = 80) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    print_tables(text_table, console=console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return [line.rstrip() for line in text.splitlines()]


def test_the_table_fits_80_columns_with_every_model_and_no_number_is_cut(evaluation: dict[str, Any]) -> None:
    lines = rendered(evaluation_table(evaluation))
    assert max(map(len, lines)) <= 80
    rows = {line.split()[0]: line.split() for line in lines if line.split()}
    cells = [float(cell) for cell in rows["AAPL"][1:5]]
    models = evaluation["per_symbol"][0]["models"]
    assert cells == pytest.approx(
        [models[name]["mae"] for name in ("adapter", "checkpoint", "base", "naive")], rel=5e-4
    )
    assert rows["AAPL"][-3:] == rows["EURUSD=X"][-3:] == ["few", "few", "few"]


def test_the_leaderboard_fits_80_columns_and_has_the_smallest_scaled_error_first(evaluation: dict[str, Any]) -> None:
    text_table = leaderboard_table(evaluation)
    lines = rendered(text_table)
    assert max(map(len, lines)) <= 80
    assert {row[0] for row in text_table.rows} == MODELS
    errors = [float(row[1]) for row in text_table.rows]
    assert errors == sorted(errors)
    coverage = {row[0]: row[5] for row in text_table.rows}
    assert coverage["naive"] == "–"
    assert coverage["adapter"].endswith(")")


def test_leaderboard_json_has_a_row_per_model_with_every_metric(evaluation: dict[str, Any], tmp_path: Path) -> None:
    layout = ArtifactLayout(tmp_path)
    save_leaderboard(layout, evaluation, {**evaluation, "warnings": ["AAPL: odd"]})
    saved = read_json(layout.leaderboard)
    assert saved["units"] == UNITS
    assert saved["holdout"]["models"] == leaderboard_rows(evaluation)
    assert saved["backtest"]["warnings"] == ["AAPL: odd"]
    for row in saved["holdout"]["models"]:
        assert set(METRICS) < set(row)
    (adapter,) = [row for row in saved["holdout"]["models"] if row["model"] == "adapter"]
    for target in ("mean", "distribution", "volatility"):
        assert adapter[f"verdict_{target}"] == "too little evidence"
    assert adapter["symbols"] == 2


def test_the_title_names_the_demo_model_and_the_notes_say_what_was_left_out_and_why(evaluation: dict[str, Any]) -> None:
    evaluation["warnings"] = ["AAPL: may have been seen in pre-training"]
    text = " ".join(rendered(evaluation_table(evaluation), 120))
    assert "adapter on base model kronos-nano (embedded demo model)" in text
    assert "may have been seen in pre-training" in text
    assert "2 symbols: 10 bars from 3 cutoffs each." in text
    assert "Few: too little evidence: 3 cutoffs, and a verdict needs 8 (--backtest-origins gives more)." in text
    assert "Left out: 5 older cutoffs (--max-cutoffs)." in text
    assert "Skipped ACME: ACME.csv:3: Close: a price must be above 0 (found '-1')" in text
    for unit in ("(price)", "(%)"):
        assert unit in text


def test_the_share_of_repaired_bars_is_reported(evaluation: dict[str, Any]) -> None:
    assert "repaired" not in " ".join(evaluation_table(evaluation).notes)
    for entry, share in zip(evaluation["per_symbol"], (0.02, 0.04), strict=True):
        entry["mended"] = {"base": 0.0, "adapter": share}
    assert "repaired to valid candles: base 0.0%, adapter 3.0%." in " ".join(evaluation_table(evaluation).notes)


@pytest.mark.slow
def test_models_that_not_every_symbol_has_come_last_and_are_said_not_to_compare() -> None:
    windows = [windows_of("AAPL"), windows_of("MSFT")]
    predictions = predictions_of(windows, {"base": 0.5, "checkpoint": 0.5, "adapter": -1.0})
    predictions = predictions[(predictions["model"] != "adapter") | (predictions["unique_id"] == "AAPL")]
    evaluation = build_evaluation(predictions, "checkpoint", [], manifest_of(windows))
    text_table = leaderboard_table(evaluation)
    assert text_table.rows[-1][0] == "adapter"
    note = "Means over fewer than the 2 symbols, not to be compared: adapter 1."
    assert note in text_table.notes
    assert note in evaluation_table(evaluation).notes


def test_brackets_in_a_reason_are_text_and_no_markup(evaluation: dict[str, Any]) -> None:
    evaluation["skipped"] = [{"symbol": "X", "reason": "[red]odd[/red] [/]"}]
    assert "Skipped X: [red]odd[/red] [/]" in " ".join(rendered(evaluation_table(evaluation)))


def test_an_undefined_metric_is_a_dash_and_its_reason_is_told(evaluation: dict[str, Any]) -> None:
    apple = evaluation["per_symbol"][0]
    apple.update(mape=None, undefined={"mape": "the close is 0 at 1 of 10 bars"})
    lines = rendered(evaluation_table(evaluation), 120)
    (row,) = [line for line in lines if line.strip().startswith("AAPL ")]
    assert row.split().count("–") == 1
    assert any("AAPL: MAPE is undefined: the close is 0 at 1 of 10 bars." in line for line in lines)


def test_markdown_has_the_same_cells(evaluation: dict[str, Any]) -> None:
    text_table = evaluation_table(evaluation)
    title, table, *notes = text_table.markdown().split("\n\n")
    assert "embedded demo model" in title
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert {len(line) for line in lines} == {10}
    assert (lines[0][1], lines[0][-2]) == ("MAE adapter (price)", "distribution")
    assert [line[0] for line in lines[2:]] == ["AAPL", "EURUSD=X", "**all**"]
    assert lines[2] == list(text_table.rows[0])
    assert notes[-1].startswith("Skipped ACME")


def test_the_long_table_and_the_metrics_of_a_run_hold_the_same_scores(evaluation: dict[str, Any]) -> None:
    frame = evaluation_frame(evaluation)
    assert len(frame) == 2 * len(MODELS | VARIANTS)
    mae = frame.loc[frame["model"] == "adapter", "mae"].mean()
    metrics = run_metrics(evaluation)
    assert metrics["holdout/mae"] == pytest.approx(mae)
    models = evaluation["aggregate"]["models"]
    assert metrics["holdout/skill_mean"] == pytest.approx(1 - models["adapter"]["mase"] / models["naive"]["mase"])
    assert len(metrics) <= 9, "a handful to compare"
    assert run_metrics(evaluation, "backtest", "base")["backtest/mae"] == models["base"]["mae"]
    board = leaderboard_metrics(evaluation)
    assert board["holdout/adapter/mae"] == metrics["holdout/mae"]
    assert {name.split("/")[1] for name in board} == MODELS
    assert "holdout/naive/coverage_80" not in board, "an undefined score"


def test_verdicts_are_said_with_their_reason(evaluation: dict[str, Any]) -> None:
    sentences = verdict_sentences(evaluation["aggregate"], "adapter")
    rivals = {
        "mean": ["naive", "drift", "seasonal_naive", "base"],
        "distribution": [*VOLATILITY_RIVALS, "base"],
        "volatility": [*VOLATILITY_RIVALS, "base"],
    }
    assert [sentence.split(",")[0] for sentence in sentences] == [
        f"{target} against {rival}: too little evidence" for target, names in rivals.items() for rival in names
    ]


def test_a_symbols_row_is_better_only_if_the_model_is_better_than_every_rival_of_the_target(
    evaluation: dict[str, Any],
) -> None:
    verdicts = evaluation["per_symbol"][0]["verdicts"]
    for target, verdict_on_base in (("mean", "better"), ("distribution", "no better"), ("volatility", "worse")):
        for comparison in verdicts[target]["adapter"].values():
            comparison["verdict"] = "better"
        verdicts[target]["adapter"]["base"]["verdict"] = verdict_on_base
    assert list(evaluation_table(evaluation).rows[0][-3:]) == ["yes", "no", "worse"]


def test_the_variants_of_a_models_paths_are_in_the_json_and_not_in_the_leaderboard(evaluation: dict[str, Any]) -> None:
    assert {row["model"] for row in leaderboard_rows(evaluation)} == MODELS | VARIANTS
    assert {row[0] for row in leaderboard_table(evaluation).rows} == MODELS


@pytest.mark.parametrize(("value", "text"), [(None, "–"), (0.0, "0.000"), (-0.01234, "-0.01234"), (3000.4, "3,000")])
def test_prices_have_four_digits_whatever_their_size_and_sign(value: float | None, text: str) -> None:
    assert price(value) == text


def test_a_long_path_in_a_note_stays_whole() -> None:
    path = "/data/" + "a-folder/" * 20 + "AAPL.json"
    table = TextTable("Close", ["Ticker", "MAE"], [["AAPL", "1"]], notes=[f"the evaluation is left out: [b]{path}"])
    assert f"[b]{path}" in " ".join(rendered(table)).split()
