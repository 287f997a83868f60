"""All settings of the pipeline, for the command line, Dagster's run config and MLflow's parameters."""

from __future__ import annotations

import os
from difflib import get_close_matches
from functools import cache
from typing import Any, Literal, Optional, Self

from pydantic import Field, field_validator, model_validator

from kronos_pipeline.base_models import find_base_model
from kronos_pipeline.errors import SettingsError
from kronos_pipeline.names import Name, PlainTexts
from kronos_pipeline.reading_settings import COLUMN_MEANINGS, ReadingSettings
from kronos_pipeline.roles import Role, setting

__all__ = [
    "COLUMN_MEANINGS",
    "KronosTrainingConfig",
    "ReadingSettings",
    "Recipe",
    "Role",
    "environment_settings",
    "settings_of",
]

_ENVIRONMENT = {
    "data_dir": "KRONOS_DATA_DIR",
    "output_dir": "KRONOS_OUTPUT_DIR",
    "model_name": "KRONOS_BASE_MODEL",
    "device": "KRONOS_DEVICE",
    "columns": "KRONOS_COLUMNS",
    "calendars": "KRONOS_CALENDARS",
}


def environment_settings() -> dict[str, Any]:
    """Return the settings of the variables KRONOS_DATA_DIR, _OUTPUT_DIR, _BASE_MODEL, _DEVICE, _COLUMNS, _CALENDARS."""
    values: dict[str, Any] = {
        field: os.environ[variable] for field, variable in _ENVIRONMENT.items() if os.environ.get(variable)
    }
    for field in {"columns", "calendars"} & values.keys():
        values[field] = values[field].split(",")
    return values


def environment_variable(field: str) -> str:
    """Return the name of the environment variable of a setting."""
    return _ENVIRONMENT[field]


class EnvironmentDefaults(PlainTexts):
    """Settings by the rule: arguments override variables of the environment, which override defaults."""

    @model_validator(mode="before")
    @classmethod
    def _apply_environment(cls, arguments: Any) -> Any:
        environment = {field: value for field, value in environment_settings().items() if field in cls.model_fields}
        return {**environment, **arguments} if isinstance(arguments, dict) else arguments


_LORA_RATE, _FULL_RATE = 1e-4, 1e-5
"""Default learning rates; docs/does-training-work.md has the measurements and the sources."""


def settings_of(roles: Role) -> frozenset[str]:
    """Return the names of a recipe's settings with any of the given roles."""
    return frozenset(name for name, role in _roles().items() if role & roles)


@cache
def _roles() -> dict[str, Role]:
    extra = {name: field.json_schema_extra for name, field in Recipe.model_fields.items()}
    return {name: Role(schema["role"]) for name, schema in extra.items() if isinstance(schema, dict)}


