from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from made_predictions import predictions_of_losses
from rich.console import Console

from kronos_pipeline.evaluation.reports.text_table import print_tables
from kronos_pipeline.evaluation.reports.worth import (
    best_rival,
    combined_verdict_of,
    headline,
    little_evidence,
    worth_table,
)
from kronos_pipeline.evaluation.scoring.metrics import METRICS_OF, score, score_as_judged
from kronos_pipeline.evaluation.scoring.report import build_evaluation

MANIFEST: dict[str, Any] = {"base_model": {"label": "a base", "demo": False}}


def losses(level: float, seed: int, cutoffs: int = 20) -> np.ndarray:
    return level * np.random.default_rng(seed).uniform(0.9, 1.1, cutoffs)


def table(levels: dict[str, float], cutoffs: int = 20) -> pd.DataFrame:
    return predictions_of_losses({name: losses(level, i, cutoffs) for i, (name, level) in enumerate(levels.items())})


LEVELS_OF_LOSSES = {
    "naive": 3.0,
    "seasonal_naive": 4.0,
    "ewma": 1.0,
    "base": 2.5,
    "adapter": 2.0,
    "adapter_rescaled": 0.5,
}


def evaluation(cutoffs: int = 20, variant: str = "sampled") -> dict[str, Any]:
    sampling = {"sampling": {"AAPL": {"adapter": {"variants": {"distribution": variant}}}}}
    return build_evaluation(table(LEVELS_OF_LOSSES, cutoffs), "adapter", [], MANIFEST | sampling)


def test_the_table_says_of_each_target_whether_the_model_beats_every_rival() -> None:
    rows = worth_table(evaluation(), "Backtest").rows
    assert [row[0] for row in rows] == ["AAPL"]
    mean, distribution = rows[0][1], rows[0][2]
    assert mean.startswith("yes, on base\n1")  # base is the best rival of the mean
    assert distribution.startswith("worse, on ewma\n-")


def test_a_model_is_judged_by_the_variant_that_was_chosen_for_the_target() -> None:
    chosen = evaluation(variant="rescaled")
    rows = worth_table(chosen, "Backtest").rows
    assert rows[0][1].startswith("yes, on base\n1")
    assert rows[0][2].startswith("yes, on ewma\n5")
    assert combined_verdict_of(chosen["per_symbol"][0], "adapter", "distribution") == "better"
    models = chosen["per_symbol"][0]["models"]
    assert models["adapter"]["scaled_crps"] == models["adapter_rescaled"]["scaled_crps"]
    assert models["adapter"]["mase"] != models["adapter_rescaled"]["mase"]


def test_too_few_cutoffs_are_said_to_be_few_without_a_figure() -> None:
    few = evaluation(cutoffs=7)
    assert worth_table(few, "Holdout").rows[0][1:4] == ["few", "few", "few"]
    assert best_rival(few["per_symbol"][0], "adapter", "mean") is None


def test_the_table_fits_80_columns() -> None:
    console = Console(width=80, force_terminal=False)
    with console.capture() as capture:
        print_tables(worth_table(evaluation(), "Backtest"), console=console)
    lines = capture.get().splitlines()
    assert any("yes, on base" in line for line in lines)
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("target", ["distribution", "volatility"])
def test_metrics_of_a_target_are_those_of_its_variant_and_of_no_other(target: str) -> None:
    predictions = table(LEVELS_OF_LOSSES)
    predictions.loc[predictions["model"] == "adapter_rescaled", "variance"] = 3e-4
    plain = score(predictions)["AAPL"]
    judged = score_as_judged(predictions, {"AAPL": {"adapter": {target: "rescaled"}}})["AAPL"]
    for name in plain["adapter"]:
        source = "adapter_rescaled" if name in METRICS_OF[target] else "adapter"  # type: ignore[index]
        assert judged["adapter"].get(name) == plain[source].get(name)
    assert {name: judged[name] for name in judged if name != "adapter"} == {
        name: plain[name] for name in plain if name != "adapter"
    }


def test_the_main_result_says_in_words_whether_the_error_is_smaller_or_larger() -> None:
    result = evaluation()
    errors = {name: result["per_symbol"][0]["models"][name]["mae"] for name in ("adapter", "naive")}
    percent = 100 * (1 - errors["adapter"] / errors["naive"])
    assert f" (error {percent:.1f} % smaller)" in headline(result)
    result["per_symbol"][0]["models"]["naive"]["mae"] = errors["adapter"]
    assert " (error equal)" in headline(result)
    result["per_symbol"][0]["models"]["naive"]["mae"] = errors["adapter"] / 1.051
    assert " (error 5.1 % larger)" in headline(result)


@pytest.mark.slow
def test_an_evaluation_of_many_tickers_never_goes_through_the_whole_table_for_a_ticker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else the leaderboard of thousands of tickers takes hours."""
    series: Any = pd.Series
    compare, rows_compared = series.__eq__, list[int]()

    def counted(self: pd.Series, other: object) -> Any:
        rows_compared.append(len(self))
        return compare(self, other)

    monkeypatch.setattr(series, "__eq__", counted)
    one = table(LEVELS_OF_LOSSES, 2)
    whole = []
    for number in (2, 8):
        tickers = [f"T{index}" for index in range(number)]
        rows = pd.concat([one.assign(unique_id=ticker) for ticker in tickers], ignore_index=True)
        chosen = {ticker: {"adapter": {"variants": {"distribution": "rescaled"}}} for ticker in tickers}
        rows_compared.clear()
        built = build_evaluation(rows, "adapter", [], MANIFEST | {"sampling": chosen})
        assert [entry["variants"]["adapter"]["distribution"] for entry in built["per_symbol"]] == ["rescaled"] * number
        whole.append(sum(length > len(rows) // 2 for length in rows_compared))
    assert whole[0] == whole[1]


class CountedText(str):
    """A text that counts how often it is compared."""

    comparisons = 0

    def __eq__(self, other: object) -> bool:
        CountedText.comparisons += 1
        return str.__eq__(self, other)

    __hash__ = str.__hash__


def test_the_usual_reason_is_found_without_comparing_every_ticker_with_every_other() -> None:
    number = 500
    verdicts = [
        {"verdict": "too little evidence", "reason": CountedText(f"{3 if i % 3 else 4} cutoffs")} for i in range(number)
    ]
    entries = [{"verdicts": {"mean": {"adapter": {"naive": verdict}}}} for verdict in verdicts]
    made = {"model": "adapter", "aggregate": {"verdicts": {}}, "per_symbol": entries}
    assert little_evidence(made) == ["Few: too little evidence: 3 cutoffs."]
    assert CountedText.comparisons <= 2 * number
