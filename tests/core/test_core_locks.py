"""Locks: files on one machine, leases in PostgreSQL across machines, and what a lost holder may still do."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import Timeout
from postgres_server import PostgresServer

from kronos_pipeline.addresses import without_password
from kronos_pipeline.artifacts import ArtifactLayout
from kronos_pipeline.errors import ArtifactError
from kronos_pipeline.leases import LeaseError, Leases, with_driver
from kronos_pipeline.locks import (
    check_held,
    exclusive,
    fence,
    folder_lock,
    held_by,
    held_leases,
    is_left_over,
    named_lock,
)
from kronos_pipeline.pipeline.system_checks import _locks

LOCK = "state/.adapters-AAPL.lock"
HOLD = """
import sys, time
from pathlib import Path
from kronos_pipeline.locks import folder_lock
lock = folder_lock(Path(sys.argv[1]), "state/.adapters-AAPL.lock")
lock.acquire()
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def database(postgres: PostgresServer) -> str:
    return postgres.url(postgres.new_database())


@pytest.fixture
def output(tmp_path: Path) -> Path:
    (tmp_path / "out" / "state").mkdir(parents=True)
    return tmp_path / "out"


def holder(output: Path) -> subprocess.Popen[str]:
    """Start a process that holds the lock until its input ends."""
    command = [sys.executable, "-c", HOLD, str(output)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


@pytest.fixture
def hosts(database: str) -> Iterator[tuple[Leases, Leases]]:
    """The leases of two processes whose file locks do not meet."""
    both = Leases(database, "host 1"), Leases(database, "host 2")
    yield both
    for leases in both:
        leases._tokens.clear()  # its thread ends


def expire(postgres: PostgresServer, database: str) -> None:
    """Do to all leases what an hour without a renewal does."""
    postgres.execute("UPDATE kronos_leases SET expires = now() - interval '1 s'", database.rpartition("/")[2])


def test_a_single_machine_uses_a_file_in_the_output_folder_and_no_database(output: Path) -> None:
    lock = folder_lock(output, LOCK)
    with exclusive(lock), folder_lock(output, LOCK), fence(lock):
        assert (output / LOCK).exists()
        check_held(lock)
    assert [path.name for path in output.iterdir()] == ["state"]


@pytest.mark.slow
def test_the_lock_of_a_killed_process_is_free_at_once_with_and_without_a_database(
    output: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for url in ("", database):
        monkeypatch.setenv("KRONOS_LEASE_DATABASE", url)
        process, lock = holder(output), folder_lock(output, LOCK)
        assert not is_left_over(lock)
        with pytest.raises(Timeout):
            lock.acquire(timeout=0)
        if url:
            assert held_by(lock).endswith(f"process {process.pid}")
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert is_left_over(lock)
        with lock.acquire(timeout=10), exclusive(lock, 10):
            check_held(lock)
    assert not is_left_over(lock)


@pytest.mark.slow
def test_a_lease_holds_on_a_machine_that_does_not_see_the_file_lock(hosts: tuple[Leases, Leases]) -> None:
    first, second = hosts
    assert first.take("adapters/AAPL")
    assert not second.take("adapters/AAPL")
    assert second.take("adapters/MSFT"), "another lock is free"
    first.free("adapters/AAPL")
    assert second.take("adapters/AAPL")


@pytest.mark.slow
def test_the_leases_of_all_machines_are_listed_until_they_expire_for_the_doctor_too(
    postgres: PostgresServer, database: str, hosts: tuple[Leases, Leases], monkeypatch: pytest.MonkeyPatch, output: Path
) -> None:
    assert held_leases() is None
    monkeypatch.setenv("KRONOS_LEASE_DATABASE", database)
    assert hosts[0].take("adapters/listed")
    owner = f"{socket.gethostname()}, process {os.getpid()}"
    (lease,) = [lease for lease in held_leases() or [] if lease.name == "adapters/listed"]
    assert lease.owner == owner
    assert 0 < lease.seconds <= 60
    assert f"adapters/listed by {owner}, for {lease.seconds // 10}" in _locks(ArtifactLayout(output)).text
    expire(postgres, database)
    assert _locks(ArtifactLayout(output)).text.startswith("no lease is held")


@pytest.mark.slow
def test_a_lease_is_renewed_while_its_process_lives(
    postgres: PostgresServer, database: str, hosts: tuple[Leases, Leases]
) -> None:
    first, second = hosts
    first.lifetime = 60 * 0.2  # the thread renews it every three seconds
    assert first.take("renewed")
    expire(postgres, database)
    row = "SELECT count(*) FROM kronos_leases WHERE name = 'renewed' AND expires > now()"
    deadline = time.monotonic() + 60
    while postgres.execute(row, database.rpartition("/")[2]) != [(1,)]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert not second.take("renewed")
    first.free("renewed")


@pytest.mark.slow
def test_a_process_that_was_paused_beyond_its_lease_writes_nothing(
    postgres: PostgresServer, database: str, hosts: tuple[Leases, Leases]
) -> None:
    first, second = hosts
    assert first.take("paused")
    expire(postgres, database)
    first.renew()
    first.check()
    assert not second.take("paused"), "it woke up before another process asked"
    expire(postgres, database)
    assert second.take("paused")
    loss = pytest.raises(LeaseError, match=r"lease of paused was taken over by .*, process \d+, because .* for 60 s")
    with loss, first.fence("paused"):
        pytest.fail("it has lost the lease")
    first.renew()
    with pytest.raises(LeaseError, match="taken over"):
        first.check()
    first.free("paused")
    assert not first.take("paused"), "the late release of a lost lease frees nothing"


@pytest.mark.slow
def test_nobody_takes_a_lease_over_during_a_fenced_write(
    postgres: PostgresServer, database: str, hosts: tuple[Leases, Leases]
) -> None:
    first, second = hosts
    assert first.take("written")
    with first.fence("written"), first.fence("written"):
        second._execute("UPDATE kronos_leases SET expires = now() - interval '1 s'", {})  # gives up after a second
        assert not second.take("written")
        first.renew()
    expire(postgres, database)
    assert second.take("written")


@pytest.mark.slow
def test_leases_outlast_a_restart_of_the_server(postgres: PostgresServer, hosts: tuple[Leases, Leases]) -> None:
    first, second = hosts
    assert first.take("restarted")
    with first.fence("restarted"):
        postgres.restart()
    assert not second.take("restarted")
    with first.fence("restarted"):
        first.check()
    first.free("restarted")
    assert second.take("restarted")


@pytest.mark.slow
def test_a_database_that_cannot_be_used_is_named_without_its_password(
    database: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wrong = database.rpartition(":")[0].rpartition(":")[0] + ":hidden@127.0.0.1:1/kronos"
    monkeypatch.setenv("KRONOS_LEASE_DATABASE", wrong)
    with pytest.raises(LeaseError, match=r"database of locks .*127.0.0.1:1/kronos cannot be used: .*refused") as caught:
        named_lock(tmp_path / "x.lock", "x").acquire()
    assert "hidden" not in str(caught.value)
    monkeypatch.setenv("KRONOS_LEASE_SECONDS", "soon")
    monkeypatch.setenv("KRONOS_LEASE_DATABASE", f"{database}?application_name=other")
    with pytest.raises(LeaseError, match="KRONOS_LEASE_SECONDS is 'soon', and a number of seconds from 1 to 3600"):
        named_lock(tmp_path / "x.lock", "x")


@pytest.mark.slow
def test_the_id_of_an_output_folder_that_cannot_be_written_is_an_error(
    database: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KRONOS_LEASE_DATABASE", database)
    with pytest.raises(ArtifactError, match=r"file/.folder_id cannot be read or made"):
        folder_lock(tmp_path / "file", LOCK)


@pytest.mark.parametrize(
    ("address", "used", "shown"),
    [
        ("postgres://u:p@db/x", "postgresql+psycopg2://u:p@db/x", "postgresql+psycopg2://db/x"),
        ("postgresql://u:p@db/x?password=q", "postgresql+psycopg2://u:p@db/x?password=q", "postgresql+psycopg2://db/x"),
        ("postgresql+psycopg://db/x?sslmode=require", "postgresql+psycopg://db/x?sslmode=require", None),
        ("sqlite:////tmp/a.db", "sqlite:////tmp/a.db", None),
    ],
)
def test_an_address_gets_the_driver_that_is_installed_and_loses_its_password(
    address: str, used: str, shown: str | None
) -> None:
    assert with_driver(address) == used
    assert without_password(used) == (shown or used)