class Recipe(ReadingSettings):
    """All settings that shape the result apart from the data: reading, windows, training, sampling, scoring.

    Lengths are in bars unless the name says days; days are trading days, the distinct dates in a ticker's file.
    """

    model_name: str = setting(
        "NeoQuasar/Kronos-small",
        Role.MODEL,
        min_length=1,
        description="base model: kronos-nano (embedded), a published name, owner/name@commit, or a local folder "
        "[environment: KRONOS_BASE_MODEL]",
    )
    tokenizer_name: Optional[str] = setting(
        None,
        Role.MODEL,
        min_length=1,
        description="tokenizer: the same kinds of names; by default the base model's own",
    )

    lookback: int = setting(64, Role.WINDOWS, ge=2, description="input bars of a forecast")
    horizon: int = setting(30, Role.WINDOWS, ge=1, description="predicted bars of a forecast")
    validation_days: int = setting(
        30, Role.HOLDOUT, ge=1, description="last trading days of each ticker that are held out for evaluation"
    )
    selection_days: int = setting(
        60, Role.WINDOWS, ge=1, description="trading days before the holdout that early stopping evaluates on"
    )
    validation_bars: Optional[int] = setting(
        None, Role.HOLDOUT, ge=1, description="held-out bars, instead of --validation-days"
    )
    selection_bars: Optional[int] = setting(
        None, Role.WINDOWS, ge=1, description="bars for early stopping, instead of --selection-days"
    )
    stride: int = setting(1, Role.WINDOWS, ge=1, description="bars between the starts of two training windows")
    max_gap: int = setting(
        10, Role.WINDOWS | Role.SAMPLING, ge=1, description="largest number of missing bar intervals inside a window"
    )
    keep_jumps: bool = setting(
        False,
        Role.WINDOWS | Role.HOLDOUT | Role.SAMPLING,
        description="keep windows over a jump in price like an unadjusted split, instead of leaving them out",
    )
    max_cutoffs: int = setting(
        64, Role.HOLDOUT, ge=1, description="largest number of evaluated cutoffs per ticker; the newest are kept"
    )

    epochs: int = setting(3, Role.TRAINING, ge=1, description="passes over the training windows")
    batch_size: int = setting(
        32, Role.TRAINING, ge=1, description="windows per optimiser step and process, before accumulation"
    )
    grad_accum_steps: int = setting(1, Role.TRAINING, ge=1, description="batches per optimiser step")
    learning_rate: Optional[float] = setting(
        None,
        Role.TRAINING,
        gt=0,
        description=f"AdamW's peak learning rate; by default {_LORA_RATE:g} for an adapter, {_FULL_RATE:g} for a "
        "training of the whole model",
    )
    weight_decay: float = setting(0.01, Role.TRAINING, ge=0, description="AdamW's decoupled weight decay")
    warmup_fraction: float = setting(
        0.1,
        Role.TRAINING,
        ge=0,
        lt=1,
        description="fraction of the optimiser steps with a linearly rising learning rate",
    )
    max_grad_norm: float = setting(
        1.0, Role.TRAINING, gt=0, description="gradient norm above which gradients are clipped"
    )
    average_decay: float = setting(
        0.0,
        Role.TRAINING,
        ge=0,
        lt=1,
        description="decay per step of the moving average of the weights; 0: no averaging",
    )
    evaluations_per_epoch: int = setting(
        4, Role.TRAINING, ge=1, description="evaluations per epoch on the selection block"
    )
    patience: int = setting(6, Role.TRAINING, ge=1, description="evaluations without improvement before training stops")
    save_steps: int = setting(200, Role.RUN, ge=1, description="optimiser steps between two resumable checkpoints")
    seed: int = setting(
        0,
        Role.TRAINING | Role.SAMPLING,
        ge=0,
        lt=2**32,
        description="seed of LoRA weights, window order, dropout and sampling",
    )
    device: str = setting(
        "auto",
        Role.RUN,
        pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$",
        description="auto, cpu, cuda, cuda:N or mps [environment: KRONOS_DEVICE]",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = setting(
        "auto",
        Role.TRAINING | Role.SAMPLING,
        description="number format of matrix products; auto: bf16 on a GPU that supports it, and to train a published "
        "model on a CPU that supports it; else fp32",
    )
    torch_compile: bool = setting(
        False,
        Role.TRAINING,
        description="compile the model (pays off on long GPU runs); adapters then train one by one",
    )
    cuda_graphs: bool = setting(
        True, Role.RUN, description="replay training steps from CUDA graphs on a GPU, if the graphs can be captured"
    )
    deterministic: bool = setting(
        False,
        Role.ROUNDING,
        description="use only deterministic algorithms on a GPU: every training gives the same weights; slower",
    )

    mix_intervals: bool = setting(
        False,
        Role.RUN,
        description="train the checkpoint though its tickers have bars of different intervals, such as 1 day and 1 h",
    )

    adapter: Literal["none", "lora"] = setting(
        "none", Role.TRAINING, description="none: one checkpoint over all tickers; lora: adapters"
    )
    adapter_name: Optional[Name] = setting(
        None, Role.NAME, description="train one adapter of this name on all tickers, instead of one adapter per ticker"
    )
    adapter_r: int = setting(8, Role.TRAINING, ge=1, description="rank of the LoRA matrices")
    adapter_alpha: float = setting(
        16, Role.TRAINING, gt=0, description="LoRA scale; the update is multiplied by alpha / r"
    )
    adapter_dropout: float = setting(
        0.05, Role.TRAINING, ge=0, lt=1, description="dropout probability of the LoRA inputs"
    )
    adapter_targets: list[str] = setting(
        ["q_proj", "k_proj", "v_proj", "out_proj", "w1", "w2", "w3"],
        Role.TRAINING,
        min_length=1,
        description="module names that get LoRA matrices (comma-separated)",
    )
    adapters_together: int = setting(
        0,
        Role.ROUNDING,
        ge=0,
        description="largest number of adapters trained jointly; 0: as many as fit the device's memory; 1: one by one",
    )
    freeze_backbone: bool = setting(
        True, Role.TRAINING, description="train only the LoRA matrices, and not the base model"
    )

    eval_samples: int = setting(32, Role.SAMPLING, ge=1, description="paths sampled per forecast")
    temperature: float = setting(1.0, Role.SAMPLING, gt=0, description="sampling temperature")
    top_p: float = setting(
        1.0,
        Role.SAMPLING,
        gt=0,
        le=1,
        description="nucleus sampling: probability mass to sample from; below 1 it cuts tails and narrows intervals",
    )
    s2_position: Literal["true", "first"] = setting(
        "true",
        Role.SAMPLING,
        description="position at which decoding predicts a bar's fine token: true, the bar's own; first, as upstream",
    )
    tune_sampling: bool = setting(
        False, Role.SAMPLING, description="choose temperature and top-p per ticker and model on the selection block"
    )
    recalibrate: bool = setting(
        True,
        Role.SAMPLING,
        description="on the newer half of the selection block, choose whether paths are recentred or rescaled, and "
        "widen or narrow intervals by their coverage; a longer block gives better intervals",
    )
    rivals: list[str] = setting(
        [],
        Role.EVALUATION,
        description="further models to beat (comma-separated): lightgbm, boosted trees over all tickers (extra gbm); "
        "chronos, Chronos-2 as published, or chronos=<local folder>, chronos=owner/name@commit (extra chronos)",
    )
    calendars: list[str] = setting(
        [],
        Role.FORECAST,
        description="exchange calendars for the times of forecast bars: XNYS for all tickers, AAPL=XNYS for one "
        "(comma-separated); by default a ticker's own weekdays and times of day [environment: KRONOS_CALENDARS]",
    )

    expires_days: int = setting(
        30, Role.FORECAST, ge=0, description="days after its promotion from which a champion is too old; 0: never"
    )
    strict_champion: bool = setting(
        False,
        Role.FORECAST,
        description="no forecast by a champion that is too old or has inputs unlike those of its training; by default "
        "it forecasts with a warning",
    )

    backtest_origins: int = setting(
        0,
        Role.DECISION,
        ge=0,
        description="cutoffs per ticker of a walk-forward backtest, one horizon apart; 0: no backtest",
    )
    backtest_refit_every: int = setting(1, Role.DECISION, ge=1, description="backtest cutoffs per training")
    gate: Literal["strict", "lenient"] = setting(
        "strict",
        Role.DECISION,
        description="rule for a new champion of a target: strict, better than every rival; lenient, not worse than any",
    )
    refit_all: bool = setting(
        False,
        Role.DECISION,
        description="train again on all bars after the verdict, for forecasts; this training is not measured",
    )

    @field_validator("rivals")
    @classmethod
    def _check_rivals(cls, names: list[str]) -> list[str]:
        for name in names:
            if name not in ("lightgbm", "chronos") and not name.startswith("chronos="):
                raise ValueError(
                    f"{name!r} is no rival; use lightgbm, chronos or chronos=<folder or owner/name@commit>"
                )
        kinds = [name.partition("=")[0] for name in names]
        if len(set(kinds)) < len(kinds):
            raise ValueError("each of lightgbm and chronos can be named once")
        return names

    @property
    def context(self) -> int:
        """The context length of the base model, in bars."""
        return find_base_model(self.model_name, self.tokenizer_name).context

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate after the warm-up: the setting, or the default for the kind of training."""
        if self.learning_rate is not None:
            return self.learning_rate
        return _LORA_RATE if self.adapter == "lora" and self.freeze_backbone else _FULL_RATE

    @property
    def derived(self) -> dict[str, float]:
        """The values that follow from the settings, for manifests and MLflow: used lookback, peak learning rate."""
        return {"used_lookback": self.used_lookback, "peak_learning_rate": self.peak_learning_rate}

    @property
    def lookback_note(self) -> str | None:
        """The sentence that tells that the lookback is cut, or None if it is not."""
        if (used := self.used_lookback) == self.lookback:
            return None
        return (
            f"--lookback {self.lookback} is cut to {used} bars: with --horizon {self.horizon} + 1 it is above the "
            f"context of {self.model_name}, {self.context} bars"
        )

    @property
    def used_lookback(self) -> int:
        """The lookback in bars, shortened so that lookback + horizon + 1 fits the context.

        Raises:
            SettingsError: the lookback exceeds the context, or the horizon leaves no room for two lookback bars.
            ModelError: the base model is unknown.
        """
        context = self.context
        if self.lookback > context:
            raise SettingsError(
                f"--lookback {self.lookback} is above the context of {self.model_name}, {context} bars; lower it."
            )
        used = min(self.lookback, context - self.horizon - 1)
        if used < 2:
            raise SettingsError(
                f"--horizon {self.horizon} leaves no lookback in the context of {self.model_name}, {context} bars; "
                "lower it."
            )
        return used


class KronosTrainingConfig(EnvironmentDefaults, Recipe):
    """All settings of a training and its evaluation: the folders of the CSVs and of the artifacts, and a `Recipe`.

    An argument overrides the environment (KRONOS_DATA_DIR, KRONOS_OUTPUT_DIR, KRONOS_BASE_MODEL, KRONOS_DEVICE,
    KRONOS_COLUMNS), which overrides the default. The flags of the command line are the same settings:
    `--model-name kronos-nano` is `model_name="kronos-nano"`.

    Examples:
        >>> from kronos_pipeline import KronosTrainingConfig
        >>> config = KronosTrainingConfig(data_dir="mydata", model_name="kronos-nano", adapter="lora")
        >>> config.lookback, config.horizon, config.peak_learning_rate
        (64, 30, 0.0001)

    Raises:
        pydantic.ValidationError: a setting is unknown or invalid; a ValueError.
    """

    data_dir: str = Field(
        "trainingdata",
        min_length=1,
        description="folder with one CSV per ticker, at any depth, or one file [environment: KRONOS_DATA_DIR]",
    )
    output_dir: str = Field(
        "artifacts", min_length=1, description="folder for artifacts [environment: KRONOS_OUTPUT_DIR]"
    )
    accept_history: bool = Field(
        False,
        description="take CSVs that contradict the bars that were read before: bars are gone, or closes have changed",
    )

    @property
    def recipe(self) -> Recipe:
        """The settings without the two folders."""
        return Recipe.model_validate(self.model_dump(include=set(Recipe.model_fields)))

    @model_validator(mode="before")
    @classmethod
    def _check_names(cls, arguments: Any) -> Any:
        if not isinstance(arguments, dict):
            return arguments
        known = [*cls.model_fields, "from"]
        for name in arguments:
            if name not in known:
                nearest = get_close_matches(name, known, 1) or [field for field in known if name in field.split("_")]
                raise ValueError(f"there is no setting {name}" + (f"; did you mean {nearest[0]}?" if nearest else ""))
        return arguments

    @field_validator("data_dir", "output_dir", "model_name", mode="before")
    @classmethod
    def _read_path(cls, value: Any) -> Any:
        return os.fspath(value) if isinstance(value, os.PathLike) else value

    @model_validator(mode="after")
    def _check_adapter_settings(self) -> Self:
        if self.adapter == "none" and (self.adapter_name is not None or not self.freeze_backbone):
            raise ValueError("--adapter-name and --no-freeze-backbone need --adapter lora")
        return self
