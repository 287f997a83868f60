"""Selection of the centre and the shape of a ticker's forecast, the reason, and the notes."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from registered_models import base_of, evidence, for_tickers, made_adapter, made_checkpoint
from small_trainings import simulated_bars, simulated_windows, small_recipe
from tiny_models import save_tiny_base

from kronos_pipeline.artifacts import MANIFEST, ArtifactLayout, read_json, write_json, write_manifest
from kronos_pipeline.config import Recipe
from kronos_pipeline.data.bars import Bars, make_bars
from kronos_pipeline.errors import ModelError
from kronos_pipeline.evaluation.forecasting.sampling import Sampling, plain_sampling, save_sampling
from kronos_pipeline.evaluation.predictions import LEVELS, VARIANTS, Variant
from kronos_pipeline.evaluation.scoring.targets import TARGETS, Target
from kronos_pipeline.model.loading import KronosModel
from kronos_pipeline.model.lora import load_trained
from kronos_pipeline.promotion.select_parts import Parts, select_parts
from kronos_pipeline.tracking.packaging import EvidenceTable
from kronos_pipeline.tracking.registry import Registry, registered_name
from kronos_pipeline.tracking.runs import Tracker
from kronos_pipeline.tracking.store import TrackingError

pytestmark = pytest.mark.slow

_numbers = count()


@pytest.fixture(scope="module")
def base(recipe: Recipe) -> KronosModel:
    return base_of(recipe)


@pytest.fixture(scope="module")
def make_adapter(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Path]:
    """Publish an adapter of a ticker, with weights by seed."""
    known: dict[int, Path] = {}

    def publish(ticker: str, seed: int) -> Path:
        if seed not in known:
            known[seed] = made_adapter(tmp_path_factory.mktemp("weights") / str(seed), recipe, seed=seed)
        return for_tickers(known[seed], tmp_path_factory.mktemp("adapter") / ticker, [ticker])

    return publish


@pytest.fixture(scope="module")
def registry(tracker: Tracker) -> Registry:
    return Registry(tracker)


@pytest.fixture
def ticker() -> str:
    """Return a symbol that no other test uses."""
    return f"C{next(_numbers)}"


@pytest.fixture
def layout(tmp_path: Path) -> ArtifactLayout:
    return ArtifactLayout(tmp_path / "out")


@pytest.fixture
def select(
    registry: Registry, layout: ArtifactLayout, ticker: str, base: KronosModel, recipe: Recipe
) -> Callable[..., Parts]:
    def choice(bars: Bars | None = None, days: float = 0, **changes: Any) -> Parts:
        """Select for some bars, as if so many days had passed."""
        settings = recipe.model_copy(update=changes)
        now = datetime.now(UTC) + timedelta(days=days)
        return select_parts(registry, layout, bars or simulated_bars(ticker), base, settings, now)

    return choice


@pytest.fixture
def make_champion(registry: Registry, run_id: str) -> Callable[..., int]:
    """Return a function that registers a folder and makes it champion."""

    def register(folder: Path, name: str, targets: Sequence[Target] = TARGETS) -> int:
        number = registry.register(folder, name, run_id, evidence=EvidenceTable(evidence({"naive": 1.0})), metrics={})
        registry.promote(name, number, "it was the best", targets)
        return number

    return register


def save_fitted_sampling(
    folder: Path, ticker: str, base: KronosModel, recipe: Recipe, variant: Variant = "sampled"
) -> Sampling:
    """Store a sampling beside a model's weights."""
    [windows] = simulated_windows(recipe, [ticker])
    model = load_trained(folder, base)
    widths = dict.fromkeys(LEVELS, (2.0,) * recipe.horizon)
    sampling = replace(
        plain_sampling(recipe),
        temperature=0.7,
        widths=dict.fromkeys(VARIANTS, widths),
        variants={"distribution": variant},
        weights_hash=model.weights_hash,
    )
    save_sampling(folder, windows, sampling, recipe)
    return sampling


def save_verdict(
    path: Path, ticker: str, base_name: str, mean: str, distribution: str = "no better", **crps: float
) -> None:
    """Write a report with verdicts on base, and the CRPS of volatility rivals."""
    verdicts = {
        "mean": {"base": {"naive": {"verdict": "better"}, "drift": {"verdict": mean}}},
        "distribution": {"base": {"ewma": {"verdict": "better"}, "har": {"verdict": distribution}}},
    }
    scores = {rival: {"scaled_crps": score} for rival, score in crps.items()}
    entry = {"symbol": ticker, "verdicts": verdicts, "models": scores}
    write_json(path, {"per_symbol": [entry], "manifest": {"base_model": {"name": base_name}}})


