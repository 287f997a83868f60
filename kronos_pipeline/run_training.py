"""The entry of the plain command; `kronos train` is the same.

    python -m kronos_pipeline.run_training --data-dir trainingdata --output-dir artifacts

The Dagster assets do the same through the same functions.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from kronos_pipeline.cli import run_entry


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, or 2 if anything was wrong."""
    return run_entry("kronos_pipeline.cli.train", arguments)


if __name__ == "__main__":
    sys.exit(main())
