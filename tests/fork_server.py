"""Process that imports the project once, and runs each command in a fork of itself.

Reads a line of JSON per command: {"arguments": [...], "output": path}; answers with the exit code, or minus the signal.
"""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module

_MODULES = (
    "kronos_pipeline.cli.app",
    "kronos_pipeline.cli.train",
    "kronos_pipeline.cli.backtest",
    "kronos_pipeline.cli.forecast",
    "kronos_pipeline.cli.promote",
    "kronos_pipeline.pipeline.run",
    "kronos_pipeline.pipeline.promote",
    "kronos_pipeline.promotion.champion_forecast",
    "kronos_pipeline.training.trainer",
    "kronos_pipeline.tracking.packaging",
    "mlflow.pyfunc",
    "matplotlib.pyplot",
)
"""The modules of the commands with their packages; a command imports what is missing here."""


def main() -> None:
    """Serve until the input ends."""
    for module in _MODULES:
        import_module(module)
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            _become_command(request["arguments"], request["output"])
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _become_command(arguments: list[str], output: str) -> None:
    from kronos_pipeline.cli.app import main as kronos

    opened = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for descriptor, replacement in ((0, os.open(os.devnull, os.O_RDONLY)), (1, opened), (2, opened)):
        os.dup2(replacement, descriptor)
    sys.exit(kronos(arguments))


if __name__ == "__main__":
    main()
