"""Base of all commands: flags from a pydantic class, and readable errors."""

from __future__ import annotations

import atexit
import gc
import io
import os
import sys
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar, get_args

from pydantic import AliasChoices, BaseModel, Field, ValidationError
from pydantic_settings import CliApp, CliPositionalArg, CliSettingsSource, SettingsConfigDict, SettingsError

from kronos_pipeline.cli import OUTPUT_CLOSED
from kronos_pipeline.cli.help import FlagHelp
from kronos_pipeline.config import EnvironmentDefaults, Role
from kronos_pipeline.errors import KronosError, is_plain_text, printable_text
from kronos_pipeline.training.progress import status

FAILED = 2
"""The exit code of bad input."""

CLI = SettingsConfigDict(cli_kebab_case=True, cli_implicit_flags=True, cli_hide_none_type=True, cli_avoid_json=True)
"""Format of flags: `--data-dir`, and `--torch-compile/--no-torch-compile` for a switch."""

_POSITIONAL = get_args(CliPositionalArg[str])[1]
"""The mark of a positional argument, in the metadata of its field."""


def verbose_flag(description: str) -> Any:
    """Build the flag -v or --verbose."""
    return Field(False, description=description, validation_alias=AliasChoices("verbose", "v"))


class Command(EnvironmentDefaults):
    """A command: the fields are its flags, the docstring is its description, `run` executes it."""

    relevant: ClassVar[Role | None] = None
    """The roles of the settings that matter to the command; None for all."""

    shares: ClassVar[bool] = False
    """Whether the command works on artifacts that machines may share, see `artifact_store`."""
    makes_anew: ClassVar[bool] = False
    """Whether the command makes artifacts that are damaged in the store anew."""

    def run(self) -> int:
        """Execute the command, and return the exit code."""
        raise NotImplementedError

    def groups(self) -> list[str] | None:
        """Return the tickers and adapters that a command which shares artifacts needs; None for all."""
        return None

    def run_shared(self) -> int:
        """Execute the command between the fetching of newer artifacts from the store, if one is set, and the delivery.

        Return the exit code of the command, or 2 if artifacts could not be fetched or delivered.
        """
        if not self.shares or not os.environ.get("KRONOS_ARTIFACT_STORE"):
            return self.run()
        from kronos_pipeline.artifact_store.sharing import shared_artifacts

        fields: Any = self
        root = Path(fields.output_dir)
        with shared_artifacts(root, self.groups(), refuse=not self.makes_anew) as sharing:
            code = self.run()
        return code or (FAILED if sharing.errors else 0)


def run_command(command: type[Command], arguments: Sequence[str] | None) -> int:
    """Parse flags, run a command, and print errors on stderr without a traceback.

    Args:
        command: the command's class.
        arguments: the words after the program's name; by default those of the process.

    Returns:
        The exit code: 0, 2 for an error that the user can fix, or 130 if the output pipe was closed.
    """
    tune_garbage_collection()
    argument_list = list(sys.argv[1:] if arguments is None else arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Show progress at once, even in a pipe; a terminal without Unicode gets escapes.
        sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    if unclear := [word for word in argument_list if not is_plain_text(word)]:
        return _fail([f"{unclear[0]!r} holds a line break or a character that cannot be printed; leave that out"])
    try:
        parsed = _parse(command, argument_list)
        with status():
            return parsed.run_shared()
    except SystemExit as ended:  # --help
        return int(ended.code or 0)
    except SettingsError as error:
        return _fail([f"{str(error).removeprefix('error parsing CLI: ')} (--help lists the flags)"])
    except ValidationError as error:
        return _fail([_sentence(command, details) for details in error.errors()])
    except KronosError as error:
        return _fail(str(error).split("\n"))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # also for Python's flush at exit
        return OUTPUT_CLOSED
    except OSError as error:
        return _fail([_system_sentence(error)])


def _parse(command: type[Command], arguments: list[str]) -> Command:
    """Parse the flags of a command; `--help` prints them and raises SystemExit."""
    format_help = partial(FlagHelp, relevant=command.relevant)
    settings: Any = command  # a model serves as settings; pydantic's hints know only its own class
    flags: CliSettingsSource[Any] = CliSettingsSource(settings, cli_exit_on_error=False, formatter_class=format_help)
    return CliApp.run(command, cli_args=arguments, cli_settings_source=flags, cli_exit_on_error=False)


@cache
def tune_garbage_collection() -> None:
    """Run Python's cyclic garbage collector less often, and not at exit.

    It would traverse the half million objects of torch, MLflow and other imports repeatedly and once more at exit: a
    third of the time of a short command. Tensors and frames are freed by reference counting.
    """
    gc.set_threshold(10_000, *gc.get_threshold()[1:])
    atexit.register(gc.freeze)


def _sentence(command: type[Command], error: Any) -> str:
    """Format a validation error of pydantic with the flag's name."""
    flags = _flag_names(command, [part for part in error["loc"] if isinstance(part, str)])[-1:]
    value = f" (found {error['input']!r})" if not isinstance(error["input"], dict | BaseModel) else ""
    return f"{' '.join(flags)}{': ' if flags else ''}{error['msg'].removeprefix('Value error, ')}{value}"


def _flag_names(command: type[BaseModel], location: Sequence[str]) -> list[str]:
    """Return the names of subcommands and flags at a location; a positional argument has its plain name."""
    names = []
    for part in location:
        field = command.model_fields.get(part)
        positional = field is not None and _POSITIONAL in field.metadata
        names.append(part if positional else f"--{part.replace('_', '-')}")
        types = get_args(field.annotation) if field is not None else ()
        command = next((kind for kind in types if isinstance(kind, type) and issubclass(kind, Command)), command)
    return names


def _system_sentence(error: OSError) -> str:
    """Format an error of the operating system, such as a folder that the user may not read, with its file."""
    reason = error.strerror or str(error) or type(error).__name__
    return reason if error.filename is None else f"{os.fsdecode(error.filename)}: {reason}"


def _fail(lines: Sequence[str]) -> int:
    for line in lines:
        print(f"error: {printable_text(line)}", file=sys.stderr)
    return FAILED
