"""Measure the speed of sampling and training on a GPU, beside upstream and a plain PEFT loop on the same GPU.

    python benchmarks/gpu.py                                    # `make bench-gpu`: under eight minutes
    python benchmarks/gpu.py --write docs/performance.md        # the same, put into the document
    python benchmarks/gpu.py --device cpu --quick               # the same code with tiny models, without a GPU

Each part runs in a process of its own. A part that fails, crashes or takes too long becomes a row with its error, its
traceback goes to standard error, and the other parts go on. The command writes the document after each part. The exit
status is 1 if a part was not measured.

The benchmark needs torch, peft, accelerate and sktime, but no dagster, no mlflow and no network: models have the
published sizes and random weights, and bars are simulated. On a CPU, figures that need CUDA read "not measured".
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from speed.apart import MEASURED, Found, carry_out, read, run
from speed.parts import GOALS, MACHINE, PARTS
from speed.table import NOT_MEASURED, Report, Table, goal_table, joined, place, put

if TYPE_CHECKING:
    import torch

_SECONDS = 450.0
"""Seconds for all parts together; the rest of the eight minutes is for the start and the end of the processes."""
_LEAST = 15.0
"""Seconds that must be left for a part to begin; its imports take a third of them."""
_LATE = f"{NOT_MEASURED}: the time was up"
_UNUSABLE = 2
"""The exit status of a process whose device does not exist."""


def main() -> None:
    """Run the parts and print the tables of each when it ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N, or cpu")
    parser.add_argument("--quick", action="store_true", help="tiny models and few repeats: no figures to quote")
    parser.add_argument("--write", type=Path, help="Markdown file: write the tables between its markers 'gpu'")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to run")
    parser.add_argument("--seconds", type=float, default=_SECONDS, help="limit of all parts together; 450 by default")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)  # the part that a child process measures
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)  # the folder of the children's files
    options = parser.parse_args()
    if options.part is not None:
        carry_out(lambda: _measured(parser, options), _file(options.folder, options.part))
        return

    if options.write is not None:
        try:
            place(options.write, "gpu")
        except (OSError, ValueError) as error:
            parser.error(str(error))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    if options.quick:
        print("A smoke test with tiny models and few repeats: do not quote its figures.\n", file=sys.stderr)
    outcomes: dict[str, Found] = {}
    try:
        for name in _each(outcomes, options):
            _tell(_tables([name], outcomes), outcomes, options.write)
    except SystemExit:  # by a signal
        if outcomes:
            _tell([*_tables(list(outcomes)[-1:], outcomes), _goals(outcomes)], outcomes, options.write)
        raise
    if outcomes[MACHINE].code == _UNUSABLE:
        sys.exit(_UNUSABLE)
    _tell([_goals(outcomes)], outcomes, options.write)
    sys.exit(int(any(outcome.end != MEASURED for outcome in outcomes.values())))


def _each(outcomes: dict[str, Found], options: argparse.Namespace) -> Iterator[str]:
    """Run each part, put its result into `found` and yield its name; stop if the device does not exist."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for name in dict.fromkeys([MACHINE, *options.only]):
            seconds_left = options.seconds - (time.monotonic() - start)
            file = _file(Path(folder), name)
            command = [sys.executable, __file__, "--part", name, "--folder", folder, "--device", options.device]
            if options.quick:
                command.append("--quick")
            try:
                too_late = seconds_left < _LEAST
                outcomes[name] = (
                    Found([], _LATE) if too_late else run(command, file, min(PARTS[name].limit, seconds_left))
                )
            except SystemExit:
                outcomes[name] = read(file, f"{NOT_MEASURED}: the run was ended")
                raise
            if name == MACHINE and outcomes[name].code == _UNUSABLE:
                return
            yield name


def _measured(parser: argparse.ArgumentParser, options: argparse.Namespace) -> Iterator[Report]:
    """Yield the reports of this process's part. Torch is imported here and not in the parent."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # measure this checkout, installed or not
    from speed.machine import load, measure, save

    device, limits = _device(parser, options.device), _file(options.folder, "limits")
    if options.part == MACHINE:
        machine = measure(device, quick=options.quick)
        save(machine, limits)
    else:
        machine = load(limits, device)
    yield from PARTS[options.part].measure(machine, options.quick)


def _device(parser: argparse.ArgumentParser, name: str) -> torch.device:
    """Return the device, a GPU with its number; end the process with an error if the device does not exist."""
    import torch

    try:
        device = torch.device(name)
    except RuntimeError as error:
        parser.error(str(error).splitlines()[0])
    if device.type != "cuda":
        return device
    if not torch.cuda.is_available():
        parser.error("torch finds no CUDA device here; --device cpu --quick tries the script out.")
    if (device.index or 0) >= torch.cuda.device_count():
        parser.error(f"torch finds {torch.cuda.device_count()} CUDA devices here, numbered from 0: not {name}.")
    return torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)


def _file(folder: Path, part: str) -> Path:
    return folder / f"{part}.json"


def _tables(names: Iterable[str], outcomes: Mapping[str, Found]) -> list[Table]:
    """Return the tables of some parts, and a table of the parts that failed."""
    ends = {name: outcomes.get(name, Found([], NOT_MEASURED)) for name in names}
    missing = [[name, outcome.end] for name, outcome in ends.items() if outcome.end != MEASURED]
    tables = [table for outcome in ends.values() for table in joined(outcome.reports).tables]
    return [*tables, *([Table("Parts not measured to the end", ("part", "found"), missing)] if missing else [])]


def _goals(outcomes: Mapping[str, Found]) -> Table:
    reached = {goal.what: goal for outcome in outcomes.values() for report in outcome.reports for goal in report.goals}
    return goal_table([reached.get(goal.what, goal) for goal in GOALS])


def _tell(tables: Sequence[Table], outcomes: Mapping[str, Found], document: Path | None) -> None:
    """Print tables, and write all tables so far to the document; parts to come read "not measured"."""
    print(Report(tables).text(), flush=True)
    if document is not None:
        put(document, "gpu", Report([*_tables(PARTS, outcomes), _goals(outcomes)]).text())


if __name__ == "__main__":
    main()
