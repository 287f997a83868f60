"""The settings, the tracking and the clock of a run as Dagster resources, and the models that several assets look up.

The settings are a resource and not the assets' run config, because the assets of a run must agree on them: one recipe
cuts windows, trains adapters and scores forecasts. A resource is set once, and the launchpad can change it for a run:

    resources:
      pipeline:
        config:
          epochs: 5
          learning_rate: 0.0002
"""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Optional, TypeVar

import dagster as dg
from pydantic import Field, ValidationError, create_model
from pydantic.fields import FieldInfo

from kronos_pipeline.addresses import without_password
from kronos_pipeline.artifacts import ArtifactLayout, mlflow_run_of
from kronos_pipeline.cli.help import section_of
from kronos_pipeline.config import KronosTrainingConfig, ReadingSettings, Recipe, environment_settings
from kronos_pipeline.errors import ArtifactError, SettingsError
from kronos_pipeline.orchestration.automation.killed_runs import hold_run_lock
from kronos_pipeline.orchestration.run_summary import summarise_run
from kronos_pipeline.orchestration.run_tickers import with_queued_runs
from kronos_pipeline.orchestration.setting_names import name_settings
from kronos_pipeline.orchestration.sharing import share_run

if TYPE_CHECKING:
    from kronos_pipeline.model.loading import KronosModel

Resource = TypeVar("Resource", bound="dg.ConfigurableResource[Any]")
Settings = TypeVar("Settings", bound=ReadingSettings)

PROCESSES = "KRONOS_NPROC_PER_NODE"
_SET_BY_THE_ASSET = ("adapter", "adapter_name")
"""Settings that the launchpad lacks: `adapter[AAPL]` trains an adapter named AAPL, and `checkpoint` a checkpoint."""

_LIMITS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
"""Words for the limits of a number, by pydantic's names."""


def _launchpad_field(name: str, field: FieldInfo) -> FieldInfo:
    """Return a setting's field for the launchpad, with its section and its limits in the description."""
    changed = copy(field)
    # `recipe` reports a value out of limits, as a failure; here Dagster would report a broken resource.
    changed.metadata = []
    changed.validation_alias = None  # `from` is for the command line; a field of a launchpad has one name
    limits = [
        f"{words} {getattr(limit, bound)}"
        for limit in field.metadata
        for bound, words in _LIMITS.items()
        if hasattr(limit, bound)
    ]
    text = name_settings(field.description or "").replace("(comma-separated)", "(a list)")
    section = "folders" if name in ("data_dir", "output_dir") else section_of(name)
    changed.description = f"{section[0].upper()}{section[1:]}: {text}" + (f" ({', '.join(limits)})" if limits else "")
    return changed


_FIELDS: dict[str, Any] = {
    name: (field.annotation, _launchpad_field(name, field))
    for name, field in KronosTrainingConfig.model_fields.items()
    if name not in _SET_BY_THE_ASSET
}
_Settings: Any = create_model("_Settings", __base__=dg.ConfigurableResource, **_FIELDS)


class PipelineSettings(_Settings):
    """The settings of a run; a setting that you leave out has the default of the environment.

    People change epochs, stride, lookback, horizon, validation_days and backtest_origins most. Each description starts
    with the part of the run that the setting shapes.
    """

    nproc_per_node: str = Field(
        "1",
        description="Training: processes of the training of a checkpoint, each with a GPU of its own and "
        "`batch_size` windows of each step: a number, or gpu for all CUDA devices; adapters train in one process "
        f"[environment: {PROCESSES}]",
    )

    if TYPE_CHECKING:
        data_dir: str
        output_dir: str
        calendars: list[str]
        accept_history: bool

    @classmethod
    def from_environment(cls) -> PipelineSettings:
        """Return the defaults, changed by the variables of the environment.

        These are KRONOS_DATA_DIR, KRONOS_OUTPUT_DIR, KRONOS_BASE_MODEL, KRONOS_DEVICE, KRONOS_COLUMNS,
        KRONOS_CALENDARS and KRONOS_NPROC_PER_NODE.
        """
        processes = {"nproc_per_node": os.environ[PROCESSES]} if os.environ.get(PROCESSES) else {}
        return with_defaults(cls, environment_settings() | processes)

    @contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Iterator[PipelineSettings]:  # type: ignore[override]
        """Hold the run's lock, take over queued runs and share artifacts until its steps end; then log its summary."""
        if context.run is None or context.instance is None:
            yield self
            return
        with (
            hold_run_lock(context.instance, context.run.run_id),
            with_queued_runs(context.instance, context.run),
            share_run(self.layout, context.instance, context.run),
        ):
            yield self
            if context.log and (summary := summarise_run(context.instance, context.run.run_id)):
                context.log.info(summary)

    def recipe(self, adapter: Literal["none", "lora"]) -> Recipe:
        """Return the settings that shape a result, for a checkpoint ("none") or an adapter ("lora").

        Raises:
            SettingsError: a setting is invalid.
        """
        values = {name: getattr(self, name) for name in Recipe.model_fields if name not in _SET_BY_THE_ASSET}
        return _validated(Recipe, {**values, "adapter": adapter})

    @property
    def reading(self) -> ReadingSettings:
        """The settings that shape the bars read from a CSV.

        Raises:
            SettingsError: a setting is invalid.
        """
        return _validated(ReadingSettings, {name: getattr(self, name) for name in ReadingSettings.model_fields})

    @property
    def data_folder(self) -> Path:
        """The folder with the CSVs, or the only CSV."""
        return Path(self._folder("data_dir"))

    @property
    def layout(self) -> ArtifactLayout:
        """The layout of the output folder."""
        return ArtifactLayout(Path(self._folder("output_dir")))

    def _folder(self, name: str) -> str:
        """Return the setting of a folder.

        Raises:
            SettingsError: it is no plain text.
        """
        folder: str = getattr(_validated(KronosTrainingConfig, {name: getattr(self, name)}), name)
        return folder