def test_the_tickers_champion_forecasts_as_it_was_fitted(
    select: Callable[..., Parts],
    make_champion: Callable[..., int],
    make_adapter: Callable[[str, int], Path],
    ticker: str,
    base: KronosModel,
    recipe: Recipe,
) -> None:
    first, second = make_adapter(ticker, 1), make_adapter(ticker, 2)
    make_champion(first, registered_name(ticker))
    sampling = save_fitted_sampling(second, ticker, base, recipe)
    make_champion(second, registered_name(ticker))

    choice = select()
    centre, shape = choice.models["centre"], choice.models["shape"]
    assert centre.model is shape.model, "loaded once"
    assert shape.model.weights_hash == load_trained(second, base).weights_hash
    assert shape.sampling == sampling
    assert choice.label == f"kronos-{ticker} version 2"
    assert choice.reason == (
        f"centre: kronos-{ticker} version 2 (champion of mean: it was the best); "
        f"shape: kronos-{ticker} version 2 (champion of distribution: it was the best)."
    )


def test_the_centre_and_the_shape_come_from_different_champions(
    select: Callable[..., Parts],
    make_champion: Callable[..., int],
    make_adapter: Callable[[str, int], Path],
    ticker: str,
    base: KronosModel,
) -> None:
    mean, distribution = make_adapter(ticker, 1), make_adapter(ticker, 2)
    make_champion(mean, registered_name(ticker), ["mean"])
    choice = select()
    assert choice.label == f"kronos-{ticker} version 1, spread of ewma"
    assert f"kronos-{ticker} has no champion of distribution" in choice.reason
    make_champion(distribution, registered_name("pair"), ["distribution", "volatility"])
    choice = select(adapter_name="pair")
    assert choice.label == f"kronos-{ticker} version 1, spread of kronos-pair version 1"
    assert choice.summary == (
        f"Centre: kronos-{ticker} version 1 (champion of mean); "
        "spread: kronos-pair version 1 (champion of distribution)."
    )
    assert choice.models["centre"].model.weights_hash == load_trained(mean, base).weights_hash
    assert choice.models["shape"].model.weights_hash == load_trained(distribution, base).weights_hash


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_champion_of_the_distribution_alone_is_served_as_it_was_judged(
    select: Callable[..., Parts],
    make_champion: Callable[..., int],
    make_adapter: Callable[[str, int], Path],
    ticker: str,
    base: KronosModel,
    recipe: Recipe,
    variant: Variant,
) -> None:
    folder = make_adapter(ticker, 1)
    save_fitted_sampling(folder, ticker, base, recipe, variant)
    make_champion(folder, registered_name(ticker), ["distribution"])
    choice = select()
    assert "\n" not in choice.reason
    if variant == "sampled":
        assert choice.models["centre"] is choice.models["shape"]
        assert choice.label == f"kronos-{ticker} version 1"
        assert choice.summary == f"By kronos-{ticker} version 1 (champion of distribution; its paths as sampled)."
        assert f"kronos-{ticker} has no champion of mean" in choice.reason
    else:
        assert choice.centre.source is None
        assert choice.label == f"last close, spread of kronos-{ticker} version 1"
        assert choice.reason.startswith(f"centre: last close (kronos-{ticker} has no champion of mean; ")


def test_the_checkpoints_champion_serves_the_tickers_that_it_was_trained_on_and_no_other(
    select: Callable[..., Parts],
    make_champion: Callable[..., int],
    make_adapter: Callable[[str, int], Path],
    ticker: str,
    recipe: Recipe,
    tmp_path: Path,
) -> None:
    checkpoint = made_checkpoint(tmp_path / "checkpoint", recipe)
    make_champion(for_tickers(checkpoint, tmp_path / "other", ["SOMEBODY"]), registered_name(None))
    choice = select()
    assert choice.models == {}
    assert "the champion of mean, kronos-all version 1, was not trained on" in choice.reason

    make_champion(for_tickers(checkpoint, tmp_path / "both", ["SOMEBODY", ticker]), registered_name(None))
    assert select().label == "kronos-all version 2"
    make_champion(make_adapter(ticker, 1), registered_name("group"))
    assert select().label == "kronos-all version 2"
    assert select(adapter_name="group").label == "kronos-group version 1"
    make_champion(make_adapter(ticker, 1), registered_name(ticker))
    assert select(adapter_name="group").label == f"kronos-{ticker} version 1"


