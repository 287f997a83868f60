"""`kronos check-blind`: show on the user's data that no result of training depends on the holdout."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from kronos_pipeline.cli.command import FAILED, Command
from kronos_pipeline.config import KronosTrainingConfig, Role
from kronos_pipeline.errors import DataError

if TYPE_CHECKING:
    from kronos_pipeline.data.windows import WindowSet
    from kronos_pipeline.evaluation.leakage_test import LeakageResult


class CheckBlind(Command, KronosTrainingConfig):
    """Train on a folder of CSVs as `train` does, then again with noise instead of every holdout bar.

    Compare the weights and all other inputs of forecasts byte by byte. It takes twice as long as the training, and its
    files are removed from the output folder at the end.
    """

    relevant: ClassVar[Role | None] = ~(Role.EVALUATION | Role.DECISION | Role.FORECAST)

    deterministic: bool = Field(
        True,
        description="use only deterministic algorithms on a GPU; without them, no two trainings on a GPU are equal",
    )

    def run(self) -> int:
        """Train twice, and print the comparison; return 2 if a file differs."""
        # Imported here, so that --help does not wait for slow imports.
        from kronos_pipeline.atomic_writes import check_writable
        from kronos_pipeline.evaluation.leakage_test import check_leakage

        windows, skipped = _cut(self)
        output = Path(self.output_dir)
        check_writable(output)
        with tempfile.TemporaryDirectory(prefix="check-blind-", dir=output) as folder:
            result = check_leakage(windows, self, Path(folder), say=print)
        holdout = sum(len(ticker.bars) - ticker.holdout_start for ticker in windows)
        problems = _problems(result)
        for file in result.files:
            print(f"{'differs' if file in result.differing else 'same'}  {file}")
        if not problems:
            print(
                f"blind: no byte of {len(result.files)} files depends on the {holdout:,} holdout bars of "
                f"{len(windows)} ticker{'s' if len(windows) > 1 else ''}"
            )
        for problem in (*skipped, *problems):
            print(f"error: {problem}", file=sys.stderr)
        return FAILED if skipped or problems else 0


def _cut(config: KronosTrainingConfig) -> tuple[list[WindowSet], list[str]]:
    """Cut the windows of every ticker with enough bars, and return the problems of the others."""
    from kronos_pipeline.data.ingest import read_folder
    from kronos_pipeline.data.windows import build_windows

    bars, bad_files = read_folder(Path(config.data_dir), config.reading)
    errors, windows = list(bad_files.values()), []
    for ticker_bars in bars.values():
        try:
            windows.append(build_windows(ticker_bars, config.recipe))
        except DataError as error:
            errors.append(error)
    if not windows:
        raise DataError([problem for error in errors for problem in error.problems])
    return windows, [line for error in errors for line in str(error).splitlines()]


def _problems(result: LeakageResult) -> list[str]:
    if result.blind:
        return []
    files = ", ".join(result.differing)
    if not result.repeatable:
        return [
            f"{files}: differ between two trainings on the same data, so the test of the holdout is not conclusive: a "
            "training on this device is not repeatable. Use --deterministic, or --device cpu."
        ]
    return [
        f"{files}: differ with noise in place of the holdout, so the run has read the holdout. Do not trust its "
        "scores; report this error, with the settings."
    ]
