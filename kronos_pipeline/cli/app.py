"""The console script `kronos`: every command of the project under one name."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field
from pydantic_settings import CliSubCommand, SettingsConfigDict, get_subcommand

from kronos_pipeline.cli.backtest import Backtest
from kronos_pipeline.cli.check_blind import CheckBlind
from kronos_pipeline.cli.command import CLI, Command, run_command
from kronos_pipeline.cli.doctor import Doctor
from kronos_pipeline.cli.drift import Drift
from kronos_pipeline.cli.forecast import Forecast
from kronos_pipeline.cli.pretrain import Pretrain
from kronos_pipeline.cli.promote import Promote, Rollback
from kronos_pipeline.cli.simulate import Simulate
from kronos_pipeline.cli.train import Train


class Kronos(Command):
    """Fine-tune the Kronos candlestick model on your own CSVs, per ticker, and measure it on days it has never seen."""

    model_config = SettingsConfigDict(cli_prog_name="kronos", extra="forbid", **CLI)

    train: CliSubCommand[Train] = Field(description="fine-tune on a folder of CSVs, and evaluate")
    backtest: CliSubCommand[Backtest] = Field(description="train and score at past cutoffs")
    forecast: CliSubCommand[Forecast] = Field(description="forecast a ticker's next bars by its champion")
    drift: CliSubCommand[Drift] = Field(description="compare champions' errors on new bars with their evidence")
    promote: CliSubCommand[Promote] = Field(description="make a registered version the champion")
    rollback: CliSubCommand[Rollback] = Field(description="restore the previous champion")
    check_blind: CliSubCommand[CheckBlind] = Field(
        alias="check-blind", description="show that training does not depend on the holdout"
    )
    pretrain: CliSubCommand[Pretrain] = Field(description="make a small base model from simulated bars")
    simulate: CliSubCommand[Simulate] = Field(description="write simulated tickers as CSVs")
    doctor: CliSubCommand[Doctor] = Field(description="check whether a folder of CSVs is fit and has enough data")

    def run(self) -> int:
        """Run the subcommand."""
        command = get_subcommand(self, cli_exit_on_error=False)
        assert isinstance(command, Command)
        return command.run()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `kronos` and return its exit code: 0, or 2 if anything was wrong."""
    return run_command(Kronos, arguments)
