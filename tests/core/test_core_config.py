from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from kronos_pipeline.config import KronosTrainingConfig, Recipe, Role, environment_settings, settings_of
from kronos_pipeline.errors import ModelError, SettingsError
from kronos_pipeline.names import NAME
from kronos_pipeline.training.checkpoint import training_settings

FIELDS = KronosTrainingConfig.model_fields
NUMBERS = [name for name, field in FIELDS.items() if type(field.default) in (int, float)]


def test_defaults_are_those_that_are_documented() -> None:
    config = KronosTrainingConfig()
    assert (config.data_dir, config.output_dir) == ("trainingdata", "artifacts")
    assert config.model_name == "NeoQuasar/Kronos-small"
    assert (config.validation_days, config.selection_days, config.adapter) == (30, 60, "none")


@pytest.mark.parametrize("name", FIELDS)
def test_each_setting_says_what_it_is(name: str) -> None:
    description = FIELDS[name].description
    assert description is not None
    assert len(description.split()) >= 2


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("lookback", "bars"),
        ("horizon", "bars"),
        ("validation_days", "trading days"),
        ("selection_days", "trading days"),
        ("validation_bars", "bars"),
        ("selection_bars", "bars"),
        ("stride", "bars"),
        ("max_gap", "bar intervals"),
        ("max_cutoffs", "cutoffs per ticker"),
        ("epochs", "passes over the training windows"),
        ("batch_size", "windows per optimiser step"),
        ("save_steps", "optimiser steps"),
        ("eval_samples", "paths"),
    ],
)
def test_each_length_and_count_says_of_what(name: str, unit: str) -> None:
    assert unit in (FIELDS[name].description or "")


@pytest.mark.parametrize("name", NUMBERS)
def test_each_number_has_a_lower_bound(name: str) -> None:
    with pytest.raises(ValidationError) as caught:
        KronosTrainingConfig(**{name: -1})
    assert [error["loc"] for error in caught.value.errors()] == [(name,)]


@pytest.mark.parametrize("name", ["learning_rate", "weight_decay", "adapter_alpha", "temperature", "max_grad_norm"])
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_infinity_and_nan_are_no_settings(name: str, value: float) -> None:
    with pytest.raises(ValidationError):
        KronosTrainingConfig(**{name: value})


@pytest.mark.parametrize(
    "settings",
    [
        {"horizon": 0},
        {"lookback": 1},
        {"validation_bars": 0},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"adapter_dropout": 1.0},
        {"adapter_targets": []},
        {"seed": 2**32},
        {"precision": "int8"},
        {"adapter": "dora"},
        {"device": "gpu"},
        {"device": "cuda:x"},
        {"data_dir": ""},
        {"output_dir": ""},
        {"model_name": ""},
        {"rivals": ["arima"]},
        {"rivals": ["lightgbm=here"]},
        {"rivals": ["chronos", "chronos=here"]},
    ],
    ids=str,
)
def test_what_cannot_work_is_refused_under_its_name(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        KronosTrainingConfig(**settings)
    assert [error["loc"][0] for error in caught.value.errors()] == list(settings)


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:1", "mps"])
def test_known_devices_are_taken(device: str) -> None:
    assert Recipe(device=device).device == device


@pytest.mark.parametrize("name", ["AAPL", "BRK.B", "^GSPC", "EURUSD=X", "my_adapter-2", "a" * 64])
def test_symbols_and_adapter_names_as_people_have_them_are_taken(name: str) -> None:
    assert KronosTrainingConfig(adapter="lora", adapter_name=name).adapter_name == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "a/b", "../../x", "a\\b", "a b", "AAPL\n", "ünicode", "a" * 65, "-AAPL"]
)
def test_names_that_could_leave_their_folder_are_refused(name: str) -> None:
    assert not NAME.fullmatch(name)
    with pytest.raises(ValidationError, match="without a leading dot or dash"):
        KronosTrainingConfig(adapter="lora", adapter_name=name)


@pytest.mark.parametrize("settings", [{"adapter_name": "all"}, {"freeze_backbone": False}], ids=str)
def test_adapter_settings_without_an_adapter_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="need --adapter lora"):
        KronosTrainingConfig(**settings)
    assert KronosTrainingConfig(adapter="lora", **settings).adapter == "lora"


def test_the_environment_gives_only_what_is_set_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("KRONOS_DATA_DIR", "KRONOS_OUTPUT_DIR", "KRONOS_BASE_MODEL", "KRONOS_DEVICE"):
        monkeypatch.delenv(variable, raising=False)
    assert environment_settings() == {}
    monkeypatch.setenv("KRONOS_DATA_DIR", "bars")
    monkeypatch.setenv("KRONOS_DEVICE", "cpu")
    monkeypatch.setenv("KRONOS_BASE_MODEL", "")
    assert environment_settings() == {"data_dir": "bars", "device": "cpu"}
    monkeypatch.setenv("KRONOS_OUTPUT_DIR", "out")
    monkeypatch.setenv("KRONOS_BASE_MODEL", "kronos-nano")
    settings = environment_settings()
    assert settings == {"data_dir": "bars", "device": "cpu", "output_dir": "out", "model_name": "kronos-nano"}
    assert KronosTrainingConfig(**settings).model_name == "kronos-nano"


