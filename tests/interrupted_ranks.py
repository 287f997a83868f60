"""Processes of a training by torchrun that a test interrupts.

- In a training from step 0, process 0 sends SIGUSR1 to Dagster's process before a step, and waits for its own SIGINT.
- With the variable KILLED, each process ends by SIGKILL as its training begins.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kronos_pipeline.orchestration import training_process

if TYPE_CHECKING:
    from kronos_pipeline.training.loop import TrainingLoop

DAGSTER, PIDS, KILLED = "KRONOS_TEST_DAGSTER", "KRONOS_TEST_PIDS", "KRONOS_TEST_KILLED"
"""Variables: the number of Dagster's process; the folder with a file for each process that has trained; see above."""
TOLD_AT = 5


def _tell_at_a_step() -> None:
    from kronos_pipeline.training.loop import TrainingLoop

    plain_step = TrainingLoop._step

    def step_or_tell(self: TrainingLoop, *arguments: Any) -> None:
        step, first = self._state.step, vars(self).setdefault("first", self._state.step)
        (Path(os.environ[PIDS]) / str(os.getpid())).touch()
        if os.environ["RANK"] == "0" and first == 0 and step == TOLD_AT:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            os.kill(int(os.environ[DAGSTER]), signal.SIGUSR1)
            signal.sigwait({signal.SIGINT})
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            signal.raise_signal(signal.SIGINT)
        plain_step(self, *arguments)

    setattr(TrainingLoop, "_step", step_or_tell)  # noqa: B010 - mypy takes no other method there


def _die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    if KILLED in os.environ:
        setattr(training_process, "_train_first", _die)  # noqa: B010 - as above
    elif "RANK" in os.environ:
        _tell_at_a_step()
    sys.exit(training_process.main())