def test_a_refit_of_the_champion_forecasts_as_it_is_sampled_itself_and_is_labelled(
    select: Callable[..., Parts],
    make_champion: Callable[..., int],
    make_adapter: Callable[[str, int], Path],
    registry: Registry,
    run_id: str,
    ticker: str,
    base: KronosModel,
    recipe: Recipe,
) -> None:
    name, measured, refit = registered_name(ticker), make_adapter(ticker, 1), make_adapter(ticker, 2)
    save_fitted_sampling(measured, ticker, base, recipe)
    sampling = save_fitted_sampling(refit, ticker, base, recipe)
    number = make_champion(measured, name)
    registry.register_refit(refit, name, run_id, refit_of=number)

    choice = select()
    shape = choice.models["shape"]
    assert shape.model.weights_hash == load_trained(refit, base).weights_hash
    assert shape.sampling == sampling
    assert choice.label == f"kronos-{ticker} version 2, a refit of version 1, not itself measured"
    assert choice.notes[0] == "not itself measured"
    assert "version 1 is champion of mean: it was the best" in choice.reason

    make_champion(make_adapter(ticker, 3), name)
    assert select().label == f"kronos-{ticker} version 3", "the refit is not one of the new champion"
    MlflowClient(registry.uri).set_registered_model_alias(name, "champion", "2")
    assert select().notes[0] == "not itself measured", "whoever made it champion"


@pytest.mark.parametrize("source", ["backtest of the adapter", "backtest of the checkpoint", "holdout"])
def test_without_a_champion_the_base_model_forecasts_where_it_was_better_than_naive(
    select: Callable[..., Parts],
    layout: ArtifactLayout,
    ticker: str,
    base: KronosModel,
    recipe: Recipe,
    source: str,
) -> None:
    path = {
        "backtest of the adapter": layout.backtest_report("adapter", ticker),
        "backtest of the checkpoint": layout.backtest_report("checkpoint", ticker),
        "holdout": layout.ticker_metrics(ticker),
    }[source]
    [windows] = simulated_windows(recipe, [ticker])
    variants: dict[Target, Variant] = {"distribution": "recentred"}
    sampling = replace(plain_sampling(recipe), variants=variants, weights_hash=base.weights_hash)
    save_sampling(layout.base, windows, sampling, recipe)
    save_verdict(path, ticker, base.source.name, "better")

    choice = select()
    assert choice.models["centre"].model is base
    assert choice.models["centre"].sampling == sampling
    assert choice.label == f"base {base.source.label}, spread of ewma"
    assert f"kronos-{ticker} has no champion of mean" in choice.reason
    assert "base against naive, drift: better" in choice.reason
    assert "base against har: no better" in choice.reason

    save_verdict(path, ticker, base.source.name, "no better", "better")
    choice = select()
    assert choice.label == f"last close, spread of base {base.source.label}"
    assert choice.models["shape"].model is base


def test_without_a_champion_the_best_rival_of_the_last_evaluation_gives_the_shape(
    select: Callable[..., Parts], layout: ArtifactLayout, ticker: str, base: KronosModel
) -> None:
    assert select().label == "last close, spread of ewma"
    name = base.source.name
    save_verdict(layout.ticker_metrics(ticker), ticker, name, "no better", ewma=1.0, garch=0.9, gjr_garch=0.95)
    choice = select()
    assert choice.label == "last close, spread of garch"
    assert choice.reason.endswith("the best rival of the last evaluation).")
    save_verdict(layout.backtest_report("adapter", ticker), ticker, name, "no better", ewma=1.0, har=0.8)
    assert select().label == "last close, spread of har", "a backtest has more cutoffs"


def test_a_backtests_verdict_counts_before_the_holdouts(
    select: Callable[..., Parts], layout: ArtifactLayout, ticker: str, base: KronosModel
) -> None:
    save_verdict(layout.ticker_metrics(ticker), ticker, base.source.name, "better")
    save_verdict(layout.backtest_report("adapter", ticker), ticker, base.source.name, "no better")
    assert select().centre.source is None


@pytest.mark.parametrize("word", ["no better", "worse", "too little evidence"])
def test_otherwise_the_last_close_is_repeated_and_the_reason_says_why(
    select: Callable[..., Parts], layout: ArtifactLayout, ticker: str, base: KronosModel, word: str
) -> None:
    save_verdict(layout.ticker_metrics(ticker), ticker, base.source.name, word)
    choice = select()
    assert (choice.models, choice.label, choice.notes) == ({}, "last close, spread of ewma", ())
    assert f"centre: last close (kronos-{ticker} has no champion of mean; " in choice.reason
    assert f"base against drift: {word})" in choice.reason


