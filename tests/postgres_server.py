"""A PostgreSQL server for tests: in a temporary folder, on a free port of 127.0.0.1, without syncs to the disk."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psycopg2

USER = "kronos"
_START_SECONDS = 60
_FAST = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "autovacuum=off", "shared_buffers=32MB")


def postgres_programs() -> Path | None:
    """Return the folder of the newest installed `initdb` and `postgres`, or None."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))
    on_path = shutil.which("initdb")
    found = [*debian, *([Path(on_path).resolve().parent] if on_path else [])]
    usable = [folder for folder in found if (folder / "initdb").is_file() and (folder / "postgres").is_file()]
    return usable[-1] if usable else None


class PostgresServer:
    """A server with one user and a password; it ends with this process, too.

    Attributes:
        port: the port on 127.0.0.1; it stays the same over a restart.
        password: the user's password.
    """

    def __init__(self, programs: Path) -> None:
        self._programs = programs
        self.password = secrets.token_hex(12)
        self._folder = Path(tempfile.mkdtemp(prefix="kronos-postgres-"))
        self._databases = 0
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        password_file = self._folder / "password"
        password_file.write_text(self.password)
        if os.geteuid() == 0:
            for path in (self._folder, password_file):
                shutil.chown(path, *self._account())
        initdb = [str(programs / "initdb"), "-D", str(self._folder / "data"), "-U", USER, "-A", "scram-sha-256"]
        options = ["--pwfile", str(password_file), "--no-sync", "--locale=C", "--encoding=UTF8"]
        subprocess.run(self._as_user([*initdb, *options]), check=True, capture_output=True, cwd=self._folder)
        self.start()

    def start(self) -> None:
        """Start the server, and wait until it takes connections."""
        settings = [
            *_FAST,
            f"port={self.port}",
            "listen_addresses=127.0.0.1",
            f"unix_socket_directories={self._folder}",
        ]
        flags = [part for setting in settings for part in ("-c", setting)]
        command = [str(self._programs / "postgres"), "-D", str(self._folder / "data"), *flags]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(self._as_user(command), stdout=log, stderr=log, cwd=self._folder)
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                self.execute("SELECT 1")
                return
            except psycopg2.OperationalError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((self._folder / "log").read_text()) from None
                time.sleep(0.05)

    def stop(self) -> None:
        """End the server and all its connections at once."""
        self._process.send_signal(signal.SIGINT)
        self._process.wait(_START_SECONDS)

    def restart(self) -> None:
        """End all connections, as a restart of the server does."""
        self.stop()
        self.start()

    def close(self) -> None:
        """End the server and remove its folder."""
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def new_database(self, template: str = "template1") -> str:
        """Create a database as a copy of another, whose connections end; return its name."""
        self._databases += 1
        name = f"kronos_{self._databases}"
        self.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{template}'")
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    def url(self, database: str) -> str:
        """Return the address of a database for SQLAlchemy, with the password."""
        return f"postgresql+psycopg2://{USER}:{self.password}@127.0.0.1:{self.port}/{database}"

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        """Execute one statement outside a transaction, and return its rows."""
        place = {"host": "127.0.0.1", "port": self.port, "dbname": database}
        connection = psycopg2.connect(user=USER, password=self.password, **place)
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(statement)
                return cursor.fetchall() if cursor.description else []
        finally:
            connection.close()

    def _as_user(self, command: Sequence[str]) -> list[str]:
        """Return the command with a user other than root, and with a signal at the end of this process."""
        account = []
        if os.geteuid() == 0:
            user, group = self._account()
            account = ["--reuid", user, "--regid", group, "--clear-groups"]
        return ["setpriv", *account, "--pdeathsig", "INT", *command]

    @staticmethod
    def _account() -> tuple[str, str]:
        """Return the user and the group of the server; PostgreSQL refuses root."""
        import pwd

        names = {entry.pw_name for entry in pwd.getpwall()}
        return ("postgres", "postgres") if "postgres" in names else ("nobody", "nogroup")
