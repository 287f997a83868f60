"""The settings and the tracking of a run, as Dagster resources.

The settings are a resource and not the assets' run config, because several assets of a run must agree on them: windows
are cut, adapters trained and forecasts scored with one recipe. As a resource it is set in one place, and the launchpad
still changes it for one run:

    resources:
      pipeline:
        config:
          epochs: 5
          learning_rate: 0.0002
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Optional, TypeVar

import dagster as dg
from pydantic import Field, ValidationError, create_model
from pydantic.fields import FieldInfo

from kronos_pipeline.artifacts import ArtifactLayout, mlflow_run_of
from kronos_pipeline.base_models import find_base_model
from kronos_pipeline.config import KronosTrainingConfig, Recipe, environment_settings
from kronos_pipeline.errors import ArtifactError, SettingsError
from kronos_pipeline.orchestration.automation.killed_runs import alive

if TYPE_CHECKING:
    from kronos_pipeline.model.loading import KronosModel

Resource = TypeVar("Resource", bound=dg.ConfigurableResource)

_SAID_BY_THE_ASSET = ("adapter", "adapter_name")
"""Not for the launchpad: `adapter[AAPL]` trains an adapter called AAPL, and `checkpoint` a checkpoint."""


def _without_limits(field: FieldInfo) -> FieldInfo:
    # A value out of limits is `recipe`'s to tell, as a failure; here Dagster would show it as a resource that broke.
    changed = copy(field)
    changed.metadata = []
    return changed


_FIELDS: dict[str, Any] = {
    name: (field.annotation, _without_limits(field))
    for name, field in KronosTrainingConfig.model_fields.items()
    if name not in _SAID_BY_THE_ASSET
}
_Settings: Any = create_model("_Settings", __base__=dg.ConfigurableResource, **_FIELDS)


class PipelineSettings(_Settings):
    """Every field of `KronosTrainingConfig`, but for those that the asset itself says."""

    if TYPE_CHECKING:
        data_dir: str
        output_dir: str

    @classmethod
    def from_environment(cls) -> PipelineSettings:
        """The defaults, with what KRONOS_DATA_DIR, KRONOS_OUTPUT_DIR, KRONOS_BASE_MODEL and KRONOS_DEVICE say."""
        return with_defaults(cls, environment_settings())

    @contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Iterator[PipelineSettings]:  # type: ignore[override]
        """Hold the run's lock as long as its steps need settings, which is as long as it runs."""
        if context.run is None or context.instance is None:
            yield self
            return
        with alive(context.instance, context.run.run_id):
            yield self

    def recipe(self, adapter: Literal["none", "lora"]) -> Recipe:
        """What shapes a result, for training a checkpoint ("none") or an adapter ("lora").

        Raises:
            SettingsError: a setting is not what it may be.
        """
        values = {name: getattr(self, name) for name in Recipe.model_fields if name not in _SAID_BY_THE_ASSET}
        try:
            return Recipe.model_validate({**values, "adapter": adapter})
        except ValidationError as error:
            problems = [
                f"{'.'.join(map(str, one['loc']))}: {one['msg']} (found {one['input']!r})" for one in error.errors()
            ]
            raise SettingsError(f"{'; '.join(problems)}.") from error

    @property
    def data_folder(self) -> Path:
        """The folder with the CSVs."""
        return Path(self.data_dir)

    @property
    def layout(self) -> ArtifactLayout:
        """Where artifacts lie."""
        return ArtifactLayout(Path(self.output_dir))


class Tracking(dg.ConfigurableResource):
    """The MLflow store that trainings and their holdout metrics are written to."""

    tracking_uri: Optional[str] = Field(
        None, description="MLflow tracking URI; by default MLFLOW_TRACKING_URI, else mlflow.db in the output folder"
    )
    ui_address: Optional[str] = Field(
        None, description="address of an MLflow UI, for links [environment: KRONOS_MLFLOW_UI]"
    )

    @classmethod
    def from_environment(cls) -> Tracking:
        """The defaults, with the address of an MLflow UI that KRONOS_MLFLOW_UI gives."""
        return with_defaults(cls, {"ui_address": os.environ.get("KRONOS_MLFLOW_UI") or None})

    def tracker(self, layout: ArtifactLayout) -> Any:
        """A `kronos_pipeline.tracking.runs.Tracker` for artifacts that lie in `layout`."""
        from kronos_pipeline.tracking.runs import Tracker

        return Tracker(self.tracking_uri, layout.root, self.ui_address)


def with_defaults(resource: type[Resource], values: Mapping[str, Any]) -> Resource:
    """A resource with other defaults.

    Values given to the constructor would be dropped, all of them, when the launchpad changes one: a run with two epochs
    would train another base model than the one that the environment names. Defaults of the class hold.
    """
    fields = resource.model_fields
    changed: dict[str, Any] = {
        name: (fields[name].annotation, _with_default(fields[name], value)) for name, value in values.items()
    }
    model: Any = create_model(resource.__name__, __base__=resource, __doc__=resource.__doc__, **changed)
    return model()


def _with_default(field: FieldInfo, value: Any) -> FieldInfo:
    changed = copy(field)
    changed.default = value
    return changed


def load_base_model(recipe: Recipe) -> KronosModel:
    """The recipe's untouched base model, on its device.

    Raises:
        ModelError, SettingsError: it is not to be had, or the device is not.
    """
    from kronos_pipeline.model.devices import pick_device  # imports torch
    from kronos_pipeline.model.loading import load_base  # imports torch

    return load_base(find_base_model(recipe.model_name, recipe.tokenizer_name), pick_device(recipe.device))


def training_run(layout: ArtifactLayout, ticker: str) -> str | None:
    """The MLflow run that trained the ticker's adapter, or where there is none the checkpoint.

    Raises:
        ArtifactError: there is neither.
    """
    for folder in (layout.adapter(ticker), layout.best_checkpoint):
        if folder.is_dir():
            return mlflow_run_of(folder)
    raise ArtifactError(f"{ticker} has no adapter, and there is no checkpoint; materialise one of them first.")


def run_tags(context: dg.AssetExecutionContext, partition: str | None = None) -> Mapping[str, str]:
    """What an MLflow run should be found by: Dagster run, asset, partition, and the commit where there is one."""
    tags = {
        "dagster_run": context.run.run_id,
        "asset": context.asset_key.to_user_string(),
        "partition": partition,
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
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None  # an installed copy, or a machine without git