class Tracking(dg.ConfigurableResource[Any]):
    """The MLflow store of trainings and their holdout metrics."""

    tracking_uri: Optional[str] = Field(
        None, description="MLflow tracking URI; by default MLFLOW_TRACKING_URI, else mlflow.db in the output folder"
    )
    ui_address: Optional[str] = Field(
        None, description="address of an MLflow UI, for links [environment: KRONOS_MLFLOW_UI]"
    )

    @classmethod
    def from_environment(cls) -> Tracking:
        """Return the defaults, with the address of an MLflow UI from KRONOS_MLFLOW_UI."""
        address = os.environ.get("KRONOS_MLFLOW_UI")
        return with_defaults(cls, {"ui_address": without_password(address) if address else None})

    def tracker(self, layout: ArtifactLayout) -> Any:
        """Return a `kronos_pipeline.tracking.runs.Tracker` for the artifacts of `layout`."""
        from kronos_pipeline.tracking.runs import Tracker

        return Tracker(self.tracking_uri, layout.root, self.ui_address)


class Clock(dg.ConfigurableResource[Any]):
    """The time at which forecasts are issued. It has no settings, so that nobody dates a forecast back."""

    def now(self) -> datetime:
        """Return the present time, in UTC."""
        return datetime.now(UTC)


def with_defaults(resource: type[Resource], values: Mapping[str, Any]) -> Resource:
    """Return a resource with other defaults.

    Dagster drops all values of the constructor if the launchpad changes any: a run with two epochs would train another
    base model than the environment names. It keeps the defaults of the class.
    """
    fields = resource.model_fields
    changed: dict[str, Any] = {
        name: (fields[name].annotation, _with_default(fields[name], value)) for name, value in values.items()
    }
    model: Any = create_model(resource.__name__, __base__=resource, __doc__=resource.__doc__, **changed)
    changed_resource: Resource = model()
    return changed_resource


def _with_default(field: FieldInfo, value: Any) -> FieldInfo:
    changed = copy(field)
    changed.default = value
    return changed


def load_base_model(recipe: Recipe) -> KronosModel:
    """Load the recipe's untouched base model to its device.

    Raises:
        ModelError, SettingsError: the base model or the device is not available.
    """
    from kronos_pipeline.model.loading import load_recipe_base  # imports torch

    return load_recipe_base(recipe)


def training_run_id(layout: ArtifactLayout, ticker: str) -> str | None:
    """Return the MLflow run of the ticker's adapter, or of the checkpoint if the ticker has no adapter.

    Raises:
        ArtifactError: neither exists.
    """
    for folder in (layout.adapter(ticker), layout.best_checkpoint):
        if folder.is_dir():
            return mlflow_run_of(folder)
    raise ArtifactError(f"{ticker} has no adapter, and there is no checkpoint; materialise one of them first.")


def run_tags(context: dg.AssetExecutionContext, partition: str | None = None) -> Mapping[str, str]:
    """Return the tags of an MLflow run: Dagster run, asset, partition, command, and the commit of a git clone."""
    from kronos_pipeline.tracking.run_page import COMMAND

    asset, of_partition = context.asset_key.to_user_string(), ["--partition", partition] if partition else []
    tags = {
        "dagster_run": context.run.run_id,
        "asset": asset,
        "partition": partition,
        COMMAND: shlex.join(["dagster", "asset", "materialize", "--select", asset, *of_partition]),
        "commit": _commit(),
    }
    return {key: value for key, value in tags.items() if value}


@cache
def _commit() -> str | None:
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 - a constant command
        return ended.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None  # an installed copy, or a machine without git


def _validated(model: type[Settings], values: Mapping[str, Any]) -> Settings:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise SettingsError(" ".join(f"{_sentence(problem)}." for problem in error.errors())) from error


def _sentence(problem: Any) -> str:
    name, text = ".".join(map(str, problem["loc"])), problem["msg"].removeprefix("Value error, ")
    if text.startswith("Input should "):
        return f"{name} is {problem['input']!r}, and must {text.removeprefix('Input should ')}"
    return f"{name}: {text}"
