"""Batched forecast jobs: the same numbers as a single job, in few calls; a failing job does not affect the others."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from holdouts import HandMadeWindows, RecordingSampler
from recorded_calls import record_calls
from registered_models import base_of
from small_trainings import simulated_windows, small_recipe

from kronos_pipeline.artifacts import ArtifactLayout, read_parquet
from kronos_pipeline.config import Recipe
from kronos_pipeline.data.windows import WindowSet
from kronos_pipeline.errors import KronosError, ModelError
from kronos_pipeline.evaluation.forecasting import batching
from kronos_pipeline.evaluation.forecasting.batching import ForecastJob, gather_jobs, run_job, run_jobs, unwrap
from kronos_pipeline.evaluation.forecasting.candidates import TrainedModels
from kronos_pipeline.evaluation.forecasting.holdout_table import predict_job
from kronos_pipeline.evaluation.forecasting.sampling import plain_sampling
from kronos_pipeline.evaluation.forecasting.tuning import fit_sampling_job
from kronos_pipeline.evaluation.holdout import HoldoutResult, evaluate_tickers
from kronos_pipeline.evaluation.provenance import sampling_precision
from kronos_pipeline.model.loading import KronosModel
from kronos_pipeline.training.trainer import KronosTrainer

RECIPE = Recipe(horizon=4, lookback=8, eval_samples=3)
TICKERS = ("AAPL", "MSFT", "TSLA", "XOM")
TRAINED = ("AAPL", "MSFT")


def holdout(ticker: str, bars: int = 40) -> Any:
    close = 100 + np.random.default_rng(len(ticker)).normal(size=bars).cumsum()
    return HandMadeWindows(close, holdout=10, horizon=4, ticker=ticker)


def job(ticker: str, shift: float = 1.0, **changes: Any) -> ForecastJob[Any]:
    models, plain = {"base": 0.0, "adapter": shift}, replace(plain_sampling(RECIPE), **changes)
    return predict_job(holdout(ticker), models, dict.fromkeys(models, plain), RECIPE)


class Failing(RecordingSampler):
    """Sampler that fails for a whole batch with a negative model, as the real sampler does if a model returns NaN."""

    def __call__(self, models: Any, *arguments: Any, **settings: Any) -> np.ndarray:
        paths = super().__call__(models, *arguments, **settings)
        if min(models) < 0:
            raise ModelError("its weights are of no use")
        return paths


def test_what_all_ask_for_is_sampled_in_one_call_and_each_gets_its_own() -> None:
    sampler = RecordingSampler()
    results = dict(run_jobs({name: job(name, number) for number, name in enumerate(TICKERS)}, sampler=sampler))
    assert len(sampler.calls) == 1
    assert len(sampler.calls[0]["history"]) == 4 * 2 * 3
    for number, name in enumerate(TICKERS):
        pd.testing.assert_frame_equal(
            unwrap(results[name]).predictions, run_job(job(name, number), RecordingSampler()).predictions
        )


def test_what_differs_in_length_or_in_what_a_call_has_once_is_sampled_apart() -> None:
    sampler = RecordingSampler()
    long = RECIPE.model_copy(update={"horizon": 6})
    six = HandMadeWindows(holdout("F").close, holdout=10, horizon=6, ticker="F")
    other: Any = predict_job(six, {"base": 0.0}, {"base": plain_sampling(long)}, long)  # type: ignore[arg-type]
    jobs = {"A": job("A", temperature=0.5), "B": job("B", s2_position="first"), "C": job("C"), "F": other}
    assert not any(isinstance(result, KronosError) for _, result in run_jobs(jobs, sampler=sampler))
    assert [len(request["history"]) for request in sampler.calls] == [12, 6, 2]
    assert set(sampler.calls[0]["temperature"]) == {0.5, 1.0}


def test_one_that_fails_is_named_and_the_others_are_as_without_it() -> None:
    sampler = Failing()
    jobs = {name: job(name, -1.0 if name == "TSLA" else 1.0) for name in TICKERS}
    results = dict(run_jobs(jobs, sampler=sampler))
    assert str(results["TSLA"]) == "its weights are of no use"
    for name in ("AAPL", "MSFT", "XOM"):
        pd.testing.assert_frame_equal(
            unwrap(results[name]).predictions, run_job(job(name), RecordingSampler()).predictions
        )
    with pytest.raises(ModelError, match="of no use"):
        run_job(job("TSLA", -1.0), sampler)
    not_a_number = dict(run_jobs({"AAPL": job("AAPL", float("nan")), "XOM": job("XOM")}, sampler=RecordingSampler()))
    assert "forecasts of AAPL are not finite" in str(not_a_number["AAPL"])
    assert len(unwrap(not_a_number["XOM"]).predictions)


@pytest.mark.slow
def test_no_more_are_under_way_than_memory_is_for(monkeypatch: pytest.MonkeyPatch) -> None:
    open_now, counts = set(), []

    def counted_job(name: str) -> ForecastJob[str]:
        open_now.add(name)
        counts.append(len(open_now))
        yield from job(name)
        open_now.remove(name)
        return name

    names = [f"T{number}" for number in range(20)]
    assert dict(run_jobs({name: counted_job(name) for name in names}, sampler=RecordingSampler(), max_jobs=3)) == {
        name: name for name in names
    }
    assert max(counts) == 3
    counts.clear()
    monkeypatch.setattr(batching, "MAX_PENDING_BARS", 2 * 2 * 3 * 3 * 4)  # of two such evaluations
    sampler = RecordingSampler()
    assert len(dict(run_jobs({name: counted_job(name) for name in names}, sampler=sampler))) == 20
    assert max(counts) == 2
    assert len(sampler.calls) == 10


def test_side_by_side_asks_once_for_all_and_an_error_reaches_whoever_waits() -> None:
    sampler = RecordingSampler()
    results = run_job(gather_jobs({name: job(name) for name in TICKERS}), sampler)
    assert (list(results), len(sampler.calls)) == (list(TICKERS), 1)

    def catching_job() -> Generator[Any, Any, str]:
        try:
            return f"no error, but {(yield from job('AAPL', -1.0))}"
        except ModelError as error:
            return f"told: {error}"

    assert run_job(catching_job(), Failing()) == "told: its weights are of no use"


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_sampling_takes_the_format_that_is_asked_for_and_fp32_off_a_gpu(device: str) -> None:
    formats = [sampling_precision(name, device) for name in ("auto", "fp32", "bf16", "fp16")]
    assert formats == ["fp32", "fp32", "bf16", "fp32"]


@pytest.fixture(scope="module")
def trained(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recipe, dict[str, WindowSet]]:
    """Return an output folder with an adapter for each ticker, one of them damaged."""
    quick = {"epochs": 1, "evaluations_per_epoch": 1, "stride": 4, "learning_rate": 0.01, "tune_sampling": True}
    recipe = small_recipe(tiny_base, **quick)
    windows = {ticker.ticker: ticker for ticker in simulated_windows(recipe, (*TRAINED, "BAD"))}
    folder = tmp_path_factory.mktemp("trained")
    trainer = KronosTrainer(recipe, folder, base=base_of(recipe), say=lambda _: None)
    for ticker, windows_of_ticker in windows.items():
        trainer.train_adapter([windows_of_ticker], ticker)
    (folder / "adapters" / "BAD" / "adapter_model.safetensors").write_bytes(b"damaged")
    return folder, recipe, windows


def evaluate(folder: Path, trained: Any, tickers: Any, base: KronosModel) -> dict[str, HoldoutResult | KronosError]:
    """Evaluate in a new folder with the adapters of `trained`."""
    source, recipe, windows = trained
    layout = ArtifactLayout(folder)
    layout.root.mkdir()
    for ticker in tickers:
        layout.adapter(ticker).parent.mkdir(exist_ok=True)
        layout.adapter(ticker).symlink_to((source / "adapters" / ticker).resolve())
        for path in layout.adapter(ticker).glob("sampling/*"):
            path.unlink()
    return dict(
        evaluate_tickers(TrainedModels(layout, base), windows, dict.fromkeys(tickers), recipe, tickers_tested=2)
    )


@pytest.mark.slow
def test_a_tickers_numbers_do_not_depend_on_its_company_and_cost_three_calls(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, calls = base_of(trained[1]), []
    sample_paths = batching._sample_paths

    def counted(*arguments: Any, **settings: Any) -> np.ndarray:
        calls.append(len(arguments[0]))
        return sample_paths(*arguments, **settings)

    monkeypatch.setattr(batching, "_sample_paths", counted)
    results = evaluate(tmp_path / "all", trained, (*TRAINED, "BAD"), base)
    assert len(calls) == 3  # the grid of temperatures, the widths, the holdout: of all tickers and both models
    assert "adapter_model.safetensors" in str(results["BAD"])
    layout = ArtifactLayout(tmp_path / "all")
    assert not layout.ticker_metrics("BAD").exists()
    for ticker in TRAINED:
        joint, single = results[ticker], evaluate(tmp_path / ticker, trained, [ticker], base)[ticker]
        assert isinstance(joint, HoldoutResult)
        assert isinstance(single, HoldoutResult)
        assert set(joint.predictions["model"]) >= {"naive", "ewma", "base", "adapter"}
        pd.testing.assert_frame_equal(joint.predictions, single.predictions, rtol=1e-5, atol=1e-6)
        stored, manifest = read_parquet(layout.ticker_forecasts(ticker))
        pd.testing.assert_frame_equal(stored, joint.predictions)
        assert manifest["precision"] == "fp32"
        assert layout.plot(ticker).is_file()


@pytest.mark.slow
def test_a_checkpoint_that_serves_all_tickers_is_loaded_once(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kronos_pipeline.model import loading

    _, recipe, windows = trained
    base, loads = base_of(recipe), record_calls(monkeypatch, loading, "load_checkpoint")
    trained_windows = [windows[ticker] for ticker in TRAINED]
    KronosTrainer(recipe, tmp_path, base=base, say=lambda _: None).train_checkpoint(trained_windows)
    loads.clear()
    results = dict(
        evaluate_tickers(TrainedModels(ArtifactLayout(tmp_path), base), windows, dict.fromkeys(TRAINED), recipe)
    )
    assert all("checkpoint" in set(unwrap(result).predictions["model"]) for result in results.values())
    assert len(loads) == 1


def test_models_are_fitted_side_by_side_in_as_many_calls_as_one() -> None:
    recipe = RECIPE.model_copy(
        update={"lookback": 16, "validation_days": 20, "selection_days": 40, "tune_sampling": True}
    )
    (windows,) = simulated_windows(recipe)
    model: Any = type("Model", (float,), {"weights_hash": "hash"})
    sampler = RecordingSampler()
    fits = run_job(
        gather_jobs({number: fit_sampling_job(windows, model(number), recipe) for number in range(3)}), sampler
    )
    assert len(sampler.calls) == 2
    for number, fit in fits.items():
        assert fit == run_job(fit_sampling_job(windows, model(number), recipe), RecordingSampler())
