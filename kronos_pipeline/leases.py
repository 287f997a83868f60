"""Leases in PostgreSQL: rows that a process renews while it holds a lock, for locks across machines.

    kronos_leases    name                             holder   place  owner               token  expires
                     registry/kronos-AAPL             6fd1...  a90b.. host7, process 412  81     18:04:31
                     3b0c.../state/.adapters-AAPL     6fd1...  a90b.. host7, process 412  80     18:04:31

A process renews the leases that it holds four times per lifetime, by the clock of the database. What a lease survives:

- kill -9, or a machine without power: the lease expires after a lifetime, 60 s by default. On the same machine the next
  process takes it at once, because the process holds the file lock of the same name too, see `locks`.
- a lost connection or a restart of the server: the row stays, and the holder connects again within the lifetime. An
  advisory lock of PostgreSQL would be gone with its connection, unknown to its holder.
- a paused process: the lease expires, another process takes it under a larger token, and `fence` refuses the writes of
  the first, which has the smaller token.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from kronos_pipeline.addresses import without_password, without_secrets
from kronos_pipeline.errors import KronosError, first_sentence

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

Result = TypeVar("Result")

LIFETIME = "KRONOS_LEASE_SECONDS"
_DEFAULT_LIFETIME = 60.0
_RENEWALS = 4
"""Renewals of a lease per lifetime."""
_RETRY_SECONDS = 20.0
"""How long a lost connection is tried again; a restart of a server takes seconds."""
_DRIVER = "postgresql+psycopg2://"
_CONNECTION = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}
"""Options of libpq, so that a dead network is noticed in seconds."""
_SCHEMA = (
    "SELECT pg_advisory_xact_lock(7205759403)",  # two processes that create a table together: one of them fails
    "CREATE SEQUENCE IF NOT EXISTS kronos_lease_tokens",
    "CREATE TABLE IF NOT EXISTS kronos_leases (name text PRIMARY KEY, holder text NOT NULL, place text NOT NULL, "
    "owner text NOT NULL, token bigint NOT NULL, expires timestamptz NOT NULL)",
)
_TAKE = """
    INSERT INTO kronos_leases AS lease (name, holder, place, owner, token, expires)
    VALUES (:name, :holder, :place, :owner, nextval('kronos_lease_tokens'),
            clock_timestamp() + make_interval(secs => :lifetime))
    ON CONFLICT (name) DO UPDATE
    SET holder = excluded.holder, place = excluded.place, owner = excluded.owner, token = excluded.token,
        expires = excluded.expires
    WHERE lease.expires < clock_timestamp() OR lease.place = excluded.place
    RETURNING token
"""
_RENEW = """
    UPDATE kronos_leases SET expires = clock_timestamp() + make_interval(secs => :lifetime)
    WHERE holder = :holder AND name <> ALL(:fenced)
"""
_HELD = "SELECT name, token FROM kronos_leases WHERE holder = :holder"
_ALL_HELD = """
    SELECT name, owner, extract(epoch FROM expires - clock_timestamp()) FROM kronos_leases
    WHERE expires >= clock_timestamp() ORDER BY name
"""
_EXTEND = """
    UPDATE kronos_leases SET expires = clock_timestamp() + make_interval(secs => :lifetime)
    WHERE name = :name AND token = :token
