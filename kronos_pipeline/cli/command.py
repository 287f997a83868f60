"""What the project's commands share: flags made from a pydantic class, and errors that people can read."""

from __future__ import annotations

import atexit
import gc
import io
import os
import sys
from collections.abc import Sequence
from functools import cache
from typing import Any

from pydantic import BaseModel, ValidationError, model_validator
from pydantic_settings import CliApp, SettingsConfigDict, SettingsError

from kronos_pipeline.config import environment_settings
from kronos_pipeline.errors import KronosError

FAILED = 2
"""The exit code of bad input."""
INTERRUPTED = 130
"""The exit code of Ctrl-C, by the shell's custom, and of a reader that went away."""

CLI = SettingsConfigDict(cli_kebab_case=True, cli_implicit_flags=True, cli_hide_none_type=True, cli_avoid_json=True)
"""How a command's class becomes flags: `--data-dir`, and `--torch-compile/--no-torch-compile` for a switch."""


class Command(BaseModel):
    """A command: its fields are its flags, its docstring its description, `run` what it does."""

    @model_validator(mode="before")
    @classmethod
    def _settings_of_the_environment(cls, given: Any) -> Any:
        """A flag counts before the environment, and the environment before a default."""
        found = {field: value for field, value in environment_settings().items() if field in cls.model_fields}
        return {**found, **given} if isinstance(given, dict) else given

    def run(self) -> int:
        """Do it, and return the exit code."""
        raise NotImplementedError


def run_command(command: type[Command], arguments: Sequence[str] | None) -> int:
    """Parse flags, run a command, and tell errors on stderr, plain and without a traceback.

    Args:
        command: the command's class.
        arguments: the words after the program's name; by default the process's own.

    Returns:
        The exit code: 0, 2 for what a person can mend, or 130 for an interrupt.
    """
    tune_garbage_collection()
    words = list(sys.argv[1:] if arguments is None else arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # a line of progress is no use when the run is over
    try:
        return CliApp.run(command, cli_args=words, cli_exit_on_error=False).run()
    except SystemExit as ended:  # --help
        return int(ended.code or 0)
    except SettingsError as error:
        return _fail([f"{str(error).removeprefix('error parsing CLI: ')} (--help lists the flags)"])
    except ValidationError as error:
        return _fail([_sentence(one) for one in error.errors()])
    except KronosError as error:
        return _fail(str(error).splitlines())
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what Python would write at its exit, too
        return INTERRUPTED
    except KeyboardInterrupt:
        print("interrupted: the same command goes on where it was", file=sys.stderr)
        return INTERRUPTED


@cache
def tune_garbage_collection() -> None:
    """Let Python look for garbage that holds itself less often, and not once more as it ends.

    It would walk again and again through the half million objects that torch, MLflow and the like make as they are
    imported, and through all of them at the end: a third of what a short command takes. Tensors and frames do not wait
    for it, they are freed when nothing holds them any more.
    """
    gc.set_threshold(10_000, *gc.get_threshold()[1:])
    atexit.register(gc.freeze)


def _sentence(error: Any) -> str:
    """One validation error of pydantic's, with the flag's name."""
    flags = [f"--{part.replace('_', '-')}" for part in error["loc"] if isinstance(part, str)][-1:]
    found = f" (found {error['input']!r})" if not isinstance(error["input"], dict | BaseModel) else ""
    return f"{' '.join(flags)}{': ' if flags else ''}{error['msg'].removeprefix('Value error, ')}{found}"


def _fail(lines: Sequence[str]) -> int:
    for line in lines:
        print(f"error: {line}", file=sys.stderr)
    return FAILED
