"""Let each call of a command that changes a file fail in turn, and check what the project promises then.

    python tests/every_fault.py --commands train --faults kill --per-site 3

Exit code 1 means that a promise did not hold; each such call is printed.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from fault_scenarios import COMMANDS, Scenario, Scenarios
from faulty_commands import Fault
from rich.progress import track

FAULTS = {"full-disk": Fault.FULL_DISK, "io-error": Fault.IO_ERROR, "kill": Fault.KILL}
_CHANGING = re.compile(r"[0-9a-f]{6,}|\d+|(?<=uploading\.)\w+")
"""Parts of a path that differ between two runs: hashes, times, random names."""


def sample_calls(calls: Sequence[str], per_site: int | None) -> list[int]:
    """Choose calls by number, from 1: at most `per_site` of the same name and path, spread evenly; None for all."""
    sites: dict[str, list[int]] = defaultdict(list)
    for number, call in enumerate(calls, start=1):
        sites[_CHANGING.sub("*", call)].append(number)
    chosen = set()
    for numbers in sites.values():
        count = len(numbers) if per_site is None else min(per_site, len(numbers))
        chosen |= {numbers[(2 * place + 1) * len(numbers) // (2 * count)] for place in range(count)}
    return sorted(chosen)


def main() -> int:
    """Play the scenarios, and return the exit code."""
    options = _options()
    with tempfile.TemporaryDirectory() as folder:
        scenarios = Scenarios(Path(folder))
        try:
            broken = sum(_report(scenarios, scenario, options) for scenario in scenarios.make(options.commands))
        finally:
            scenarios.close()
    return min(broken, 1)


def _report(scenarios: Scenarios, scenario: Scenario, options: argparse.Namespace) -> int:
    """Play a scenario, print the calls after which a promise did not hold, and return their number."""
    started = time.monotonic()
    plays = list(_plays(scenario, options))
    broken = 0
    for fault, nth in track(plays, f"{scenario.name}: {len(scenario.calls)} calls"):
        if found := scenarios.play(scenario, FAULTS[fault], nth):
            broken += 1
            print(f"{scenario.name}, {fault} at call {nth}, {scenario.calls[nth - 1]}:", *found, sep="\n  ", flush=True)
    minutes = (time.monotonic() - started) / 60
    print(f"{scenario.name}: {len(plays)} faults in {minutes:.0f} minutes, {broken} broke a promise", flush=True)
    return broken


def _plays(scenario: Scenario, options: argparse.Namespace) -> Iterator[tuple[str, int]]:
    part, parts = map(int, options.part.split("/"))
    for fault in options.faults:
        calls = sample_calls(scenario.calls, options.per_site)
        yield from ((fault, nth) for nth in calls[part - 1 :: parts])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=COMMANDS)
    parser.add_argument("--faults", nargs="+", choices=tuple(FAULTS), default=tuple(FAULTS))
    parser.add_argument("--per-site", type=int, help="calls to try of the same name and file; default: all")
    parser.add_argument("--part", default="1/1", metavar="I/N", help="every N-th call, from the I-th")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
