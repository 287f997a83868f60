from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from holdouts import HandMadeWindows
from made_evaluations import SKIPPED, manifest_of, predictions_of, windows_of
from made_predictions import made_predictions

from kronos_pipeline.artifacts import ArtifactLayout, read_json, read_parquet
from kronos_pipeline.checksums import LARGEST_JSON, file_hash
from kronos_pipeline.errors import ArtifactError
from kronos_pipeline.evaluation.predictions import EWMA, VOLATILITY_RIVALS
from kronos_pipeline.evaluation.provenance import manifest_of_ticker, merge_manifests
from kronos_pipeline.evaluation.scoring.calibration import calibrations
from kronos_pipeline.evaluation.scoring.metrics import METRICS, UNITS
from kronos_pipeline.evaluation.scoring.report import (
    build_evaluation,
    load_predictions,
    save_evaluation,
    save_ticker_evaluation,
    summarise,
)


@pytest.fixture
def layout(tmp_path: Path) -> ArtifactLayout:
    return ArtifactLayout(tmp_path)


def strict_json(path: Path) -> Any:
    """Read a file as strict JSON: NaN and Infinity are errors."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} in {path.name}")

    return json.loads(path.read_text(), parse_constant=refuse)


def recomputed(rows: pd.DataFrame, model: str) -> dict[str, float]:
    error = rows["y"].to_numpy() - rows[model].to_numpy()
    return {
        "mae": float(np.mean(np.abs(error))),
        "rmse": float(np.sqrt(np.mean(np.square(error)))),
        "mape": float(100 * np.mean(np.abs(error) / rows["y"].to_numpy())),
    }


@pytest.mark.slow
@pytest.mark.parametrize("trained", ["adapter", "checkpoint"])
def test_every_error_of_evaluation_json_can_be_recomputed_from_forecasts_parquet(
    layout: ArtifactLayout, trained: str
) -> None:
    windows = [windows_of("AAPL"), windows_of("BRK-B", 1000, left_out=5), windows_of("EURUSD=X", 0.01)]
    saved = save_evaluation(layout, predictions_of(windows), trained, SKIPPED, manifest_of(windows))
    evaluation = strict_json(layout.evaluation)
    evaluation.pop("checksum")
    assert evaluation == summarise(saved)
    forecasts = pd.read_parquet(layout.forecasts)
    models = ["naive", "drift", "seasonal_naive", *VOLATILITY_RIVALS, "base", "checkpoint", "adapter"]
    assert list(forecasts.columns) == ["unique_id", "ds", "cutoff", "y", *models]
    by_symbol = dict(list(forecasts.groupby("unique_id")))
    assert [entry["symbol"] for entry in evaluation["per_symbol"]] == sorted(map(str, by_symbol))
    for entry in evaluation["per_symbol"]:
        rows = by_symbol[entry["symbol"]]
        for model in models:
            expected = recomputed(rows, model)
            assert {name: entry["models"][model][name] for name in expected} == pytest.approx(expected)
        assert {name: entry[name] for name in METRICS} == {name: entry["models"][trained][name] for name in METRICS}
        assert entry["bars"] == len(rows) == 10
        assert entry["cutoffs"] == rows["cutoff"].nunique()
        assert pd.Timestamp(entry["holdout"]["first"]) == rows["ds"].min()
        assert pd.Timestamp(entry["holdout"]["last"]) == rows["ds"].max()
    total = evaluation["aggregate"]
    for model in models:
        for metric in ("mae", "rmse", "mape"):
            mean = np.mean([recomputed(rows, model)[metric] for rows in by_symbol.values()])
            assert total["models"][model][metric] == pytest.approx(mean)
        assert total["models"][model]["symbols"] == 3
    assert {name: total[name] for name in METRICS} == {name: total["models"][trained][name] for name in METRICS}
    assert (total["symbols_evaluated"], total["bars"], total["cutoffs"]) == (3, 30, 9)


@pytest.mark.slow
def test_the_evaluation_follows_from_the_predictions_beside_it_alone(layout: ArtifactLayout) -> None:
    windows = [windows_of("AAPL"), windows_of("BRK-B", 1000)]
    evaluation = save_evaluation(layout, predictions_of(windows), "adapter", SKIPPED, manifest_of(windows))
    predictions, manifest = read_parquet(layout.predictions)
    recomputed = build_evaluation(predictions, "adapter", SKIPPED, manifest)
    files = evaluation.pop("files")
    assert summarise(recomputed) == summarise(evaluation)
    assert files == {path.name: file_hash(path) for path in (layout.predictions, layout.forecasts)}


@pytest.mark.slow
def test_every_model_is_judged_against_the_rivals_of_each_target_and_few_cutoffs_are_said_to_be_few() -> None:
    windows = [windows_of("AAPL"), windows_of("BRK-B", 1000)]
    evaluation = build_evaluation(predictions_of(windows), "adapter", [], manifest_of(windows))
    for entry in (evaluation["aggregate"], *evaluation["per_symbol"]):
        assert set(entry["verdicts"]) == {"mean", "distribution", "volatility"}
        for target, rivals in {
            "mean": {"naive", "drift", "seasonal_naive"},
            "distribution": set(VOLATILITY_RIVALS),
            "volatility": set(VOLATILITY_RIVALS),
        }.items():
            verdicts = entry["verdicts"][target]
            assert {model: set(by_rival) for model, by_rival in verdicts.items()} == {
                "base": rivals,
                "checkpoint": rivals | {"base"},
                "adapter": rivals | {"base"},
            }
            verdict = verdicts["checkpoint"]["base"]
            assert (verdict["verdict"], verdict["cutoffs"]) == ("too little evidence", 3)
            assert "3 cutoffs" in verdict["reason"]


@pytest.mark.slow
def test_a_model_that_is_nearer_at_every_cutoff_is_better_and_the_others_worse() -> None:
    windows = [HandMadeWindows(100 + np.arange(90.0), holdout=40, horizon=4)]
    # The sampler adds the model, the mean path's 1 and the step: with -1 it knows the future.
    predictions = predictions_of(windows, {"base": 2.5, "adapter": -0.9})
    evaluation = build_evaluation(predictions, "adapter", [], manifest_of(windows))
    verdicts = evaluation["per_symbol"][0]["verdicts"]["mean"]
    assert {rival: verdicts["adapter"][rival]["verdict"] for rival in ("naive", "base")} == {
        "naive": "better",
        "base": "better",
    }
    assert verdicts["base"]["naive"]["verdict"] == "worse"


def test_a_model_is_judged_by_the_variant_that_was_chosen_for_a_target_and_shown_as_sampled() -> None:
    y = np.full(60, 100.0) + np.random.default_rng(0).normal(size=60)
    models = {"ewma": y + 2, "base": y + 2, "adapter": y + 3, "adapter_recentred": y + 1}
    predictions = made_predictions(y, models, horizon=3)
    windows = [windows_of("AAPL")]
    sampling = {"AAPL": {"adapter": {"variants": {"distribution": "recentred"}}}}
    entry = build_evaluation(predictions, "adapter", [], manifest_of(windows) | {"sampling": sampling})["per_symbol"][0]
    assert entry["variants"] == {"adapter": {"distribution": "recentred"}}
    assert (entry["mae"], entry["models"]["adapter_recentred"]["mae"]) == pytest.approx((3, 1))
    verdicts = {target: entry["verdicts"][target]["adapter"]["base"] for target in ("mean", "distribution")}
    assert verdicts["mean"]["verdict"] == "worse"
    assert (verdicts["distribution"]["verdict"], verdicts["distribution"]["skill"]) == ("better", pytest.approx(0.5))
    assert "adapter_recentred" not in entry["verdicts"]["mean"]


@pytest.mark.slow
def test_evaluation_json_says_what_was_evaluated_with_what(layout: ArtifactLayout) -> None:
    windows = [windows_of("AAPL", left_out=5), windows_of("MSFT", left_out=2)]
    evaluation = save_evaluation(layout, predictions_of(windows), "adapter", SKIPPED, manifest_of(windows))
    assert evaluation["model"] == "adapter"
    assert evaluation["base_model"] == "kronos-nano (embedded demo model)"
    assert evaluation["demo"] is True
    assert evaluation["units"] == UNITS
    assert evaluation["warnings"] == []
    assert evaluation["skipped"] == SKIPPED
    assert (evaluation["device"], evaluation["seed"], evaluation["samples"]) == ("cpu", 7, 3)
    assert [entry["cutoffs_left_out"] for entry in evaluation["per_symbol"]] == [5, 2]
    assert evaluation["aggregate"]["cutoffs_left_out"] == 7
    manifest = evaluation["manifest"]
    assert manifest["data"] == {ticker.ticker: ticker.bars.content_hash for ticker in windows}
    assert manifest["mlflow_runs"] == {"AAPL": "run of AAPL", "MSFT": "run of MSFT"}
    assert manifest["config"]["horizon"] == 4
    assert "torch" in manifest["packages"]
    assert read_parquet(layout.forecasts)[1] == manifest


@pytest.mark.slow
def test_no_symbol_is_an_error_and_leaves_the_last_evaluation(layout: ArtifactLayout) -> None:
    windows = [windows_of("AAPL")]
    forecasts = predictions_of(windows)
    save_evaluation(layout, forecasts, "adapter", [], manifest_of(windows))
    before = (layout.evaluation.read_bytes(), layout.forecasts.read_bytes())
    with pytest.raises(ArtifactError, match="No symbol was evaluated"):
        save_evaluation(layout, forecasts.iloc[:0], "adapter", SKIPPED, manifest_of([]))
    assert (layout.evaluation.read_bytes(), layout.forecasts.read_bytes()) == before


@pytest.mark.slow
def test_an_undefined_metric_is_null_with_its_reason_and_beats_nothing(layout: ArtifactLayout) -> None:
    windows = [windows_of("AAPL"), windows_of("MSFT")]
    forecasts = predictions_of(windows).reset_index(drop=True)
    broken = (forecasts["model"] == "adapter") & (forecasts["unique_id"] == "AAPL") & (forecasts["step"] == 4)
    forecasts.loc[forecasts.index[broken][0], "mean"] = np.nan
    save_evaluation(layout, forecasts, "adapter", [], manifest_of(windows))
    evaluation = strict_json(layout.evaluation)
    apple, microsoft = evaluation["per_symbol"]
    assert apple["mae"] is apple["rmse"] is apple["mape"] is None
    assert apple["undefined"]["mae"] == "no finite forecast or close at 1 of 10 bars"
    assert apple["verdicts"]["mean"]["adapter"]["naive"]["verdict"] == "too little evidence"
    assert microsoft["mae"] is not None
    assert evaluation["aggregate"]["mae"] is None
    assert evaluation["aggregate"]["undefined"]["mae"] == "undefined for 1 of 2 symbols"
    assert evaluation["aggregate"]["models"]["base"]["mae"] is not None


@pytest.mark.slow
def test_a_symbol_without_the_trained_model_has_null_metrics_and_a_reason() -> None:
    windows = [windows_of("AAPL"), windows_of("MSFT")]
    forecasts = pd.concat([predictions_of(windows[:1]), predictions_of(windows[1:], {"base": 0.5})])
    evaluation = build_evaluation(forecasts, "adapter", [], manifest_of(windows))
    microsoft = evaluation["per_symbol"][1]
    assert microsoft["mae"] is None
    assert microsoft["undefined"]["mae"] == "no forecast of the adapter model"
    assert evaluation["aggregate"]["models"]["checkpoint"]["symbols"] == 1
    assert evaluation["aggregate"]["models"]["base"]["symbols"] == 2


@pytest.mark.slow
def test_the_tickers_files_put_together_give_the_evaluation_of_all(layout: ArtifactLayout) -> None:
    windows = [windows_of("AAPL", left_out=5), windows_of("^GSPC")]
    for ticker in windows:
        evaluation_of_ticker = save_ticker_evaluation(
            layout, predictions_of([ticker]), "adapter", manifest_of([ticker])
        )
        assert evaluation_of_ticker == read_json(layout.ticker_metrics(ticker.ticker))
        assert evaluation_of_ticker["aggregate"]["symbols_evaluated"] == 1
        assert evaluation_of_ticker["files"] == {
            f"{ticker.ticker}.parquet": file_hash(layout.ticker_forecasts(ticker.ticker))
        }
    predictions, manifest = load_predictions([layout.ticker_forecasts(ticker) for ticker in ("AAPL", "^GSPC")])
    assert build_evaluation(predictions, "adapter", [], manifest) == build_evaluation(
        predictions_of(windows), "adapter", [], manifest_of(windows)
    )


@pytest.mark.slow
def test_what_was_seen_in_pre_training_is_said_of_the_tickers_concerned_and_of_no_other() -> None:
    windows = [windows_of("AAPL"), windows_of("MSFT"), windows_of("^GSPC")]
    manifest = manifest_of(windows) | {"contamination": {"AAPL": "may be known", "MSFT": "may be known"}}
    evaluation = build_evaluation(predictions_of(windows), "adapter", [], manifest)
    assert evaluation["warnings"] == ["AAPL, MSFT: may be known"]
    assert [entry["contamination"] for entry in evaluation["per_symbol"]] == ["may be known", "may be known", None]
    assert manifest_of_ticker(manifest, "^GSPC")["contamination"] == {}
    assert manifest_of_ticker(manifest, "AAPL")["data"] == {"AAPL": windows[0].bars.content_hash}


def test_a_tickers_file_holds_one_ticker(layout: ArtifactLayout) -> None:
    windows = [windows_of("AAPL"), windows_of("MSFT")]
    with pytest.raises(ArtifactError, match="found 2 symbols"):
        save_ticker_evaluation(layout, predictions_of(windows), "adapter", manifest_of(windows))


def test_a_ticker_without_metrics_is_an_error(layout: ArtifactLayout) -> None:
    with pytest.raises(ArtifactError, match=r"AAPL\.parquet"):
        load_predictions([layout.ticker_forecasts("AAPL")])
    with pytest.raises(ArtifactError, match="No symbol"):
        load_predictions([])


@pytest.mark.slow
def test_what_differs_between_manifests_is_named_and_two_base_models_are_both_shown() -> None:
    windows = [windows_of("AAPL"), windows_of("MSFT"), windows_of("NVDA")]
    manifests = [manifest_of([ticker]) for ticker in windows]
    manifests[1]["device"] = "cuda"
    manifests[2]["base_model"] = {"name": "small", "label": "small", "demo": False}
    merged = merge_manifests(manifests)
    assert merged["data"] == {ticker.ticker: ticker.bars.content_hash for ticker in windows}
    assert merged["seed"] == 7
    assert set(merged["differing"]) == {"device", "base_model"}
    assert merged["differing"]["device"] == ["cpu", "cuda"]
    evaluation = build_evaluation(predictions_of(windows), "adapter", [], merged)
    assert evaluation["base_model"] == "kronos-nano (embedded demo model) / small"
    assert evaluation["demo"] is True
    assert evaluation["device"] is None


def test_the_calibration_of_each_symbol_and_of_all_is_in_the_report() -> None:
    predictions = pd.concat(
        [
            made_predictions(
                100 + np.arange(60.0) % 7, {EWMA: np.full(60, 100.0), "adapter": np.full(60, 101.0)},
                symbol=symbol, half_widths={EWMA: 1.0, "adapter": 2.0},
            )
            for symbol in ("AAPL", "MSFT")
        ]
    )  # fmt: skip
    manifest = {"base_model": {"label": "demo", "demo": True}}
    evaluation = build_evaluation(predictions, "adapter", [], manifest)
    expected = calibrations(predictions[predictions["unique_id"] == "AAPL"], [EWMA, "adapter"])
    assert evaluation["per_symbol"][0]["calibration"] == expected
    overall = evaluation["aggregate"]["calibration"]
    assert set(overall) == {EWMA, "adapter"}
    assert overall["adapter"]["rejections"]["pit"]["tested"] == 2
    assert overall["adapter"]["forecasts"] == expected["adapter"]["forecasts"] == 12


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> tuple[ArtifactLayout, dict[str, Any]]:
    """The stored reports of two tickers and of both together, and the evaluation of both."""
    layout = ArtifactLayout(tmp_path_factory.mktemp("two"))
    windows = [windows_of("AAPL"), windows_of("BRK-B", 1000)]
    predictions, widths = predictions_of(windows), {"sampled": {"50": 0.9960923763660267}}
    sampling = {"variants": {"distribution": "rescaled"}, "widths": widths}
    manifest = manifest_of(windows) | {
        "sampling": {of_ticker.ticker: {"adapter": sampling} for of_ticker in windows},
        "group": {of_ticker.ticker: ["AAPL", "BRK-B"] for of_ticker in windows},
    }
    for of_ticker in windows:
        own = predictions[predictions["unique_id"] == of_ticker.ticker]
        save_ticker_evaluation(layout, own, "adapter", manifest_of_ticker(manifest, of_ticker.ticker))
    return layout, save_evaluation(layout, predictions, "adapter", SKIPPED, manifest)


@pytest.mark.slow
def test_the_report_over_all_tickers_has_the_scores_and_verdicts_and_the_report_of_a_ticker_everything(
    of_two: tuple[ArtifactLayout, dict[str, Any]],
) -> None:
    layout, evaluation = of_two
    stored = read_json(layout.evaluation)
    assert stored["aggregate"] == evaluation["aggregate"]
    for brief, complete in zip(stored["per_symbol"], evaluation["per_symbol"], strict=True):
        own = read_json(layout.ticker_metrics(brief["symbol"]))["per_symbol"][0]
        assert own.keys() == complete.keys()
        assert own.keys() - brief.keys() == {"calibration", "model_confidence", "sampling"}
        assert {model: scores["qlike"] for model, scores in brief["models"].items()} == {
            model: own["models"][model]["qlike"] for model in own["models"] if "_re" not in model
        }
        assert brief["verdicts"] == {
            target: {"adapter": verdicts["adapter"]} for target, verdicts in complete["verdicts"].items()
        }
        assert own["sampling"] == complete["sampling"] != {}
        assert brief["variants"] == own["variants"] == {"adapter": {"distribution": "rescaled"}}


@pytest.mark.slow
def test_fifty_thousand_tickers_fit_into_the_files_over_all_tickers(
    of_two: tuple[ArtifactLayout, dict[str, Any]],
) -> None:
    layout, _ = of_two
    stored = read_json(layout.evaluation)
    in_the_manifest = sum(
        len(json.dumps(entry["AAPL"]))
        for entry in stored["manifest"].values()
        if isinstance(entry, dict) and "AAPL" in entry
    )
    line = next(line for line in layout.evaluation.read_text().splitlines() if line.startswith('{"symbol": "AAPL"'))
    assert 50_000 * (len(line) + in_the_manifest) < LARGEST_JSON
    for path in (layout.predictions, layout.forecasts):
        _, manifest = read_parquet(path)
        assert manifest == stored["manifest"]
        assert "group" not in manifest  # every ticker for each ticker
    assert 50_000 * in_the_manifest < 6e7  # Arrow reads no Parquet file with a manifest of 70 MB
