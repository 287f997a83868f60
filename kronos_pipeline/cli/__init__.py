"""The command line: a module per subcommand of `kronos`."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from kronos_pipeline.signals import Interrupted, raise_interrupts

OUTPUT_CLOSED = 130
"""The exit code of a command whose output pipe was closed."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `kronos` and return its exit code; the console script calls it."""
    return run_entry("kronos_pipeline.cli.app", arguments)


def run_entry(module: str, arguments: Sequence[str] | None = None) -> int:
    """Import a module, which may take a moment, and run its `main`; a signal ends either with a line on stderr."""
    with raise_interrupts() as signals:
        try:
            exit_code: int = importlib.import_module(module).main(arguments)
        except BaseException as error:
            if signals.received is None:
                raise
            return _end_interrupted(signals.received, getattr(error, "__notes__", ()))
        if signals.received is not None and exit_code != 0:
            return _end_interrupted(signals.received)  # a library turned the signal into an error of its own
    return exit_code


def _end_interrupted(number: int, notes: Sequence[str] = ()) -> int:
    """Say what was saved and how to go on, and return the exit code."""
    done = "; ".join(notes) or "what had ended is kept"
    if os.environ.get("RANK", "0") == "0":
        print(f"interrupted: {done}; the same command goes on from there", file=sys.stderr)
    return Interrupted(number).exit_code
