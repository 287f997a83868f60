"""Shared parts of the commands that work on tickers of a folder with the models of an earlier run."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, Optional

from pydantic import Field
from pydantic_settings import CliPositionalArg

from kronos_pipeline.cli.command import Command
from kronos_pipeline.config import KronosTrainingConfig, Recipe

if TYPE_CHECKING:
    from kronos_pipeline.artifacts import ArtifactLayout
    from kronos_pipeline.data.csv_files import CsvFolder
    from kronos_pipeline.model.loading import KronosModel


def evaluated_setting(name: str) -> Any:
    """Build a flag with the description of a setting; its default is the setting of the ticker's last evaluation."""
    description = str(KronosTrainingConfig.model_fields[name].description).partition("; by default")[0]
    return Field(None, description=f"{description}; by default as in the ticker's last evaluation")


class TickersCommand(Command):
    """Flags that select tickers, their artifacts and their base models."""

    tickers: CliPositionalArg[list[str]] = Field(
        [], description="symbols, the names of their CSVs; by default every CSV's"
    )
    data_dir: str = Field("trainingdata", description=KronosTrainingConfig.model_fields["data_dir"].description)
    output_dir: str = Field("artifacts", description=KronosTrainingConfig.model_fields["output_dir"].description)
    model_name: Optional[str] = evaluated_setting("model_name")
    tokenizer_name: Optional[str] = evaluated_setting("tokenizer_name")
    adapter_name: Optional[str] = Field(None, description="an adapter over several tickers that may serve this one")
    device: str = Field("auto", description=KronosTrainingConfig.model_fields["device"].description)

    def symbols(self, folder: CsvFolder) -> list[str]:
        """Return the given symbols in upper case without repetition, or all symbols of a folder."""
        return list(dict.fromkeys(map(str.upper, self.tickers))) or sorted(folder.files)

    def recipe_of(self, layout: ArtifactLayout, ticker: str) -> Recipe:
        """Return the settings of the ticker's last evaluation, if there is one, overridden by the flags."""
        from kronos_pipeline.artifacts import read_json

        evaluation = layout.ticker_metrics(ticker)
        evaluated = read_json(evaluation)["manifest"]["config"] if evaluation.is_file() else {}
        settings = {name: value for name, value in evaluated.items() if name in Recipe.model_fields}
        flags = self.model_dump(include=set(Recipe.model_fields), exclude_none=True)
        return Recipe.model_validate({**settings, **flags})

    def base_of(self, recipe: Recipe) -> KronosModel:
        """Return the base model of a recipe, loaded once for all tickers with the same base model."""
        from kronos_pipeline.model.loading import load_recipe_base

        names = recipe.model_name, recipe.tokenizer_name
        if names not in self._bases:
            self._bases[names] = load_recipe_base(recipe)
        return self._bases[names]

    @cached_property
    def _bases(self) -> dict[tuple[str, str | None], KronosModel]:
        return {}
