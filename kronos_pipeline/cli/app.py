"""The console script `kronos`: every command of the project under one name.

The module of a subcommand is imported if the subcommand is called.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, cast

from pydantic import Field, create_model
from pydantic_settings import CliSubCommand, SettingsConfigDict, get_subcommand

from kronos_pipeline.cli.command import CLI, FAILED, Command, run_command
from kronos_pipeline.cli.overview import SUBCOMMANDS, overview, unknown_command, version_line


class Kronos(Command):
    """Fine-tune the Kronos candlestick model on your own CSVs, per ticker, and measure it on days it has never seen."""

    model_config = SettingsConfigDict(cli_prog_name="kronos", extra="forbid", **CLI)

    def run_shared(self) -> int:
        """Run the subcommand."""
        return cast(Command, get_subcommand(self, cli_exit_on_error=False)).run_shared()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `kronos` and return its exit code: 0, or 2 if anything was wrong."""
    command_line = _read_bare_columns(sys.argv[1:] if arguments is None else arguments)
    first = command_line[0] if command_line else "--help"
    if first in SUBCOMMANDS:
        return run_command(_with_subcommand(first), command_line)
    if first in ("--help", "-h"):
        print(overview())
    elif first == "--version":
        print(version_line())
    else:
        print(f"error: {unknown_command(first)}", file=sys.stderr)
        return FAILED
    return 0


def _with_subcommand(name: str) -> type[Kronos]:
    """Return `Kronos` with a field for a subcommand, from which pydantic makes the parser."""
    subcommand_of: Any = CliSubCommand  # mypy knows no classes that are chosen at run time
    module, class_name, help_line = SUBCOMMANDS[name]
    command = getattr(import_module(f"kronos_pipeline.cli.{module}"), class_name)
    alias = name if "-" in name else None
    field = subcommand_of[command], Field(alias=alias, description=help_line)
    fields: dict[str, Any] = {name.replace("-", "_"): field}
    kronos = create_model("Kronos", __base__=Kronos, __doc__=Kronos.__doc__, **fields)
    kronos.relevant = command.relevant
    return kronos


def _read_bare_columns(arguments: Sequence[str]) -> list[str]:
    """Replace `--columns` without a value by `--list-columns`: a flag of argparse has a value always or never."""
    followers = [*arguments[1:], "--"]
    return [
        "--list-columns"
        if arguments[0] == "doctor" and argument == "--columns" and follower.startswith("--")
        else argument
        for argument, follower in zip(arguments, followers, strict=False)
    ]
