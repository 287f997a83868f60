"""The public names: the examples in their docstrings, and the sentences after a wrong first guess."""

from __future__ import annotations

import doctest
from pathlib import Path
from typing import Any

import pytest

import kronos_pipeline
from kronos_pipeline import KronosTrainer, KronosTrainingConfig, evaluate
from kronos_pipeline.config import Recipe
from kronos_pipeline.errors import ArtifactError, SettingsError

ROOT = Path(__file__).resolve().parents[2]
IN_ORDER = [
    "KronosTrainingConfig",
    "KronosMultiTickerDataset",
    "KronosPredictor",
    "KronosTrainer",
    "evaluate",
    "forecast",
]
"""The adapter of the trainer's example is evaluated and forecasts in the next examples."""


@pytest.mark.slow
def test_the_examples_of_the_public_names_train_evaluate_and_forecast(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "trainingdata").symlink_to(ROOT / "trainingdata")
    monkeypatch.chdir(tmp_path)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    for name in IN_ORDER:
        examples = doctest.DocTestFinder(recurse=False).find(getattr(kronos_pipeline, name), name, globs={})
        assert sum(len(test.examples) for test in examples) > 1, f"{name} has no example"
        for test in examples:
            runner.run(test)
    assert runner.summarize(verbose=False).failed == 0


def test_each_public_name_has_a_tested_example() -> None:
    assert {*IN_ORDER, "run_pipeline"} == set(kronos_pipeline.__all__)
    assert set(kronos_pipeline.__all__) <= set(dir(kronos_pipeline))


def test_an_argument_overrides_the_environment_which_overrides_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert KronosTrainingConfig().model_name == "NeoQuasar/Kronos-small"
    monkeypatch.setenv("KRONOS_BASE_MODEL", "kronos-nano")
    monkeypatch.setenv("KRONOS_OUTPUT_DIR", "elsewhere")
    monkeypatch.setenv("KRONOS_COLUMNS", "close=Fixing,volume=Turnover")
    config = KronosTrainingConfig(output_dir="here")
    assert (config.model_name, config.output_dir) == ("kronos-nano", "here")
    assert config.columns == ["close=Fixing", "volume=Turnover"]
    assert config.recipe.model_name == "kronos-nano"


def test_folders_may_be_paths(tmp_path: Path) -> None:
    config = KronosTrainingConfig(data_dir=tmp_path, output_dir=tmp_path / "out", model_name=tmp_path)
    assert (config.data_dir, config.output_dir) == (str(tmp_path), str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"model": "kronos-nano"}, "there is no setting model; did you mean model_name?"),
        ({"epoch": 1}, "there is no setting epoch; did you mean epochs?"),
        ({"look_back": 64}, "there is no setting look_back; did you mean lookback?"),
        ({"colour": 1}, "there is no setting colour"),
    ],
)
def test_a_mistyped_setting_names_the_nearest_one(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match="there is no setting") as raised:
        KronosTrainingConfig(**settings)
    assert sentence in str(raised.value)


def test_a_trainer_without_a_folder_says_what_it_needs() -> None:
    with pytest.raises(SettingsError, match="give a KronosTrainingConfig"):
        KronosTrainer(Recipe(device="cpu"))


def test_train_without_jobs_needs_a_config(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="train\\(\\) needs jobs, or a KronosTrainer made with a KronosTraining"):
        KronosTrainer(Recipe(device="cpu"), tmp_path).train()


@pytest.mark.parametrize(
    ("name", "place"),
    [("fit", r"\.train\(\) trains"), ("evaluate", r"evaluate\(config\) scores"), ("predict", r"forecast\(df, adapter")],
)
def test_what_the_trainer_does_not_do_is_named_with_its_place(name: str, place: str, tmp_path: Path) -> None:
    trainer = KronosTrainer(KronosTrainingConfig(output_dir=str(tmp_path), device="cpu"))
    with pytest.raises(AttributeError, match=f"no '{name}': .*{place}"):
        getattr(trainer, name)
    with pytest.raises(AttributeError, match=r"KronosTrainer\(config\)\.train\(\) trains"):
        kronos_pipeline.train  # noqa: B018


def test_an_evaluation_before_the_training_says_how_to_train(tmp_path: Path) -> None:
    config = KronosTrainingConfig(
        data_dir=str(ROOT / "trainingdata" / "AAPL"), output_dir=str(tmp_path), model_name="kronos-nano", stride=64
    )
    with pytest.raises(ArtifactError, match=r"AAPL: there is no checkpoint at .*; train it: KronosTrainer\(config\)"):
        evaluate(config)
    assert not (tmp_path / "metrics").exists()
