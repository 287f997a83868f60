"""The console script `kronos`: every command of the project under one name.

The module of a subcommand is imported if the subcommand is called, or if the help lists all of them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from pydantic import Field, create_model
from pydantic_settings import CliSubCommand, SettingsConfigDict, get_subcommand

from kronos_pipeline.cli.command import CLI, Command, run_command

SUBCOMMANDS = {
    "train": ("train", "Train", "fine-tune on a folder of CSVs, and evaluate"),
    "backtest": ("backtest", "Backtest", "train and score at past cutoffs"),
    "forecast": ("forecast", "Forecast", "forecast a ticker's next bars by its champion"),
    "record": ("record", "Record", "score the forecasts that were issued, on the bars that came since"),
    "drift": ("drift", "Drift", "compare champions' errors on new bars with their evidence"),
    "promote": ("promote", "Promote", "make a registered version the champion"),
    "rollback": ("promote", "Rollback", "restore the previous champion"),
    "check-blind": ("check_blind", "CheckBlind", "show that training does not depend on the holdout"),
    "pretrain": ("pretrain", "Pretrain", "make a small base model from simulated bars"),
    "simulate": ("simulate", "Simulate", "write simulated tickers as CSVs"),
    "doctor": ("doctor", "Doctor", "check whether a folder of CSVs is fit and has enough data"),
}
"""Module, class and help line of each subcommand."""


class Kronos(Command):
    """Fine-tune the Kronos candlestick model on your own CSVs, per ticker, and measure it on days it has never seen."""

    model_config = SettingsConfigDict(cli_prog_name="kronos", extra="forbid", **CLI)

    def run(self) -> int:
        """Run the subcommand."""
        command = get_subcommand(self, cli_exit_on_error=False)
        assert isinstance(command, Command)
        return command.run()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `kronos` and return its exit code: 0, or 2 if anything was wrong."""
    command_line = _read_bare_columns(sys.argv[1:] if arguments is None else arguments)
    names = [word for word in command_line[:1] if word in SUBCOMMANDS]
    return run_command(_with_subcommands(names or list(SUBCOMMANDS)), command_line)


def _with_subcommands(names: Sequence[str]) -> type[Kronos]:
    """Return `Kronos` with a field for each of some subcommands, from which pydantic makes the parser."""
    subcommand_of: Any = CliSubCommand  # mypy knows no classes that are chosen at run time
    fields: dict[str, Any] = {}
    for name in names:
        module, class_name, help_line = SUBCOMMANDS[name]
        command = getattr(import_module(f"kronos_pipeline.cli.{module}"), class_name)
        alias = name if "-" in name else None
        fields[name.replace("-", "_")] = subcommand_of[command], Field(alias=alias, description=help_line)
    return create_model("Kronos", __base__=Kronos, __doc__=Kronos.__doc__, **fields)


def _read_bare_columns(arguments: Sequence[str]) -> list[str]:
    """Replace `--columns` without a value by `--list-columns`: a flag of argparse has a value always or never."""
    followers = [*arguments[1:], "--"]
    return [
        "--list-columns"
        if arguments[0] == "doctor" and argument == "--columns" and follower.startswith("--")
        else argument
        for argument, follower in zip(arguments, followers, strict=False)
    ]
