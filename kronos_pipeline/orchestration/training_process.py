"""A process of a training that several processes share, such as one per GPU; Dagster's Pipes start it by torchrun.

    process of the run -> Pipes -> this module, which becomes torchrun -> this module, once for each process

The first process reports lines and the MLflow run through Pipes. Each process writes how it ended into a file, because
torchrun's exit code does not tell an error from a kill.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from dagster_pipes import PipesContext, PipesDefaultContextLoader, PipesEnvVarParamsLoader, open_dagster_pipes

from kronos_pipeline.errors import DataError, KronosError, Problem, first_sentence
from kronos_pipeline.signals import Interrupted, end_with_parent, raise_interrupts

if TYPE_CHECKING:
    from kronos_pipeline.data.windows import WindowSet

MODULE = "kronos_pipeline.orchestration.training_process"
_FAILED = 2


@dataclass(frozen=True)
class Job:
    """Training that several processes share.

    Attributes:
        recipe: the settings, as plain data.
        output_dir: folder of artifacts; it has the windows of each ticker.
        tickers: the tickers to train on.
        requested: time at which the run was asked for, in seconds since 1970, or None.
        tracking_uri, ui_address: as in the resource `Tracking`.
        tags: tags of the MLflow run.
        endings: folder for the records of how the processes ended; `torchrun.run_by_torchrun` makes it.
    """

    recipe: Mapping[str, Any]
    output_dir: str
    tickers: Sequence[str]
    requested: float | None
    tracking_uri: str | None
    ui_address: str | None
    tags: Mapping[str, str]
    endings: str = ""


@dataclass(frozen=True)
class Ending:
    """How a process ended.

    Attributes:
        kind: the name of the exception's class; "" for a process that has not recorded its end, as it was killed.
        text: the message of the exception.
        problems: the problems of a DataError, as plain data.
        expected: whether the exception is a KronosError or an interrupt.
    """

    kind: str = ""
    text: str = ""
    problems: Sequence[Mapping[str, Any]] = ()
    expected: bool = False

    @classmethod
    def of(cls, error: BaseException) -> Ending:
        """Return the ending by an exception."""
        problems = [asdict(problem) for problem in error.problems] if isinstance(error, DataError) else []
        expected = isinstance(error, KronosError | Interrupted)
        return cls(type(error).__name__, str(error) if expected else first_sentence(error), problems, expected)

    def error(self) -> KronosError | None:
        """Return the KronosError that ended the process, of its own class; None if something else did."""
        if self.kind == DataError.__name__:
            problems = [Problem(**{**problem, "lines": tuple(problem["lines"])}) for problem in self.problems]
            return DataError(problems)
        kinds = {kind.__name__: kind for kind in _subclasses(KronosError)}
        return kinds[self.kind](self.text) if self.kind in kinds else None


def read_endings(folder: Path) -> dict[int, Ending]:
    """Return the endings of the processes that did not end well, by rank."""
    return {int(path.stem): Ending(**json.loads(path.read_text())) for path in sorted(folder.glob("*.json"))}


def main() -> int:
    """Train in a process that torchrun started, else become torchrun, with the arguments of this process."""
    end_with_parent()
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        _become_torchrun()
    return _train()


def _become_torchrun() -> NoReturn:
    os.setsid()  # Ctrl-C in a terminal reaches Dagster's process alone, which passes it on once
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", *sys.argv[1:]]
    os.execv(sys.executable, torchrun)  # noqa: S606 - a command of this project, without a shell


def _train() -> int:
    """Train in this process and its peers, and return the exit code."""
    rank = int(os.environ["RANK"])
    loader = PipesEnvVarParamsLoader()  # type: ignore[no-untyped-call]
    with PipesDefaultContextLoader().load_context(loader.load_context_params()) as context:
        job = Job(**(context["extras"] or {}))
    record = Path(job.endings) / f"{rank}.json"
    _write(record, Ending())
    pipes = open_dagster_pipes() if rank == 0 else None
    try:
        with raise_interrupts():
            _train_first(job, pipes) if pipes else _train_other(job)
        record.unlink()
        return 0
    except Interrupted as interrupt:
        _write(record, Ending.of(interrupt))
        for note in getattr(interrupt, "__notes__", ()):
            if pipes:
                pipes.log.warning(f"Interrupted: {note}; the next run goes on from there.")
        return interrupt.exit_code
    except Exception as error:
        _write(record, Ending.of(error))
        if not isinstance(error, KronosError):
            traceback.print_exc()
        return _FAILED
    finally:
        if pipes:
            pipes.close()
        _leave_group()


def _train_first(job: Job, pipes: PipesContext) -> None:
    """Train as the first process, which logs to MLflow, publishes and reports."""
    from kronos_pipeline.artifacts import MANIFEST, read_json
    from kronos_pipeline.pipeline.train import Trained, run_trainings
    from kronos_pipeline.tracking.runs import Tracker
    from kronos_pipeline.training.trainer import KronosTrainer

    recipe, root, windows = _inputs(job)
    tracker = Tracker(job.tracking_uri, root, job.ui_address)
    trainer = KronosTrainer(recipe, root, say=pipes.log.info)
    ended: list[Trained | KronosError] = []
    with trainer.one_run(job.requested):
        run_trainings(recipe, trainer, tracker, windows, lambda _, end: ended.append(end), lambda _: job.tags)
    [trained] = ended
    if isinstance(trained, KronosError):
        raise trained
    key = read_json(trained.result.folder / MANIFEST)["key"]
    pipes.report_custom_message({"key": key, "mlflow_run": trained.run_id, "link": trained.run.link})


def _train_other(job: Job) -> None:
    """Train a part of each batch."""
    from kronos_pipeline.training.plan import plan_trainings
    from kronos_pipeline.training.progress import say_nothing
    from kronos_pipeline.training.trainer import KronosTrainer

    recipe, root, windows = _inputs(job)
    trainer = KronosTrainer(recipe, root, say=say_nothing)
    with trainer.one_run(job.requested):
        trainer.train(plan_trainings(recipe, windows))


def _inputs(job: Job) -> tuple[Any, Path, list[WindowSet]]:
    """Return the settings, the folder of artifacts, and the stored windows of each ticker."""
    from kronos_pipeline.artifacts import ArtifactLayout
    from kronos_pipeline.config import Recipe
    from kronos_pipeline.data.bars import load_bars
    from kronos_pipeline.data.windows import load_windows

    layout = ArtifactLayout(Path(job.output_dir))
    windows = [load_windows(layout.windows(ticker), load_bars(layout.bars(ticker))) for ticker in job.tickers]
    return Recipe.model_validate(job.recipe), layout.root, windows


def _leave_group() -> None:
    """End torch's process group, which warns otherwise; a peer that has died cannot agree to it."""
    import torch

    if torch.distributed.is_initialized():
        with contextlib.suppress(RuntimeError):
            torch.distributed.destroy_process_group()


def _write(record: Path, ending: Ending) -> None:
    own = record.with_suffix(".tmp")
    own.write_text(json.dumps(asdict(ending)))
    own.replace(record)


def _subclasses(kind: type[KronosError]) -> Iterator[type[KronosError]]:
    for subclass in kind.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)


if __name__ == "__main__":
    sys.exit(main())
