"""Let two machines run the same nights unattended, one of them with faults, and compare what they have in the end.

    python tests/soak.py --tickers 40 --nights 10 --seed 0

The nights go through Dagster's own daemon, queue and run processes, with a simulated clock. Exit code 1 means that a
promise did not hold; each is printed.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from soak_faults import HORIZON, Nights, plan_faults
from soak_results import Remains, clean_up, compare, find_leftovers, find_temporary_files
from tiny_models import save_tiny_base
from unattended_machine import UnattendedMachine

_SETTINGS = {
    "lookback": 16,
    "horizon": HORIZON,
    "validation_bars": 5,
    "selection_bars": 14,
    "stride": 8,
    "epochs": 1,
    "batch_size": 4,
    "save_steps": 1,
    "evaluations_per_epoch": 1,
    "eval_samples": 3,
    "device": "cpu",
}


def main() -> int:
    """Play the nights, and return the exit code."""
    options = _options()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    tickers = [f"T{number:02}" for number in range(options.tickers)]
    plan = plan_faults(options.nights, options.seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.folder or temporary)
        base = str(save_tiny_base(folder / "base")) if options.base_model == "tiny" else options.base_model
        plans: dict[str, list[tuple[str, ...]]] = {"without faults": [()] * len(plan), "with faults": plan}
        machines = {
            name: UnattendedMachine(
                folder / name.replace(" ", "-"), tickers, {**_SETTINGS, "model_name": base}, options.tickers_per_run
            )
            for name in plans
        }
        try:
            return _play(machines, plans, options.seed)
        finally:
            for machine in machines.values():
                machine.close()


def _play(machines: dict[str, UnattendedMachine], plans: dict[str, list[tuple[str, ...]]], seed: int) -> int:
    started, printing = time.monotonic(), threading.Lock()

    def play(name: str) -> Nights:
        def say(line: str) -> None:
            with printing:
                print(f"{(time.monotonic() - started) / 60:5.1f} min  {name:14}  {line}", flush=True)

        nights = Nights(machines[name], plans[name], seed, say)
        try:
            nights.play()
            nights.broken += find_leftovers(machines[name], nights.full_disks)
            clean_up(machines[name])
            nights.broken += find_temporary_files(machines[name])
        except Exception as error:
            say(f"ends early: {error!r}")
            raise
        return nights

    with ThreadPoolExecutor(2) as pool:
        quiet, faulty = pool.map(play, machines)
    remains = [
        Remains(nights.machine.tickers, nights.machine.output, nights.machine.store) for nights in (quiet, faulty)
    ]
    missed, broken = compare(remains[0], remains[1], faulty.excused, faulty.altered)
    broken = [*(f"without faults: {promise}" for promise in quiet.broken), *faulty.broken, *broken]
    runs = sum(machine.instance.get_runs_count() for machine in machines.values())
    print(f"{runs} runs in {(time.monotonic() - started) / 60:.0f} minutes; faults: ", end="")
    print(", ".join(f"{number} {kind}" for kind, number in faulty.struck.items()))
    print(f"{missed} bars were not forecast in nights whose faults kept the forecast")
    for promise in broken:
        print(f"broken: {promise}")
    print(f"{len(broken)} promises broken" if broken else "every ticker is as on the machine without faults")
    return min(len(broken), 1)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tickers", type=int, default=40)
    parser.add_argument("--nights", type=int, default=10, help="3 at least: the first and the last have no fault")
    parser.add_argument("--seed", type=int, default=0, help="chooses the faults and their places")
    parser.add_argument("--tickers-per-run", type=int, default=20)
    parser.add_argument("--base-model", default="kronos-nano", help='a base model; "tiny" for one of random weights')
    parser.add_argument("--folder", type=Path, help="an empty folder that is kept; default: a temporary folder")
    options = parser.parse_args()
    if options.nights < 3:
        parser.error("--nights: 3 nights at least")
    return options


if __name__ == "__main__":
    sys.exit(main())
