"""Every setting of the pipeline, written once, for the command line, Dagster's run config and MLflow's parameters."""

from __future__ import annotations

import os
import re
from enum import Flag, auto
from functools import cache
from typing import Any, Literal, Optional, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from kronos_pipeline.base_models import find_base_model
from kronos_pipeline.errors import SettingsError

NAME = re.compile(r"[A-Za-z0-9^=_-][A-Za-z0-9.^=_-]{0,63}")
"""What a symbol or an adapter may be called: it becomes a file name, so no slash and no leading dot."""

_ENVIRONMENT = {
    "data_dir": "KRONOS_DATA_DIR",
    "output_dir": "KRONOS_OUTPUT_DIR",
    "model_name": "KRONOS_BASE_MODEL",
    "device": "KRONOS_DEVICE",
}


def environment_settings() -> dict[str, str]:
    """The settings that the environment gives: KRONOS_DATA_DIR, KRONOS_OUTPUT_DIR, KRONOS_BASE_MODEL, KRONOS_DEVICE."""
    return {field: os.environ[variable] for field, variable in _ENVIRONMENT.items() if os.environ.get(variable)}


class Role(Flag):
    """What a setting shapes: whether an artifact that is there still serves after the setting has changed."""

    MODEL = auto()
    """The base model."""
    WINDOWS = auto()
    """The windows that training reads."""
    HOLDOUT = auto()
    """The days that are held out, and the cutoffs on them."""
    TRAINING = auto()
    """The weights."""
    ROUNDING = auto()
    """The last digits of the weights."""
    NAME = auto()
    """What the artifact is called."""
    SAMPLING = auto()
    """How futures are drawn from the weights."""
    FORECAST = auto()
    """The times of the bars to come."""
    DECISION = auto()
    """What is promoted, and on which evidence."""
    RUN = auto()
    """Where and how it is done, and not what comes of it."""


def _setting(default: Any, role: Role, **about: Any) -> Any:
    """A field of the settings with its role; `about` as pydantic's `Field` takes it."""
    return Field(default, json_schema_extra={"role": role.value}, **about)


def settings_of(roles: Role) -> frozenset[str]:
    """Return the names of a recipe's settings that have any of some roles."""
    return frozenset(name for name, role in _roles().items() if role & roles)


@cache
def _roles() -> dict[str, Role]:
    extra = {name: field.json_schema_extra for name, field in Recipe.model_fields.items()}
    return {name: Role(one["role"]) for name, one in extra.items() if isinstance(one, dict)}


