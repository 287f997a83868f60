"""Shared parts of the commands that work on tickers of a folder with the models of an earlier run."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Optional

from pydantic import Field
from pydantic_settings import CliPositionalArg

from kronos_pipeline.cli.command import Command
from kronos_pipeline.config import KronosTrainingConfig, ReadingSettings, Recipe
from kronos_pipeline.errors import ArtifactError, KronosError, group_messages
from kronos_pipeline.names import Name

if TYPE_CHECKING:
    from kronos_pipeline.artifacts import ArtifactLayout
    from kronos_pipeline.data.bars import Bars
    from kronos_pipeline.data.csv_files import CsvFolder
    from kronos_pipeline.model.loading import KronosModel


def evaluated_setting(name: str) -> Any:
    """Build a flag with the description of a setting; its default is the setting of the ticker's last evaluation."""
    setting = KronosTrainingConfig.model_fields[name]
    description = (
        f"{str(setting.description).partition('; by default')[0]}; by default as in the ticker's last evaluation"
    )
    return Field(None, description=description, validation_alias=setting.validation_alias)


def folder_groups(data_dir: Path, reading: ReadingSettings, adapter: str | None) -> list[str]:
    """Return the symbols of a data folder, and the name of an adapter over several tickers."""
    from kronos_pipeline.data.csv_files import find_csv_files

    try:
        symbols = sorted(find_csv_files(data_dir, reading).files)
    except KronosError:
        return []  # the command itself reports it
    return [*symbols, *([adapter] if adapter else [])]


class TickersCommand(Command):
    """Flags that select tickers, their artifacts and their base models."""

    shares: ClassVar[bool] = True

    tickers: CliPositionalArg[list[Name]] = Field(
        [], description="symbols, the names of their CSVs; by default all symbols of the folder"
    )
    data_dir: str = Field("trainingdata", description=KronosTrainingConfig.model_fields["data_dir"].description)
    output_dir: str = Field("artifacts", description=KronosTrainingConfig.model_fields["output_dir"].description)
    model_name: Optional[str] = evaluated_setting("model_name")
    tokenizer_name: Optional[str] = evaluated_setting("tokenizer_name")
    adapter_name: Optional[Name] = Field(None, description="an adapter over several tickers that may forecast them")
    device: str = Field("auto", description=KronosTrainingConfig.model_fields["device"].description)
    columns: Optional[list[str]] = evaluated_setting("columns")
    adjusted: Optional[bool] = evaluated_setting("adjusted")
    drop_bad_rows: Optional[str] = evaluated_setting("drop_bad_rows")
    from_date: Optional[list[str]] = evaluated_setting("from_date")
    keep_forming: Optional[bool] = evaluated_setting("keep_forming")
    accept_history: bool = Field(False, description=KronosTrainingConfig.model_fields["accept_history"].description)

    def groups(self) -> list[str]:
        """Return the given symbols or those of the data folder, and the name of the adapter."""
        if self.tickers:
            return [ticker.upper() for ticker in self.tickers] + ([self.adapter_name] if self.adapter_name else [])
        flags = self.model_dump(include=set(ReadingSettings.model_fields), exclude_none=True)
        return folder_groups(Path(self.data_dir), ReadingSettings.model_validate(flags), self.adapter_name)

    def find_files(self, layout: ArtifactLayout) -> CsvFolder:
        """Find the CSVs of the data folder, and print what is to be known about them.

        Raises:
            DataError: the folder does not exist, cannot be read, or has no CSV.
        """
        from kronos_pipeline.data.csv_files import find_csv_files
        from kronos_pipeline.data.vanished import find_vanished

        found = find_csv_files(Path(self.data_dir), self._last_recipe(layout).reading)
        folder = find_vanished(found, layout, accept_history=self.accept_history)
        for note in folder.notes:
            print(note)
        return folder

    def read_tickers(
        self, layout: ArtifactLayout, folder: CsvFolder
    ) -> tuple[dict[str, Recipe], dict[str, Bars], dict[str, KronosError]]:
        """Read changed CSVs of the tickers as in their last evaluation; flags override its settings.

        Returns:
            The settings and the bars of each valid ticker, and the error of each ticker that is invalid. A ticker whose
            last evaluation is damaged has the settings of the last evaluation of all tickers, and a line says so.
        """
        from kronos_pipeline.data.bar_cache import read_files_cached

        recipes: dict[str, Recipe] = {}
        symbols = self.symbols(folder)
        errors: dict[str, KronosError] = {name: folder.vanished[name] for name in symbols if name in folder.vanished}
        damaged: list[tuple[str, str]] = []
        for ticker in (symbol for symbol in symbols if symbol not in errors):
            try:
                recipes[ticker] = self.recipe_of(layout, ticker)
            except ArtifactError as error:
                recipes[ticker] = self._last_recipe(layout)
                damaged.append((ticker, f"read with the settings of the last evaluation of all tickers, as {error}"))
        for line in group_messages(damaged):
            print(line)
        tickers_by_reading: dict[str, list[str]] = {}
        for ticker, recipe in recipes.items():
            tickers_by_reading.setdefault(recipe.reading.model_dump_json(), []).append(ticker)
        bars: dict[str, Bars] = {}
        for tickers in tickers_by_reading.values():
            files, reading = [folder.file(ticker) for ticker in tickers], recipes[tickers[0]].reading
            read, failed, _ = read_files_cached(files, layout.bars, reading, accept_history=self.accept_history)
            bars |= read
            errors |= failed
        return {ticker: recipe for ticker, recipe in recipes.items() if ticker in bars}, bars, errors

    def symbols(self, folder: CsvFolder) -> list[str]:
        """Return the given symbols in upper case without repetition, or all symbols of a folder, vanished ones too."""
        return list(dict.fromkeys(map(str.upper, self.tickers))) or sorted({*folder.files, *folder.vanished})

    def recipe_of(self, layout: ArtifactLayout, ticker: str) -> Recipe:
        """Return the settings of the ticker's last evaluation, if there is one, overridden by the flags."""
        from kronos_pipeline.artifacts import read_json

        evaluation = layout.ticker_metrics(ticker)
        return self._with_flags(read_json(evaluation)["manifest"] if evaluation.is_file() else {})

    def _last_recipe(self, layout: ArtifactLayout) -> Recipe:
        """Return the settings of the last evaluation of all tickers; if it is gone, of the last one of a ticker."""
        from kronos_pipeline.artifacts import read_json
        from kronos_pipeline.evaluation.scoring.report import load_evaluation

        if (evaluation := load_evaluation(layout, print)) is not None:
            return self._with_flags(evaluation["manifest"])
        for path in sorted(layout.evaluation.parent.glob("*.json"), key=lambda path: -path.stat().st_mtime):
            with suppress(ArtifactError, KeyError):  # damaged, or no evaluation
                return self._with_flags(read_json(path)["manifest"])
        return self._with_flags({})

    def _with_flags(self, manifest: Mapping[str, Any]) -> Recipe:
        evaluated = manifest.get("config", {})  # an evaluation of runs that differ has none
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
