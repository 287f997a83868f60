"""The entry of the plain command; `kronos train` is the same.

    python -m kronos_pipeline.run_training --data-dir trainingdata --output-dir artifacts

The Dagster assets do the same through the same functions.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pydantic_settings import SettingsConfigDict

from kronos_pipeline.cli.command import CLI, run_command
from kronos_pipeline.cli.train import Train


class RunTraining(Train):
    """Fine-tune a Kronos base model on a folder of CSVs, one per ticker.

    Measure it on each ticker's last days, which it has never seen.
    """

    model_config = SettingsConfigDict(cli_prog_name="python -m kronos_pipeline.run_training", extra="forbid", **CLI)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, or 2 if anything was wrong."""
    return run_command(RunTraining, arguments)


if __name__ == "__main__":
    sys.exit(main())
