"""The short end of a run: a line per ticker at most, causes once, and the next command."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from made_evaluations import SKIPPED, manifest_of, predictions_of, windows_of

from kronos_pipeline.artifacts import ArtifactLayout
from kronos_pipeline.config import KronosTrainingConfig
from kronos_pipeline.evaluation.reports.summary import error_lines, verdict_lines
from kronos_pipeline.evaluation.scoring.report import build_evaluation
from kronos_pipeline.evaluation.scoring.targets import TARGETS
from kronos_pipeline.pipeline.ending import ending_lines
from kronos_pipeline.pipeline.propose import smallest_gain


@pytest.fixture(scope="module")
def evaluation() -> dict[str, Any]:
    windows = [windows_of("AAPL"), windows_of("GOOGL")]
    return build_evaluation(predictions_of(windows), "adapter", SKIPPED, manifest_of(windows))


@pytest.fixture(scope="module")
def many(evaluation: dict[str, Any]) -> dict[str, Any]:
    """The evaluation of 300 tickers with as many errors."""
    entries = []
    for number in range(300):
        entry = copy.deepcopy(evaluation["per_symbol"][0])
        entry |= {"symbol": f"T{number:03}", "mape": 1 + number / 100}
        entries.append(entry)
    return {**evaluation, "per_symbol": entries, "skipped": []}


def test_each_ticker_has_its_error_beside_that_of_the_last_close(evaluation: dict[str, Any]) -> None:
    header, *rows, total = error_lines(evaluation)
    assert header.split() == ["error", "in", "%", "adapter", "last", "close"]
    for row, entry in zip(rows, evaluation["per_symbol"], strict=True):
        own, naive = entry["mape"], entry["models"]["naive"]["mape"]
        assert row.split()[:3] == [entry["symbol"], f"{own:.2f}", f"{naive:.2f}"]
        assert row.endswith(f"{100 * abs(1 - own / naive):.0f} % {'smaller' if own < naive else 'larger'}")
    assert total.startswith("all tickers")


@pytest.mark.slow
def test_tickers_with_the_same_verdicts_share_a_line(many: dict[str, Any]) -> None:
    line, legend = verdict_lines(many)
    assert line == "300 tickers, T000, T001, T002 and 297 more: too little evidence (3 cutoffs, and a verdict needs 8)"
    assert legend.startswith("cutoff: ")
    better = copy.deepcopy(many)
    for target in TARGETS:
        for comparison in better["per_symbol"][7]["verdicts"][target]["adapter"].values():
            comparison["verdict"] = "better"
    first, *_ = verdict_lines(better)
    assert first == "T007: better"


def test_the_end_of_a_run_over_many_tickers_fits_a_screen(
    many: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = KronosTrainingConfig(model_name="kronos-nano", adapter="lora", data_dir="mine")
    lines = ending_lines(config, ArtifactLayout(Path("artifacts")), many)
    assert len(lines) < 30
    text = "\n".join(lines)
    assert "... 294 more between the best and the worst ..." in text
    assert "Picture   artifacts/plots/T000.png" in text
    assert lines[-1].endswith("--adapter lora --backtest-origins 8 --backtest-refit-every 8")
    assert " backtest --data-dir mine --model-name kronos-nano" in lines[-1]
    assert all(len(line) <= 80 for line in lines[:-1])


def test_a_skipped_ticker_is_named_with_its_reason(evaluation: dict[str, Any], tmp_path: Path) -> None:
    lines = ending_lines(KronosTrainingConfig(model_name="kronos-nano"), ArtifactLayout(tmp_path), evaluation)
    assert any(line.startswith("Skipped   ACME: ACME.csv:3: Close: ") for line in lines)


def test_more_cutoffs_find_smaller_gains() -> None:
    assert smallest_gain(8) == pytest.approx(1.15, abs=0.02)
    assert smallest_gain(32) < smallest_gain(8) / 2
