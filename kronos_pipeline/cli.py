"""The console script `kronos`: every command of the project under one name."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from pydantic import Field
from pydantic_settings import CliSubCommand, SettingsConfigDict, get_subcommand

from kronos_pipeline.command_line import CLI, FAILED, Command, run_command
from kronos_pipeline.commands.backtest import Backtest
from kronos_pipeline.commands.check_blind import CheckBlind
from kronos_pipeline.commands.forecast import Forecast
from kronos_pipeline.commands.promote import Promote, Rollback
from kronos_pipeline.config import KronosTrainingConfig, Recipe
from kronos_pipeline.run_training import train
from kronos_pipeline.training.pretrain_settings import PretrainSettings


class TrainCommand(Command, KronosTrainingConfig):
    """Fine-tune a base model on a folder of CSVs and measure it on each ticker's last days, which it has never seen."""

    def run(self) -> int:
        return train(self)


class Pretrain(Command, PretrainSettings):
    """Make a small base model from simulated bars: the tokenizer first, then the predictor. It is no forecaster of real
    markets; kronos-nano was made so."""

    output: str = Field("nano", description="folder that gets tokenizer/ and predictor/")

    def run(self) -> int:
        from kronos_pipeline.training.pretrain import pretrain

        pretrain(Path(self.output), PretrainSettings.model_validate(self.model_dump(exclude={"output"})))
        print(f"base model {self.output}: use it as --model-name {self.output}")
        return 0


class Simulate(Command):
    """Write simulated tickers as CSVs, `<data-dir>/<TICKER>/<TICKER>.csv`; the same flags write the same bytes."""

    data_dir: str = Field("simulated", description="folder for the CSVs [environment: KRONOS_DATA_DIR]")
    tickers: Optional[list[str]] = Field(
        None, min_length=1, description="symbols (comma-separated); by default those of trainingdata/"
    )
    bars: int = Field(1000, ge=2, description="bars per ticker")
    seed: int = Field(2026, ge=0, description="seed of the bars; a ticker's bars depend on it and on the symbol alone")

    def run(self) -> int:
        from kronos_pipeline.data.simulate import SHIPPED_TICKERS, write_simulated

        tickers = self.tickers or SHIPPED_TICKERS
        paths = write_simulated(Path(self.data_dir), tickers=tickers, bars=self.bars, seed=self.seed)
        print(f"{len(paths)} simulated tickers in {self.data_dir}; they are no market data")
        return 0


class Doctor(Command, Recipe):
    """Say whether a folder of CSVs is fit for training, and whether it is enough: every bad line with its file, line
    and column, and the windows that the settings cut. Nothing is written."""

    data_dir: str = Field(
        "trainingdata", description="folder with one CSV per ticker, at any depth [environment: KRONOS_DATA_DIR]"
    )

    def run(self) -> int:
        from rich.console import Console

        from kronos_pipeline.data.doctor import doctor_table, examine_folder

        report = examine_folder(Path(self.data_dir), Recipe.model_validate(self.model_dump(exclude={"data_dir"})))
        Console().print(doctor_table(report))
        print("\n".join(report.lines()))
        return 0 if report.fit else FAILED


class Kronos(Command):
    """Fine-tune the Kronos candlestick model on your own CSVs, per ticker, and measure it on days it has never seen."""

    model_config = SettingsConfigDict(cli_prog_name="kronos", extra="forbid", **CLI)

    train: CliSubCommand[TrainCommand] = Field(description="fine-tune on a folder of CSVs, and evaluate")
    backtest: CliSubCommand[Backtest] = Field(description="train and score anew at one cutoff after another")
    forecast: CliSubCommand[Forecast] = Field(description="forecast a ticker's next bars by its champion")
    promote: CliSubCommand[Promote] = Field(description="make a registered version the champion")
    rollback: CliSubCommand[Rollback] = Field(description="make the champion before it champion again")
    check_blind: CliSubCommand[CheckBlind] = Field(
        alias="check-blind", description="show that training does not depend on the holdout"
    )
    pretrain: CliSubCommand[Pretrain] = Field(description="make a small base model from simulated bars")
    simulate: CliSubCommand[Simulate] = Field(description="write simulated tickers as CSVs")
    doctor: CliSubCommand[Doctor] = Field(description="say whether a folder of CSVs is fit, and enough")

    def run(self) -> int:
        command = get_subcommand(self, cli_exit_on_error=False)
        assert isinstance(command, Command)
        return command.run()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `kronos` and return its exit code: 0, or 2 where anything was wrong."""
    return run_command(Kronos, arguments)


if __name__ == "__main__":
    sys.exit(main())