def test_a_verdict_on_another_base_model_or_ticker_counts_for_nothing(
    select: Callable[..., Parts], layout: ArtifactLayout, ticker: str, base: KronosModel
) -> None:
    assert "base not evaluated" in select().reason
    save_verdict(layout.ticker_metrics(ticker), ticker, "another", "better")
    assert select().centre.source is None
    save_verdict(layout.ticker_metrics(ticker), "OTHER", base.source.name, "better")
    assert select().centre.source is None


def test_a_champion_of_another_base_model_is_an_error_that_names_both_and_no_silent_fallback(
    select: Callable[..., Parts], make_champion: Callable[..., int], ticker: str, tmp_path: Path
) -> None:
    other = small_recipe(save_tiny_base(tmp_path / "other", seed=5))
    make_champion(made_adapter(tmp_path / "adapter", other, [ticker]), registered_name(ticker))
    with pytest.raises(ModelError, match=f"The champion kronos-{ticker} version 1 cannot forecast.*other"):
        select()


def test_a_champion_whose_files_are_gone_or_damaged_is_an_error(
    select: Callable[..., Parts],
    make_champion: Callable[..., int],
    make_adapter: Callable[[str, int], Path],
    tracker: Tracker,
    ticker: str,
) -> None:
    make_champion(make_adapter(ticker, 1), registered_name(ticker))
    uri = MlflowClient(tracker.uri).get_model_version_download_uri(registered_name(ticker), "1")
    folder = Path(uri.removeprefix("file://"))
    (folder / "artifacts/model/adapter_model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ModelError, match=f"The champion kronos-{ticker} version 1 cannot forecast.*damaged"):
        select()
    shutil.rmtree(folder)
    with pytest.raises(TrackingError, match=f"The files of kronos-{ticker} version 1 cannot be fetched"):
        select()


def test_a_champion_that_is_too_old_forecasts_with_a_warning_and_strictly_not_at_all(
    select: Callable[..., Parts],
    make_champion: Callable[[Path, str], int],
    make_adapter: Callable[[str, int], Path],
    ticker: str,
) -> None:
    make_champion(make_adapter(ticker, 3), registered_name(ticker))
    warning = f"kronos-{ticker} version 1 was promoted 31 days ago, and expires after 30"
    assert warning not in select(days=30.5).notes
    assert warning not in select(days=31.5, expires_days=0).notes
    old = select(days=31.5)
    assert set(old.models) == {"centre", "shape"}
    assert warning in old.notes
    strict = select(days=31.5, strict_champion=True)
    assert strict.models == {}
    assert f"the champion does not forecast by --strict-champion: {warning}" in strict.reason
    assert select(days=30.5, strict_champion=True).models


def test_a_champion_whose_inputs_are_unlike_its_trainings_forecasts_with_a_warning_and_strictly_not_at_all(
    select: Callable[..., Parts],
    make_champion: Callable[[Path, str], int],
    make_adapter: Callable[[str, int], Path],
    ticker: str,
) -> None:
    bars = simulated_bars(ticker)
    folder = make_adapter(ticker, 3)
    seen_until = {ticker: bars.frame["timestamps"].iloc[100].isoformat()}
    write_manifest(folder, {**read_json(folder / MANIFEST), "seen_until": seen_until})
    make_champion(folder, registered_name(ticker))
    assert not any("lookback" in note for note in select(bars).notes)
    frame = bars.frame.copy()
    frame.loc[frame.index[-1:], ["open", "high", "low", "close"]] *= 3
    odd = make_bars(ticker, frame, source=bars.source)
    warned = select(odd)
    assert set(warned.models) == {"centre", "shape"}
    assert warned.notes[-1].startswith(f"kronos-{ticker} version 1: the newest lookback lies outside the 86 lookbacks")
    strict = select(odd, strict_champion=True)
    assert strict.models == {}
    assert "the newest lookback lies outside" in strict.reason


def test_a_registry_that_cannot_be_reached_is_an_error_and_no_naive_forecast(
    layout: ArtifactLayout, base: KronosModel, recipe: Recipe, tmp_path: Path
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        unreachable = Tracker(f"http://127.0.0.1:{unused.getsockname()[1]}", tmp_path)
    with pytest.raises(TrackingError, match="cannot be used"):
        select_parts(Registry(unreachable), layout, simulated_bars(), base, recipe, datetime.now(UTC))