"""
_TIME = "SELECT extract(epoch FROM clock_timestamp())"
_FREE = "DELETE FROM kronos_leases WHERE name = :name AND token = :token"
_log = logging.getLogger(__name__)


class LeaseError(KronosError):
    """Lease that was lost to another process, or database of leases that cannot be used."""


class HeldLease(NamedTuple):
    """A lease that has not expired: its name, who holds it, and the seconds until it expires without a renewal."""

    name: str
    owner: str
    seconds: int


class Leases:
    """The leases that this process holds in a database; a thread renews them.

    Attributes:
        lifetime: seconds without a renewal after which another process may take a lease.
    """

    def __init__(self, url: str, place: str) -> None:
        """Name the database, which is opened at the first use.

        Args:
            url: the address of the database, for SQLAlchemy.
            place: the id of the folder of file locks that this process uses, see `take`.

        Raises:
            LeaseError: the lifetime in the environment is no number of seconds.
        """
        self.lifetime = _lifetime()
        self._url, self._place = url, place
        self._holder = uuid.uuid4().hex
        self._tokens: dict[str, int] = {}
        self._fenced: set[str] = set()
        self._lost_names: set[str] = set()
        self._renewer: threading.Thread | None = None
        self._lock = threading.Lock()

    def take(self, name: str) -> bool:
        """Take a lease, if no other place holds it; the caller holds the file lock of the same name.

        A lease of the same place is taken over at once: its holder does not hold the file lock, so it has ended.

        Raises:
            LeaseError: the database cannot be used.
        """
        owner = owner_name(socket.gethostname(), os.getpid())
        rows = self._execute(_TAKE, {"name": name, "place": self._place, "owner": owner})
        if not rows:
            return False
        with self._lock:
            self._tokens[name] = int(rows[0][0])
            self._lost_names.discard(name)
            if self._renewer is None or not self._renewer.is_alive():
                self._renewer = threading.Thread(target=self._keep_renewing, name="kronos leases", daemon=True)
                self._renewer.start()
        return True

    def free(self, name: str) -> None:
        """Free a lease; a lease that cannot be freed now expires by itself."""
        with self._lock:
            token = self._tokens.pop(name, None)
        if token is not None:
            try:
                self._execute(_FREE, {"name": name, "token": token})
            except LeaseError as error:
                _log.warning("%s The lease %s expires within %.0f s.", error, name, self.lifetime)

    def owner(self, name: str) -> str | None:
        """Return who took a lease last, such as "host7, process 412"; None for a lease that was freed.

        Raises:
            LeaseError: the database cannot be used.
        """
        rows = self._execute("SELECT owner FROM kronos_leases WHERE name = :name", {"name": name})
        return str(rows[0][0]) if rows else None

    def held(self) -> list[HeldLease]:
        """Return the leases of all processes that have not expired, by name.

        Raises:
            LeaseError: the database cannot be used.
        """
        rows = self._execute(_ALL_HELD, {})
        return [HeldLease(str(name), str(owner), int(seconds)) for name, owner, seconds in rows]

    def time(self) -> float:
        """Return the time by the clock of the database, in seconds since 1970.

        Raises:
            LeaseError: the database cannot be used.
        """
        return float(self._execute(_TIME, {})[0][0])

    @contextmanager
    def fence(self, name: str) -> Iterator[None]:
        """Let nobody else take a held lease during a block of writes, however long the block takes.

        The row of the lease stays locked in a transaction. Inside a fence of the same lease this does nothing.

        Raises:
            LeaseError: another process has taken the lease meanwhile, or the database cannot be used.
        """
        if name in self._fenced:
            yield
            return
        connection = self._retried(lambda: self._extended(name))
        self._fenced.add(name)
        try:
            yield
            self._close_fence(connection, name)
        finally:
            self._fenced.discard(name)
            connection.close()

    def check(self) -> None:
        """Check that no lease of this process was taken over, as far as the last renewal knows.

        Raises:
            LeaseError: another process has taken a lease.
        """
        with self._lock:
            lost = sorted(self._lost_names.intersection(self._tokens))
        if lost:
            raise self._lost(lost[0])

    def _extended(self, name: str) -> Connection:
        """Renew a lease in a transaction that stays open; it locks the row."""
        connection = self._engine.connect()
        try:
            if connection.execute(_text(_EXTEND), self._row(name)).rowcount == 1:
                return connection
        except BaseException:
            connection.close()
            raise
        connection.close()
        raise self._lost(name)

    def _row(self, name: str) -> dict[str, Any]:
        return {"name": name, "token": self._tokens.get(name), "lifetime": self.lifetime}

    def _close_fence(self, connection: Connection, name: str) -> None:
        """Renew the lease and end the transaction; if its connection was lost, check that the lease was not."""
        from sqlalchemy.exc import DBAPIError

        try:
            connection.execute(_text(_EXTEND), self._row(name))
            connection.commit()
        except DBAPIError:
            self._retried(lambda: self._extended(name)).close()

    def _keep_renewing(self) -> None:
        """Renew all leases until none is held; a thread of its own."""
        while True:
            time.sleep(self.lifetime / _RENEWALS)
            with self._lock:
                if not self._tokens:
                    self._renewer = None
                    return
            try:
                self.renew()
            except Exception as error:  # the thread goes on: it renews them as soon as it can
                _log.warning("The leases of this process were not renewed: %s", error)

    def renew(self) -> None:
        """Renew the leases of this process, and note which were taken over; a thread does so all the time.

        Raises:
            LeaseError: the database cannot be used.
        """
        with self._lock:
            held = dict(self._tokens)
        self._execute(_RENEW, {"fenced": list(self._fenced)})
        present = {str(name): int(token) for name, token in self._execute(_HELD, {})}
        with self._lock:
            for name, token in held.items():
                if present.get(name) != token == self._tokens.get(name):
                    self._lost_names.add(name)

    def _lost(self, name: str) -> LeaseError:
        owner = self.owner(name) or "another process, which has ended"
        subject = name.rpartition("/")[2].strip(".").removesuffix(".lock")
        return LeaseError(
            f"The lease of {subject} was taken over by {owner}, because "
            f"this process did not renew it for {self.lifetime:.0f} s; it writes nothing more. Run the command again."
        )

    def _execute(self, statement: str, values: Mapping[str, Any]) -> list[Any]:
        """Execute a statement in a transaction of its own, and return its rows."""
        parameters = {"holder": self._holder, "lifetime": self.lifetime, **values}

        def run() -> list[Any]:
            from sqlalchemy.exc import OperationalError

            with self._engine.begin() as connection:
                connection.execute(_text("SET LOCAL lock_timeout = '1s'"))
                try:
                    result = connection.execute(_text(statement), parameters)
                except OperationalError as error:
                    if getattr(error.orig, "pgcode", None) == "55P03":  # the row is locked by a fence: held
                        return []
                    raise
                return list(result.all()) if result.returns_rows else []

        return self._retried(run)

    def _retried(self, work: Callable[[], Result]) -> Result:
        """Return the result of some work in the database; try again if a connection that worked before is lost.

        Raises:
            LeaseError: the database cannot be used.
        """
        from sqlalchemy.exc import DBAPIError, OperationalError, SQLAlchemyError

        deadline = time.monotonic() + (_RETRY_SECONDS if "_engine" in self.__dict__ else 0)
        while True:
            try:
                return work()
            except (SQLAlchemyError, ImportError) as error:
                lost = isinstance(error, OperationalError) or (
                    isinstance(error, DBAPIError) and error.connection_invalidated
                )
                if not lost or time.monotonic() > deadline:
                    raise _unusable(self._url, error) from error
                time.sleep(0.5)

    @cached_property
    def _engine(self) -> Engine:
        """The connections: one that is kept, and those of fences. The table is made at the first use."""
        import sqlalchemy

        engine = sqlalchemy.create_engine(
            with_driver(self._url), pool_size=1, max_overflow=-1, pool_pre_ping=True, connect_args=_CONNECTION
        )
        with engine.begin() as connection:
            for statement in _SCHEMA:
                connection.execute(_text(statement))
        return engine


@lru_cache
def leases_of(url: str, place: str, process: int) -> Leases:
    """Return the leases of a process in a database; `process` is the id of this process, so that a fork has its own."""
    del process
    return Leases(url, place)


def owner_name(host: str, process: int) -> str:
    """Return how a lease names its holder."""
    return f"{host}, process {process}"


def is_postgres(url: str) -> bool:
    """Return whether an address is of a PostgreSQL database."""
    return url.startswith(("postgresql://", "postgres://", "postgresql+"))


def with_driver(url: str) -> str:
    """Return the address of a PostgreSQL database with the driver of the extra `postgres`; others as they are.

    SQLAlchemy takes another driver by default, which is not installed, and refuses `postgres://`.
    """
    for scheme in ("postgresql://", "postgres://"):
        if url.startswith(scheme):
            return _DRIVER + url.removeprefix(scheme)
    return url


def _unusable(url: str, error: Exception) -> LeaseError:
    if isinstance(error, ImportError):
        reason, remedy = "its driver is missing", "install the extra postgres"
    else:
        reason = without_secrets(first_sentence(error), url)
        remedy = "start it, or mend KRONOS_LEASE_DATABASE or MLFLOW_TRACKING_URI"
    return LeaseError(f"The database of locks {without_password(url)} cannot be used: {reason}; {remedy}.")


def _lifetime() -> float:
    text = os.environ.get(LIFETIME, "")
    try:
        seconds = float(text or _DEFAULT_LIFETIME)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds <= 3600:
        raise LeaseError(f"{LIFETIME} is {text!r}, and a number of seconds from 1 to 3600 is needed.")
    return seconds


def _text(statement: str) -> Any:
    import sqlalchemy

    return sqlalchemy.text(statement)
