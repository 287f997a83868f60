"""The nights of a soak: new bars, schedules, faults at the places that a seed chooses, and the morning summary."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import dagster as dg
import pandas as pd
from faulty_commands import Fault
from market_files import daily_frame, write_frame
from soak_results import ForecastBar
from unattended_machine import ADAPTERS, FORECASTS, NEW_YORK, SUMMARY, UnattendedMachine

RUN_KILLED, STATE_DAMAGED, DISK_FULL = "run killed", "run killed and its state damaged", "disk full"
CODE_SERVER_KILLED, DAEMON_KILLED = "code server killed", "daemon killed"
MLFLOW_AWAY, HALF_CSV, DAMAGED, MACHINE_OFF = "MLflow away", "CSVs half written", "artifacts damaged", "machine off"
OF_A_CALL = (RUN_KILLED, DISK_FULL)
"""Faults at a call to the file system."""
OF_A_RUN = (*OF_A_CALL, STATE_DAMAGED)
"""Faults that end a run; a night has at most one of them."""
KINDS = (*OF_A_RUN, CODE_SERVER_KILLED, DAEMON_KILLED, MLFLOW_AWAY, HALF_CSV, DAMAGED, MACHINE_OFF)

FIRST_NIGHT = datetime(2040, 1, 2, tzinfo=NEW_YORK)
"""A Monday later than the time of any file."""
HORIZON = 5
_BARS = 120
_PROMOTED = 2


def plan_faults(nights: int, seed: int) -> list[tuple[str, ...]]:
    """Choose the faults of each night: none in the first and the last; each kind, and one at least each night."""
    kinds, planned = list(KINDS), [list[str]() for _ in range(nights)]
    rng = random.Random(seed)
    rng.shuffle(kinds)
    faulty = range(1, nights - 1)
    kinds.sort(key=OF_A_RUN.__contains__, reverse=True)
    kinds += [rng.choice(KINDS) for _ in range(len(faulty) - len(kinds))]
    for kind in kinds:
        free = [night for night in faulty if not _collides(kind, planned[night])]
        if free:
            fewest = min(len(planned[night]) for night in free)
            planned[rng.choice([night for night in free if len(planned[night]) == fewest])].append(kind)
    return [tuple(faults) for faults in planned]


def _collides(kind: str, planned: Sequence[str]) -> bool:
    of_a_run = kind in OF_A_RUN and any(other in OF_A_RUN for other in planned)
    # A machine that is off neither reads a CSV nor ticks beside a killed daemon.
    of_an_evening = {kind, *planned} & {MACHINE_OFF} and {kind, *planned} & {HALF_CSV, DAEMON_KILLED}
    return of_a_run or bool(of_an_evening) or kind in planned


@dataclass
class Nights:
    """Plays nights on a machine.

    Attributes:
        machine: the machine.
        plan: the faults of each night.
        seed: chooses the places of the faults.
        say: prints a line of progress.
        excused: the bars that faults kept from being forecast.
        altered: the bars whose forecast faults may have changed.
        broken: the promises that did not hold.
        full_disks: cutoffs of the nights with a full disk, whose trainings may fail.
        struck: the number of faults that struck, by kind.
    """

    machine: UnattendedMachine
    plan: Sequence[tuple[str, ...]]
    seed: int
    say: Callable[[str], None]
    excused: set[ForecastBar] = field(default_factory=set)
    altered: set[ForecastBar] = field(default_factory=set)
    broken: list[str] = field(default_factory=list)
    full_disks: set[pd.Timestamp] = field(default_factory=set)
    struck: Counter[str] = field(default_factory=Counter)
    _calls: list[str] = field(default_factory=list)
    _mlflow_is_away: bool = False
    _without_report: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)
        first = pd.bdate_range(end=FIRST_NIGHT.date(), periods=_BARS)[0]
        self._frames = {
            ticker: daily_frame(_BARS + len(self.plan), seed=number, start=f"{first:%Y-%m-%d}")
            for number, ticker in enumerate(self.machine.tickers)
        }

    def play(self) -> None:
        """Switch the machine on and play all nights."""
        self._bars_until(FIRST_NIGHT)
        self.machine.advance_to(FIRST_NIGHT.replace(hour=12))
        self.machine.start()
        self.machine.start_schedules(FORECASTS, ADAPTERS, SUMMARY)
        for number, faults in enumerate(self.plan):
            date = pd.bdate_range(FIRST_NIGHT, periods=number + 1)[-1].to_pydatetime()
            self._night(date, set(faults))
            trained = self._trained(date)
            refused = sorted(set(self.machine.tickers) - trained)
            if refused and DISK_FULL not in faults:
                self.broken.append(f"{date:%Y-%m-%d}: {', '.join(refused)} not trained, after {', '.join(faults)}")
            self.say(
                f"night {number + 1:2} {date:%a %Y-%m-%d}  {', '.join(faults) or 'no fault'}: "
                f"{len(trained)} of {len(self.machine.tickers)} trained; the summary: {self._summary()}"
            )
            if number in (0, len(self.plan) - 1):
                self._promote(self.machine.tickers[:_PROMOTED] if number == 0 else self.machine.tickers[-_PROMOTED:])

    def _night(self, date: datetime, faults: set[str]) -> None:
        machine = self.machine
        self._bars_until(date)
        halves = self._cut_csvs() if HALF_CSV in faults else []
        whole = range(1, HORIZON + 1)
        self.excused |= _bars(halves, date, whole)
        self.altered |= _bars(self._without_report, date, whole)
        if MACHINE_OFF in faults:
            self.excused |= _bars(machine.tickers, date, range(1, 2))  # a bar of the day of a late forecast is a replay
        evening, night, morning = (_at(date, hour) for hour in (18, 20, 31))
        was_away, was_off, watch = self._mlflow_is_away, MACHINE_OFF in faults, self._watch(faults)
        machine.faults.arm()
        if was_off:
            machine.power_off()
            self._arm(faults)  # both ticks are caught up together
            machine.advance_to(_at(date, 36))  # noon of the next day
        machine.advance_to(evening)
        machine.settle(FORECASTS, evening, watch if was_off else _nothing)
        if was_off and DISK_FULL in faults:
            self.excused |= _bars(machine.tickers, date, whole)
        if halves:
            self._bars_until(date)
        if was_away:
            machine.mlflow.start()
            self._mlflow_is_away = False
        if DAEMON_KILLED in faults:
            machine.kill("daemon")
            machine.advance_to(night + timedelta(minutes=5))
        if not was_off:
            self._arm(faults)
        machine.advance_to(night)
        machine.settle(ADAPTERS, night, watch)
        if not self._calls:
            self._calls = machine.faults.list.read_text().splitlines()
        if DISK_FULL in faults:
            self.full_disks.add(_bar_of(date))
        if machine.faults.read()[1]:
            self.struck.update(faults & set(OF_A_CALL))
        self.struck.update(faults & {MACHINE_OFF, DAEMON_KILLED, HALF_CSV, DAMAGED})
        machine.faults.arm()
        machine.advance_to(morning)
        machine.settle(SUMMARY, morning)
        self._without_report -= self._trained(date)
        if DAMAGED in faults:
            self._damage_artifacts()

    def _arm(self, faults: set[str]) -> None:
        count = len(self._calls)
        if not count:
            self.machine.faults.arm(listing=True)
        elif RUN_KILLED in faults:
            self.machine.faults.arm(Fault.KILL, self._rng.randint(1, count * 9 // 10))
        elif DISK_FULL in faults:
            self.machine.faults.arm(Fault.FULL_DISK, self._rng.randint(1, count * 9 // 10))
        else:
            self.machine.faults.arm()

    def _watch(self, faults: set[str]) -> Callable[[], None]:
        """Return the function that lets the faults strike that need no call to the file system."""
        waiting = faults & {CODE_SERVER_KILLED, MLFLOW_AWAY, STATE_DAMAGED}
        places = {kind: self._rng.random() * len(self._calls) for kind in (CODE_SERVER_KILLED, MLFLOW_AWAY)}

        def watch() -> None:
            calls, *_ = self.machine.faults.read()
            strikes = {kind for kind, place in places.items() if kind in waiting and calls >= place}
            if CODE_SERVER_KILLED in strikes and self.machine.run_processes():
                self.machine.kill("code server")
                waiting.discard(CODE_SERVER_KILLED)
                self.struck[CODE_SERVER_KILLED] += 1
            if MLFLOW_AWAY in strikes:
                self.machine.mlflow.end()
                self._mlflow_is_away = True
                waiting.discard(MLFLOW_AWAY)
                self.struck[MLFLOW_AWAY] += 1
            if STATE_DAMAGED in waiting and self._damage_state():
                waiting.discard(STATE_DAMAGED)
                self.struck[STATE_DAMAGED] += 1

        return watch

    def _damage_artifacts(self) -> None:
        tickers, output = self._rng.sample(list(self.machine.tickers), 3), self.machine.output
        self._without_report.add(tickers[1])  # which has the verdicts; the next training makes it again
        self._flip_a_bit([output / "adapters" / tickers[0] / "adapter_model.safetensors"])
        self._flip_a_bit([output / "metrics" / f"{tickers[1]}.{self._rng.choice(('json', 'parquet'))}"])
        self._flip_a_bit([output / "bars" / f"{tickers[2]}.parquet"])

    def _damage_state(self) -> bool:
        """Kill the run that has saved a state, flip a bit of the state, and return whether there was one to flip."""
        if not self._states():
            return False
        for process in self.machine.run_processes():
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        if states := self._states():
            self._flip_a_bit(states)
        return bool(states)

    def _states(self) -> list[Path]:
        return sorted(self.machine.output.glob("state/*/*.pt"))

    def _flip_a_bit(self, files: Sequence[Path]) -> None:
        path = self._rng.choice(files).resolve()
        content = bytearray(path.read_bytes())
        content[self._rng.randrange(len(content))] ^= 1 << self._rng.randrange(8)
        path.write_bytes(content)

    def _bars_until(self, date: datetime) -> None:
        for ticker, frame in self._frames.items():
            write_frame(self.machine.data, ticker, frame[frame["Date"] <= _bar_of(date)])

    def _cut_csvs(self) -> list[str]:
        """Leave half of the lines of two CSVs, as a writer does that has not ended, and return the tickers."""
        tickers = self._rng.sample(list(self.machine.tickers), 2)
        for ticker in tickers:
            path = self.machine.data / f"{ticker}.csv"
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        return tickers

    def _trained(self, date: datetime) -> set[str]:
        """Return the tickers whose newest adapter was trained on the bar of a date."""
        trained = set()
        for ticker in self.machine.tickers:
            wanted = dg.AssetRecordsFilter(dg.AssetKey("adapter"), asset_partitions=[ticker])
            for record in self.machine.instance.fetch_materializations(wanted, limit=1).records:
                event = record.asset_materialization
                if event and pd.Timestamp(str(event.metadata["last bar"].value)) == _bar_of(date):
                    trained.add(ticker)
        return trained

    def _summary(self) -> str:
        [record] = self.machine.instance.fetch_materializations(dg.AssetKey("morning_summary"), limit=1).records
        event = record.asset_materialization
        return str(event.metadata["summary"].value).split(": ", 1)[1] if event else ""

    def _promote(self, tickers: Sequence[str]) -> None:
        """Promote the newest version of some tickers, as a person does."""
        for ticker in tickers:
            command = [sys.executable, "-m", "kronos_pipeline.cli", "promote", ticker, "--reason", "to see it forecast"]
            ended = subprocess.run(command, env=self.machine.environment, capture_output=True, text=True, check=False)
            if ended.returncode:
                self.broken.append(f"promote {ticker} ends with {ended.returncode}: {ended.stderr}")


def _nothing() -> None:
    """No fault strikes."""


def _bars(tickers: Iterable[str], date: datetime, steps: range) -> set[ForecastBar]:
    return {(ticker, _bar_of(date), step) for ticker in tickers for step in steps}


def _bar_of(date: datetime) -> pd.Timestamp:
    return pd.Timestamp(date.date())


def _at(date: datetime, hour: int) -> datetime:
    """Return a time by hours since a date's midnight, by the clocks of New York."""
    return datetime(date.year, date.month, date.day, tzinfo=NEW_YORK) + timedelta(hours=hour)
