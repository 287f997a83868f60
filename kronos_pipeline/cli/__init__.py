"""The command line: a module per subcommand of `kronos`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

INTERRUPTED = 130
"""The exit code of Ctrl-C, by shell convention, and of a closed output pipe."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `kronos` and return its exit code; the console script calls it."""
    return run_entry("kronos_pipeline.cli.app", arguments)


def run_entry(module: str, arguments: Sequence[str] | None = None) -> int:
    """Import a module, which may take a moment, and run its `main`; Ctrl-C ends either without a traceback."""
    try:
        exit_code: int = importlib.import_module(module).main(arguments)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    return exit_code