def test_the_recipe_is_the_settings_without_the_folders_and_what_holds_for_one_reading() -> None:
    config = KronosTrainingConfig(data_dir="here", output_dir="there", horizon=7, adapter="lora", adapter_name="all")
    recipe = config.recipe
    assert type(recipe) is Recipe
    assert recipe.model_dump() == config.model_dump(exclude={"data_dir", "output_dir", "accept_history"})
    assert (recipe.horizon, recipe.adapter_name) == (7, "all")


@pytest.fixture
def model_with_context_40(tmp_path: Path) -> str:
    (tmp_path / "manifest.json").write_text('{"context": 40}')
    return str(tmp_path)


@pytest.mark.parametrize(
    ("lookback", "horizon", "used"),
    [(29, 10, 29), (30, 10, 29), (40, 10, 29), (40, 37, 2), (2, 1, 2)],
)
def test_what_does_not_fit_the_context_is_cut_from_the_lookback(
    lookback: int, horizon: int, used: int, model_with_context_40: str
) -> None:
    assert Recipe(model_name=model_with_context_40, lookback=lookback, horizon=horizon).used_lookback == used


def test_a_lookback_above_the_context_is_refused(model_with_context_40: str) -> None:
    with pytest.raises(SettingsError, match=r"--lookback 41 is above the context of .*, 40 bars"):
        _ = Recipe(model_name=model_with_context_40, lookback=41, horizon=1).used_lookback


def test_a_horizon_that_leaves_no_lookback_is_refused(model_with_context_40: str) -> None:
    with pytest.raises(SettingsError, match=r"--horizon 38 leaves no lookback in the context of .*, 40 bars"):
        _ = Recipe(model_name=model_with_context_40, lookback=40, horizon=38).used_lookback


def test_the_context_is_the_base_models() -> None:
    assert Recipe(model_name="Kronos-mini").context == 2048
    with pytest.raises(ModelError, match="No model is called 'nothing'"):
        _ = Recipe(model_name="nothing").context


ROLES = {
    Role.BARS: {"columns", "adjusted", "drop_bad_rows", "from_date", "keep_forming"},
    Role.MODEL: {"model_name", "tokenizer_name"},
    Role.WINDOWS: {"lookback", "horizon", "selection_days", "selection_bars", "stride", "max_gap", "keep_jumps"},
    Role.HOLDOUT: {"validation_days", "validation_bars", "max_cutoffs", "keep_jumps"},
    Role.TRAINING: {
        "epochs", "batch_size", "grad_accum_steps", "learning_rate", "weight_decay", "warmup_fraction", "max_grad_norm",
        "average_decay", "evaluations_per_epoch", "patience", "seed", "precision", "torch_compile", "adapter",
        "adapter_r", "adapter_alpha", "adapter_dropout", "adapter_targets", "freeze_backbone",
    },
    Role.ROUNDING: {"adapters_together", "deterministic"},
    Role.NAME: {"adapter_name"},
    Role.SAMPLING: {
        "temperature", "top_p", "s2_position", "tune_sampling", "recalibrate", "eval_samples", "seed", "max_gap",
        "keep_jumps", "precision",
    },
    Role.FORECAST: {"calendars", "expires_days", "strict_champion"},
    Role.EVALUATION: {"rivals"},
    Role.DECISION: {"backtest_origins", "backtest_refit_every", "gate", "refit_all"},
    Role.RUN: {"device", "save_steps", "cuda_graphs", "mix_intervals"},
}  # fmt: skip


@pytest.mark.parametrize("role", list(Role), ids=lambda role: str(role.name))
def test_the_settings_of_each_role_are_these(role: Role) -> None:
    assert settings_of(role) == ROLES[role]


@pytest.mark.parametrize(
    ("settings", "rate"),
    [
        ({"adapter": "lora"}, 1e-4),
        ({"adapter": "none"}, 1e-5),
        ({"adapter": "lora", "freeze_backbone": False}, 1e-5),
        ({"adapter": "none", "learning_rate": 3e-4}, 3e-4),
    ],
)
def test_the_learning_rate_is_that_of_the_kind_unless_it_is_given(settings: dict[str, Any], rate: float) -> None:
    assert Recipe.model_validate(settings).peak_learning_rate == rate


def test_a_lookback_that_is_cut_is_told() -> None:
    assert Recipe(lookback=64, horizon=30).lookback_note is None
    cut = Recipe(lookback=500, horizon=30)
    assert cut.lookback_note == (
        "--lookback 500 is cut to 481 bars: with --horizon 30 + 1 it is above the context of NeoQuasar/Kronos-small, "
        "512 bars"
    )
    assert cut.derived["used_lookback"] == 481


def test_every_setting_of_a_recipe_has_a_role() -> None:
    assert set().union(*ROLES.values()) == set(Recipe.model_fields)


def test_the_settings_that_shape_weights_are_the_others_than_these() -> None:
    assert set(Recipe.model_fields) - training_settings(Recipe()).keys() == {
        "validation_days", "validation_bars", "max_cutoffs", "eval_samples", "temperature", "top_p",
        "s2_position", "tune_sampling", "recalibrate", "calendars", "rivals", "expires_days", "strict_champion",
        "backtest_origins", "backtest_refit_every", "gate", "refit_all",
        "save_steps", "device", "adapter_name", "cuda_graphs", "mix_intervals",
        "columns", "adjusted", "drop_bad_rows", "from_date", "keep_forming",
    }  # fmt: skip