class Recipe(BaseModel):
    """How windows are cut, a model is trained and its forecasts are scored: all that shapes the result but the data.

    Lengths are in bars unless the name says days; days are trading days, the distinct dates in a ticker's file.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    model_name: str = _setting(
        "NeoQuasar/Kronos-small",
        Role.MODEL,
        min_length=1,
        description="base model: kronos-nano (embedded), a published name, owner/name@commit, or a local folder "
        "[environment: KRONOS_BASE_MODEL]",
    )
    tokenizer_name: Optional[str] = _setting(
        None, Role.MODEL, min_length=1, description="tokenizer, named likewise; by default the base model's own"
    )

    lookback: int = _setting(64, Role.WINDOWS, ge=2, description="bars that a forecast sees")
    horizon: int = _setting(30, Role.WINDOWS, ge=1, description="bars that a forecast predicts")
    validation_days: int = _setting(
        30, Role.HOLDOUT, ge=1, description="trading days at each ticker's end that are held out"
    )
    selection_days: int = _setting(
        60, Role.WINDOWS, ge=1, description="trading days before the holdout that early stopping may look at"
    )
    validation_bars: Optional[int] = _setting(
        None, Role.HOLDOUT, ge=1, description="bars held out, in place of --validation-days"
    )
    selection_bars: Optional[int] = _setting(
        None, Role.WINDOWS, ge=1, description="bars for selection, in place of --selection-days"
    )
    stride: int = _setting(1, Role.WINDOWS, ge=1, description="bars between the starts of two training windows")
    max_gap: int = _setting(
        10, Role.WINDOWS | Role.SAMPLING, ge=1, description="bar intervals that may be missing inside a window, at most"
    )
    max_cutoffs: int = _setting(
        64, Role.HOLDOUT, ge=1, description="evaluated cutoffs per ticker, at most (the newest are kept)"
    )

    epochs: int = _setting(3, Role.TRAINING, ge=1, description="passes over the training windows")
    batch_size: int = _setting(
        32, Role.TRAINING, ge=1, description="windows per optimiser step and process, before accumulation"
    )
    grad_accum_steps: int = _setting(1, Role.TRAINING, ge=1, description="batches per optimiser step")
    learning_rate: float = _setting(1e-4, Role.TRAINING, gt=0, description="AdamW's peak learning rate")
    weight_decay: float = _setting(0.01, Role.TRAINING, ge=0, description="AdamW's decoupled weight decay")
    warmup_fraction: float = _setting(
        0.1, Role.TRAINING, ge=0, lt=1, description="share of the steps in which the rate rises linearly"
    )
    max_grad_norm: float = _setting(1.0, Role.TRAINING, gt=0, description="norm at which gradients are clipped")
    average_decay: float = _setting(
        0.0, Role.TRAINING, ge=0, lt=1, description="decay per step of averaged weights; 0 keeps the plain ones"
    )
    evaluations_per_epoch: int = _setting(4, Role.TRAINING, ge=1, description="looks at the selection block per epoch")
    patience: int = _setting(6, Role.TRAINING, ge=1, description="looks without improvement before training stops")
    save_steps: int = _setting(200, Role.RUN, ge=1, description="optimiser steps between two resumable states")
    seed: int = _setting(
        0, Role.TRAINING | Role.SAMPLING, ge=0, lt=2**32, description="seed of weights, order, dropout and sampling"
    )
    device: str = _setting(
        "auto",
        Role.RUN,
        pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$",
        description="auto, cpu, cuda, cuda:N or mps [environment: KRONOS_DEVICE]",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = _setting(
        "auto",
        Role.TRAINING | Role.SAMPLING,
        description="number format of matrix products; auto takes bf16 on a GPU that has it, and to train a published "
        "model on a CPU that has it, else fp32",
    )
    torch_compile: bool = _setting(
        False,
        Role.TRAINING,
        description="compile the model (worth its start-up on long GPU runs); adapters then train one by one",
    )
    cuda_graphs: bool = _setting(
        True, Role.RUN, description="replay training steps from CUDA graphs, on a GPU, where they can be had"
    )
    deterministic: bool = _setting(
        False,
        Role.ROUNDING,
        description="take deterministic algorithms alone on a GPU, for the same weights each time; slower",
    )

    adapter: Literal["none", "lora"] = _setting(
        "none", Role.TRAINING, description="none: one checkpoint over all tickers; lora: adapters"
    )
    adapter_name: Optional[str] = _setting(
        None, Role.NAME, description="train one adapter over all of the data under this name, not one per ticker"
    )
    adapter_r: int = _setting(8, Role.TRAINING, ge=1, description="rank of the LoRA matrices")
    adapter_alpha: float = _setting(
        16, Role.TRAINING, gt=0, description="LoRA scale; the update is multiplied by alpha / r"
    )
    adapter_dropout: float = _setting(0.05, Role.TRAINING, ge=0, lt=1, description="dropout on the LoRA inputs")
    adapter_targets: list[str] = _setting(
        ["q_proj", "k_proj", "v_proj", "out_proj", "w1", "w2", "w3"],
        Role.TRAINING,
        min_length=1,
        description="module names that get LoRA matrices (comma-separated)",
    )
    adapters_together: int = _setting(
        0,
        Role.ROUNDING,
        ge=0,
        description="adapters of one training, at most; 0: as many as the device's memory holds; 1: each alone",
    )
    freeze_backbone: bool = _setting(
        True, Role.TRAINING, description="train the LoRA matrices alone, not the base model with them"
    )

    eval_samples: int = _setting(32, Role.SAMPLING, ge=1, description="paths sampled per forecast")
    temperature: float = _setting(1.0, Role.SAMPLING, gt=0, description="sampling temperature")
    top_p: float = _setting(
        0.9, Role.SAMPLING, gt=0, le=1, description="nucleus sampling: probability mass that is kept"
    )
    s2_position: Literal["true", "first"] = _setting(
        "true",
        Role.SAMPLING,
        description="where decoding asks for a bar's fine token: at its true position, or as upstream, at the first",
    )
    tune_sampling: bool = _setting(
        False, Role.SAMPLING, description="choose temperature and top-p per ticker and model on the selection block"
    )
    recalibrate: bool = _setting(
        True,
        Role.SAMPLING,
        description="widen or narrow forecast intervals by what the newer half of the selection block shows; "
        "the longer that is, the better",
    )
    calendars: list[str] = _setting(
        [],
        Role.FORECAST,
        description="exchange calendars for the times of forecast bars: XNYS for all tickers, AAPL=XNYS for one "
        "(comma-separated); by default a ticker's own weekdays and times of day",
    )

    backtest_origins: int = _setting(
        0,
        Role.DECISION,
        ge=0,
        description="cutoffs per ticker of a walk-forward backtest, each a horizon after the one before; 0: none",
    )
    backtest_refit_every: int = _setting(
        1, Role.DECISION, ge=1, description="cutoffs of the backtest that one training serves"
    )
    gate: Literal["strict", "lenient"] = _setting(
        "strict",
        Role.DECISION,
        description="who becomes champion: strict, better than naive and than the base model; lenient, not worse",
    )
    refit_all: bool = _setting(
        False,
        Role.DECISION,
        description="train once more on all bars after the verdict, for forecasts; not itself measured",
    )

    @field_validator("adapter_name")
    @classmethod
    def _check_adapter_name(cls, name: str | None) -> str | None:
        if name is not None and not NAME.fullmatch(name):
            raise ValueError("use letters, digits and .-_^= only, without a slash or a leading dot, 64 at most")
        return name

    @property
    def context(self) -> int:
        """Bars that the base model attends to."""
        return find_base_model(self.model_name, self.tokenizer_name).context

    @property
    def used_lookback(self) -> int:
        """Lookback bars that fit the context beside the horizon: where lookback + horizon + 1 exceed it, the oldest go.

        Raises:
            SettingsError: the lookback is above the context, or the horizon leaves no room for two lookback bars.
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


class KronosTrainingConfig(Recipe):
    """A recipe, where the CSVs are, and where artifacts go: all that one run of the pipeline needs to know."""

    data_dir: str = Field(
        "trainingdata",
        min_length=1,
        description="folder with one CSV per ticker, at any depth [environment: KRONOS_DATA_DIR]",
    )
    output_dir: str = Field(
        "artifacts", min_length=1, description="folder for artifacts [environment: KRONOS_OUTPUT_DIR]"
    )

    @property
    def recipe(self) -> Recipe:
        """The settings that shape the result, without the two folders."""
        return Recipe.model_validate(self.model_dump(include=set(Recipe.model_fields)))

    @model_validator(mode="after")
    def _check_adapter_settings(self) -> Self:
        if self.adapter == "none" and (self.adapter_name is not None or not self.freeze_backbone):
            raise ValueError("--adapter-name and --no-freeze-backbone need --adapter lora")
        return self
