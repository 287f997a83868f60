"""Two machines that are asked for one ticker train it once, although their clocks differ."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from postgres_server import PostgresServer
from small_trainings import simulated_windows, small_recipe

from kronos_pipeline import KronosTrainer
from kronos_pipeline.locks import LEASE_DATABASE, shared_time
from kronos_pipeline.training.publish import published_at

pytestmark = pytest.mark.slow
HOUR = 3600.0


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_training_is_kept_by_the_order_in_time_and_not_by_the_clocks_of_machines(
    postgres: PostgresServer, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    """The machine that trains has a clock that is an hour off; so are the times of the files that it writes."""
    monkeypatch.setenv(LEASE_DATABASE, postgres.url(postgres.new_database()))
    recipe, adapter = small_recipe(tiny_base), tmp_path / "adapters/AAPL"
    windows, now = simulated_windows(recipe), time.time
    asked_before = shared_time()
    with monkeypatch.context() as other_machine:
        other_machine.setattr(time, "time", lambda: now() + hours * HOUR)
        KronosTrainer(recipe, tmp_path, say=lambda _: None).train_adapter(windows, "AAPL")
        os.utime(adapter, (now() + hours * HOUR,) * 2, follow_symlinks=False)
    asked_after = shared_time()
    assert asked_before < published_at(adapter) < asked_after

    for asked, kept in ((asked_before, True), (asked_after, False)):
        version, said = adapter.resolve(), list[str]()
        trainer = KronosTrainer(recipe, tmp_path, say=said.append)
        with trainer.one_run(asked):
            trainer.train_adapter(windows, "AAPL")
        assert ("adapters/AAPL: another run trained it since it was asked for, kept" in said) is kept
        assert (adapter.resolve() == version) is kept


def test_a_time_is_that_of_this_machine_if_the_database_of_locks_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LEASE_DATABASE, "postgresql://127.0.0.1:1/none")
    before = time.time()
    assert before <= shared_time() <= time.time()
