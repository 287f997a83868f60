"""Submission to the gate: the choice of the evidence, and the records of the decision."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest
from mlflow import MlflowClient
from registered_models import base_of, evidence, made_adapter, manifest_of, save_holdout
from small_trainings import simulated_bars, small_recipe

from kronos_pipeline.artifacts import MANIFEST, ArtifactLayout, read_json, write_manifest, write_parquet
from kronos_pipeline.config import Recipe
from kronos_pipeline.data.windows import build_windows
from kronos_pipeline.errors import ArtifactError
from kronos_pipeline.evaluation.forecasting.candidates import TrainedModels, doubts, load_candidates
from kronos_pipeline.evaluation.scoring.gate import Decision
from kronos_pipeline.evaluation.scoring.targets import TARGETS, Target
from kronos_pipeline.promotion.submit import Submission, TrainedModel, decision_lines, find_evidence, submit
from kronos_pipeline.tracking.packaging import EvidenceTable
from kronos_pipeline.tracking.recipes_tried import Tried
from kronos_pipeline.tracking.registry import Registry
from kronos_pipeline.tracking.runs import Tracker
from kronos_pipeline.tracking.version_page import beaten_rivals

pytestmark = pytest.mark.slow

GOOD = {"naive": 2.0, "base": 2.0, "adapter": 1.0}
BAD = {"naive": 1.0, "base": 1.0, "adapter": 2.0}


@pytest.fixture
def layout(tmp_path: Path) -> ArtifactLayout:
    return ArtifactLayout(tmp_path / "out")


@pytest.fixture
def recipe(tiny_base: Path) -> Recipe:
    return small_recipe(tiny_base, adapter="lora")


def save_backtest(layout: ArtifactLayout, table: pd.DataFrame, recipe: Recipe, **changes: object) -> None:
    write_parquet(layout.backtest("adapter", "AAPL"), table, manifest_of(layout, recipe, **changes))  # type: ignore[arg-type]


def test_a_backtest_counts_where_it_is_of_this_training_and_these_bars(layout: ArtifactLayout, recipe: Recipe) -> None:
    folder = made_adapter(layout.adapter("AAPL"), recipe)
    save_holdout(layout, evidence(BAD, cutoffs=1), recipe)

    def source() -> str:
        return find_evidence(layout, "adapter", ["AAPL"], folder).source

    assert source() == "holdout"
    # Settings that the backtest itself changes, and settings that shape no forecast, make no other recipe.
    backtest_recipe = recipe.model_copy(
        update={"validation_bars": 5, "max_cutoffs": 1, "backtest_origins": 0, "gate": "lenient"}
    )
    save_backtest(layout, evidence(GOOD), backtest_recipe)
    assert source() == "backtest"
    for other in (
        {"of": backtest_recipe.model_copy(update={"learning_rate": 0.5})},
        {"of": backtest_recipe.model_copy(update={"tune_sampling": True})},
        {"data": "other bars"},
        {"base": "another base model's weights"},
        {"group": {"AAPL": ["AAPL", "MSFT"]}},
    ):
        save_backtest(layout, evidence(GOOD), other.pop("of", backtest_recipe), **other)  # type: ignore[arg-type]
        assert source() == "holdout (the backtest is of other settings, tickers or bars)", other


def test_holdout_metrics_of_other_weights_are_no_evidence(layout: ArtifactLayout, recipe: Recipe) -> None:
    folder = made_adapter(layout.adapter("AAPL"), recipe)
    save_holdout(layout, evidence(GOOD), recipe)
    shutil.rmtree(folder)
    made_adapter(folder, recipe, seed=2)
    with pytest.raises(ArtifactError, match="The holdout metrics of AAPL are not of the adapter in"):
        find_evidence(layout, "adapter", ["AAPL"], folder)


@pytest.fixture
def registry_and_run(layout: ArtifactLayout, recipe: Recipe, clean_mlflow_store: str) -> tuple[Registry, str]:
    """Return a registry and the MLflow run of a trained adapter."""
    made_adapter(layout.adapter("AAPL"), recipe)
    tracker = Tracker(clean_mlflow_store, layout.root)
    with tracker.training_run("adapter AAPL", recipe) as run:
        pass
    return Registry(tracker), run.run_id


def test_one_training_is_one_version_however_often_it_stands_before_the_gate(
    layout: ArtifactLayout, recipe: Recipe, registry_and_run: tuple[Registry, str]
) -> None:
    registry, run = registry_and_run

    def submit_adapter() -> Submission:
        return submit(registry, layout, TrainedModel("AAPL", ["AAPL"], run), recipe, tickers_tested=1)

    save_holdout(layout, evidence(GOOD), recipe)
    first, repeated = submit_adapter(), submit_adapter()
    assert (first.version, repeated.version) == (1, 1)
    assert first.promoted
    assert len(registry.versions("kronos-AAPL")) == 1
    champion = registry.champion("kronos-AAPL")
    assert champion is not None
    assert champion.number == 1
    # Other evidence is another measurement; if it says worse, the champion before stays.
    save_holdout(layout, evidence(BAD, seed=1), recipe)
    worse = submit_adapter()
    assert (worse.version, worse.promoted) == (2, ())
    champion = registry.champion("kronos-AAPL")
    assert champion is not None
    assert champion.number == 1


def test_a_doubt_of_another_model_is_none_of_this_one(
    layout: ArtifactLayout, recipe: Recipe, registry_and_run: tuple[Registry, str]
) -> None:
    registry, run = registry_and_run
    save_holdout(layout, evidence(GOOD), recipe, doubts={"AAPL": {"checkpoint": "it knows later bars"}})
    assert submit(registry, layout, TrainedModel("AAPL", ["AAPL"], run), recipe, tickers_tested=1).promoted


def test_a_persons_word_stands_against_the_gate_and_the_same_evidence(
    layout: ArtifactLayout, recipe: Recipe, registry_and_run: tuple[Registry, str]
) -> None:
    registry, run = registry_and_run

    def submit_adapter(run_id: str = run) -> Submission:
        return submit(registry, layout, TrainedModel("AAPL", ["AAPL"], run_id), recipe, tickers_tested=1)

    save_holdout(layout, evidence(BAD), recipe)
    assert not submit_adapter().promoted
    registry.promote("kronos-AAPL", 1, "I know better")
    submit_adapter()
    champion = registry.champion("kronos-AAPL")
    assert champion is not None
    assert [champion.decision(key, "mean") for key in ("decided_by", "reason")] == ["person", "I know better"]

    save_holdout(layout, evidence(GOOD), recipe)
    assert submit_adapter().promoted
    registry.rollback("kronos-AAPL", "it went wrong")
    repeated = submit_adapter()
    assert not repeated.promoted
    assert "version 2, with the same evidence, was rolled back: it went wrong" in repeated.sentence()
    champion = registry.champion("kronos-AAPL")
    assert champion is not None
    assert champion.number == 1


def test_a_model_that_knows_other_tickers_later_bars_is_no_champion(
    layout: ArtifactLayout, recipe: Recipe, registry_and_run: tuple[Registry, str]
) -> None:
    registry, run = registry_and_run
    save_holdout(layout, evidence(GOOD), recipe, doubts={"AAPL": {"adapter": "it was trained on later bars of MSFT"}})
    submission = submit(registry, layout, TrainedModel("AAPL", ["AAPL"], run), recipe, tickers_tested=1)
    assert not submission.promoted
    assert "it was trained on later bars of MSFT" in submission.sentence()
    assert registry.champion("kronos-AAPL") is None
    assert "later bars of MSFT" in registry.versions("kronos-AAPL")[0].tags["contamination"]


def test_a_candidate_over_several_tickers_is_doubted_where_its_others_go_on_longer(
    tmp_path: Path, recipe: Recipe
) -> None:

    layout = ArtifactLayout(tmp_path)
    folder = made_adapter(layout.adapter("pair"), recipe, ["AAPL", "MSFT"])
    windows = build_windows(simulated_bars("AAPL", 130), recipe)
    for until, doubted in (("2020-01-01T00:00:00", False), ("2031-01-01T00:00:00", True)):
        manifest = read_json(folder / MANIFEST)
        write_manifest(folder, {**manifest, "seen_until": {"AAPL": None, "MSFT": until}})
        candidates, _ = load_candidates(TrainedModels(layout, base_of(recipe)), windows, "pair")
        reasons = doubts("AAPL", candidates)["doubts"]
        assert bool(reasons) == doubted
        if doubted:
            assert "bars of MSFT up to 2031-01-01, later than this holdout's first" in reasons["AAPL"]["adapter"]


ALL_RIVALS = {"naive": 2.0, "ewma": 2.0, "base": 2.0}


def test_each_target_is_decided_by_itself_and_the_line_says_what_the_model_is_good_for(
    layout: ArtifactLayout, recipe: Recipe, registry_and_run: tuple[Registry, str]
) -> None:
    registry, run = registry_and_run
    table = evidence({**ALL_RIVALS, "adapter": 1.0})
    by_mean = table["mean"].where(table["model"] != "adapter", table["last"] + 5)  # the mean path is worse
    save_holdout(layout, table.assign(mean=by_mean), recipe)
    submission = submit(registry, layout, TrainedModel("AAPL", ["AAPL"], run), recipe, tickers_tested=1)
    assert submission.promoted == ("distribution", "volatility")
    line = submission.sentence()
    assert line.startswith(
        "kronos-AAPL version 1, by its holdout: champion of distribution and volatility; mean: worse"
    )
    assert "; mean: worse than base, skill -" in line
    assert "; the 1st recipe tried on these cutoffs; as served: distribution skill " in line
    assert "\n" not in line
    version = registry.version("kronos-AAPL", 1)
    assert version.aliases == ("challenger", "champion", "champion-distribution", "champion-volatility")
    assert [version.tags[f"promoted.{target}"] for target in TARGETS] == ["no", "yes", "yes"]
    assert version.tags["verdict.mean"].startswith("worse than naive")
    assert {"ewma", "base"} == set(beaten_rivals(version, "distribution")) == set(beaten_rivals(version, "volatility"))


def test_the_variant_that_was_chosen_stands_for_the_model_and_for_the_champion_after_it(
    layout: ArtifactLayout, recipe: Recipe, registry_and_run: tuple[Registry, str]
) -> None:
    registry, run = registry_and_run
    sampling = {"AAPL": {"adapter": {"variants": {"distribution": "recentred"}}}}

    def submit_losses(sampled: float, recentred: float, run_id: str = run) -> Submission:
        table = evidence({**ALL_RIVALS, "adapter": sampled, "adapter_recentred": recentred}, seed=int(10 * recentred))
        save_holdout(layout, table, recipe, sampling=sampling)
        return submit(registry, layout, TrainedModel("AAPL", ["AAPL"], run_id), recipe, tickers_tested=1)

    first = submit_losses(3.0, 1.0)
    assert first.promoted == ("distribution",)
    assert first.served is not None
    assert str(first.served) in first.sentence()
    assert registry.version("kronos-AAPL", 1).tags["as_served"] == str(first.served)
    second = submit_losses(0.1, 1.5)
    assert "distribution" not in second.promoted, "worse than the champion's own variant"
    assert second.decisions["distribution"].comparisons["champion"].verdict == "worse"
    assert "mean" in second.promoted
    assert second.served is not None, "the shape of the champion before it around the new centre"
    assert second.served.mean.skill == pytest.approx(second.decisions["mean"].comparisons["naive"].skill, abs=0.01)


def test_recipes_are_counted_by_the_settings_that_shape_the_forecast(
    layout: ArtifactLayout, recipe: Recipe, registry_and_run: tuple[Registry, str]
) -> None:
    registry, run = registry_and_run
    save_holdout(layout, evidence(GOOD), recipe)

    def try_recipe(**changes: object) -> str:
        folder = layout.adapter("AAPL")
        manifest = read_json(folder / MANIFEST)
        config = recipe.model_copy(update=changes).model_dump(mode="json")
        write_manifest(folder, {**manifest, "config": config})
        return str(submit(registry, layout, TrainedModel("AAPL", ["AAPL"], run), recipe, tickers_tested=1).tried)

    assert try_recipe() == "the 1st recipe tried on these cutoffs"
    assert try_recipe(learning_rate=0.5) == "the 2nd recipe tried on these cutoffs"
    assert try_recipe(seed=77) == "the 3rd recipe tried on these cutoffs", "a seed is a trial, too"
    assert try_recipe(device="cpu", gate="lenient") == "the 1st of 3 recipes tried on these cutoffs"
    assert registry.versions("kronos-AAPL")[0].tags["recipes_tried"] == "the 1st recipe tried on these cutoffs"


def test_a_champion_of_an_old_registry_is_compared_on_what_its_evidence_has(
    layout: ArtifactLayout, recipe: Recipe, registry_and_run: tuple[Registry, str]
) -> None:
    registry, run = registry_and_run
    later = ["squared_return", "range_variance", "variance", "p_up"]
    old = evidence({**ALL_RIVALS, "adapter": 0.5})
    folder = layout.adapter("AAPL")
    number = registry.register(folder, "kronos-AAPL", run, evidence=EvidenceTable(old), metrics={})
    location = MlflowClient(registry.uri).get_model_version_download_uri("kronos-AAPL", str(number))
    write_parquet(Path(location.removeprefix("file://")) / "evidence.parquet", old.drop(columns=later), {})
    registry.promote("kronos-AAPL", number, "the best that I had")
    save_holdout(layout, evidence({**ALL_RIVALS, "adapter": 1.0}), recipe)
    submission = submit(registry, layout, TrainedModel("AAPL", ["AAPL"], run), recipe, tickers_tested=1)
    assert submission.promoted == ("volatility",)
    assert submission.decisions["mean"].obstacle.startswith("worse than champion")


def submission(name: str, promoted: tuple[Target, ...] = (), obstacle: str = "too little evidence") -> Submission:
    decisions = {
        target: Decision(target in promoted, "a reason", "strict", {}, "" if target in promoted else obstacle)
        for target in TARGETS
    }
    return Submission(f"kronos-{name}", 1, "backtest", decisions, Tried(1, 1))


def test_decisions_have_a_line_per_promotion_and_a_line_for_all_with_the_same_reasons() -> None:
    submissions = [
        submission("AAPL"),
        submission("AMD", promoted=("volatility",)),
        submission("GOOG"),
        submission("JPM", obstacle="worse than naive"),
    ]
    lines = decision_lines(submissions)
    assert len(lines) == 3
    assert lines[0].startswith("kronos-AMD version 1, by its backtest: champion of volatility")
    assert lines[1].startswith("kronos-AAPL, kronos-GOOG, each by its backtest: not promoted; ")
    assert lines[1].endswith("mean, distribution and volatility: too little evidence")
    assert lines[2].startswith("kronos-JPM version 1, by its backtest: not promoted; ")
