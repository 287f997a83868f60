"""Let each call of a command that changes a file fail in turn, and check what the project promises then.

    python tests/every_fault.py --commands train --faults kill --per-site 3
    python tests/every_fault.py --from 400           go on with the 400th fault of the same order
    python tests/every_fault.py --repeat 'train kill rename /adapters/ACME #1'

A site is the calls of one name and path, and each transaction of the database is a site. The order is shuffled: first
a call of each site, then another of each, so that a run that is stopped has tried all parts of the commands. A line
per fault says what it was, whether the promises held, and the time left. Exit code 1: a promise did not hold.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fault_scenarios import COMMANDS, Scenario, Scenarios
from faulty_commands import Fault

FAULTS = {"full-disk": Fault.FULL_DISK, "io-error": Fault.IO_ERROR, "kill": Fault.KILL}
MEMORY = Path("/dev/shm")  # noqa: S108
_CHANGING = re.compile(r"(?<=uploading\.)\w+|[0-9a-f]{6,}|\d+")
"""Parts of a path that differ between two runs: hashes, times, random names."""
_DATABASE = "/mlflow.db"


@dataclass(frozen=True)
class Play:
    """A fault at a call of a command."""

    command: str
    fault: str
    site: str
    occurrence: int
    """Number of the call among those of its site, from 1."""
    nth: int
    """Number of the call among all of the command."""

    def __str__(self) -> str:
        return f"{self.command} {self.fault} {self.site} #{self.occurrence}"


def sites_of(calls: Sequence[str]) -> dict[str, list[int]]:
    """Group the numbers of calls, from 1, by site."""
    sites: dict[str, list[int]] = defaultdict(list)
    transaction = 0
    for number, call in enumerate(calls, start=1):
        name, _, path = call.partition(" ")
        if path.startswith((_DATABASE, f"{_DATABASE}-")) and ".lock" not in path:
            transaction += name.startswith("open") and path.endswith("-journal")
            sites[f"transaction {transaction}"].append(number)
        else:
            sites[_CHANGING.sub("*", call)].append(number)
    return sites


def plays_of(scenarios: Sequence[Scenario], faults: Sequence[str], seed: int) -> list[Play]:
    """List every fault at every call: a call of each site, shuffled, then another of each, and so on."""
    rounds: list[tuple[int, float, Play]] = []
    for scenario in scenarios:
        for fault in faults:
            for site, numbers in sites_of(scenario.calls).items():
                shuffled = random.Random(f"{seed} {scenario.name} {fault} {site}")
                order = shuffled.sample(range(len(numbers)), len(numbers))
                for place, index in enumerate(order):
                    play = Play(scenario.name, fault, site, index + 1, numbers[index])
                    rounds.append((place, shuffled.random(), play))
    return [play for *_, play in sorted(rounds, key=lambda item: item[:2])]


def main() -> int:
    """Play the faults, and return the exit code."""
    options = _options()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        _say("a first training and promotion, then each command twice without a fault, in a minute or two")
        scenarios = Scenarios(Path(folder))
        try:
            made = {}
            for scenario in scenarios.make(_commands(options)):
                made[scenario.name] = scenario
                _say(f"{scenario.name}: {len(scenario.calls)} calls at {len(sites_of(scenario.calls))} sites")
            _say(f"made ready in {time.monotonic() - started:.0f} s")
            return min(_play_all(scenarios, made, options), 1)
        finally:
            scenarios.close()


def _play_all(scenarios: Scenarios, made: dict[str, Scenario], options: argparse.Namespace) -> int:
    """Play the chosen faults, print a line for each, and return how many broke a promise."""
    plays = _chosen(plays_of(list(made.values()), options.faults, options.seed), options)
    tried: Counter[tuple[str, str]] = Counter()
    broken: Counter[tuple[str, str]] = Counter()
    started = time.monotonic()
    for number, play in enumerate(plays, start=options.start):
        found = scenarios.play(made[play.command], FAULTS[play.fault], play.nth)
        tried[play.command, play.fault] += 1
        broken[play.command, play.fault] += bool(found)
        passed = time.monotonic() - started
        left = passed / tried.total() * (len(plays) - tried.total()) / 60
        last = options.start + len(plays) - 1
        _say(f"{number}/{last} {'BROKEN' if found else 'holds'}: {play} ({left:.0f} min left)")
        if found:
            _say(*(f"    {line}" for line in found), f"    again: {Path(sys.argv[0])} --repeat '{play}'")
    for command, fault in tried:
        _say(f"{command}, {fault}: {tried[command, fault]} tried, {broken[command, fault]} broke a promise")
    _say(f"{tried.total()} faults in {(time.monotonic() - started) / 60:.0f} minutes")
    return broken.total()


def _chosen(plays: Sequence[Play], options: argparse.Namespace) -> list[Play]:
    if options.repeat:
        chosen = [play for play in plays if str(play) in options.repeat]
        if missing := set(options.repeat) - set(map(str, chosen)):
            raise SystemExit(f"error: the commands make no such call: {', '.join(sorted(missing))}")
        return chosen
    return list(_limited(plays, options.per_site))[options.start - 1 :]


def _limited(plays: Sequence[Play], per_site: int | None) -> Iterator[Play]:
    taken: Counter[tuple[str, str, str]] = Counter()
    for play in plays:
        site = (play.command, play.fault, play.site)
        taken[site] += 1
        if per_site is None or taken[site] <= per_site:
            yield play


def _commands(options: argparse.Namespace) -> Sequence[str]:
    named = {play.split()[0] for play in options.repeat}
    return [command for command in COMMANDS if command in named] or options.commands


def _say(*lines: str) -> None:
    print(*lines, sep="\n", flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=COMMANDS)
    parser.add_argument("--faults", nargs="+", choices=tuple(FAULTS), default=tuple(FAULTS))
    parser.add_argument("--per-site", type=int, help="calls to try of each site; default: all")
    parser.add_argument("--from", dest="start", type=int, default=1, metavar="N", help="go on with the N-th fault")
    parser.add_argument("--seed", type=int, default=0, help="another order, and other calls of each site")
    parser.add_argument("--repeat", nargs="+", default=[], metavar="FAULT", help="only these faults, as printed")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
