"""A Ray cluster for tests: nodes on addresses of this machine, each with local files of its own, as machines have."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

_START_SECONDS = 300
_MARK = "KRONOS_TEST_CLUSTER"
_OBJECT_STORE_BYTES = 80_000_000
"""About the least that Ray allows; the project stores nothing there."""


class RayCluster:
    """A head and a second node, of a CPU and an imaginary GPU each; holders of the token submit jobs.

    Processes of the cluster are known by their session or a variable of their environment, so that orphans end too.

    Attributes:
        environment: variables for programs that use the cluster.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Start the nodes, and wait until both have joined.

        Args:
            environment: variables of all nodes and their jobs.
        """
        self._folder = Path(tempfile.mkdtemp(prefix="ray-"))  # sockets lie below it, and their paths must be short
        (self._folder / "token").write_text(secrets.token_hex(32))
        gcs, dashboard, client = free_ports(3)
        head, second = "127.0.0.2", "127.0.0.3"  # Ray replaces 127.0.0.1 by an address of the network
        self._mark = secrets.token_hex(8)
        self.environment = {
            "RAY_API_SERVER_ADDRESS": f"http://{head}:{dashboard}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self._folder / "token"),
            "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        self._variables = {**os.environ, **environment, **self.environment, _MARK: self._mark}
        ports = [f"--port={gcs}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"]
        try:
            self._start("1", head, ["--head", f"--dashboard-host={head}", *ports])
            self._start("2", second, [f"--address={head}:{gcs}"])
            self._wait_for_nodes()
        except BaseException:
            self.close()
            raise

    def processes(self, *words: str) -> list[int]:
        """Return the ids of the cluster's processes whose command lines have some words."""
        return list(self._find(words))

    def close(self) -> None:
        """End all processes of the cluster, and remove its folder."""
        while found := self.processes():
            for process in found:
                try:
                    os.kill(process, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.05)
        for node in self._nodes:
            node.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    _nodes: tuple[subprocess.Popen[bytes], ...] = ()

    def _start(self, name: str, address: str, flags: list[str]) -> None:
        """Start a node with a temporary folder of its own: its file locks do not reach the other node."""
        own = self._folder / name
        (own / "tmp").mkdir(parents=True)
        (agent,) = free_ports(1)
        command = [str(Path(sys.executable).parent / "ray"), "start", *flags, f"--node-ip-address={address}"]
        command += ["--num-cpus=1", "--num-gpus=1", f"--object-store-memory={_OBJECT_STORE_BYTES}", "--block"]
        command += [f"--temp-dir={own / 'ray'}", "--include-log-monitor=false", "--disable-usage-stats"]
        command += ["--min-worker-port=0", "--max-worker-port=0", f"--dashboard-agent-listen-port={agent}"]
        variables = {**self._variables, "TMPDIR": str(own / "tmp")}
        with (self._folder / f"{name}.log").open("wb") as log:
            node = subprocess.Popen(command, env=variables, stdout=log, stderr=log, start_new_session=True)
        self._nodes += (node,)

    def _wait_for_nodes(self) -> None:
        """Wait until the head takes jobs and the second node has joined."""
        deadline = time.monotonic() + _START_SECONDS
        while not all("Ray runtime started" in log.read_text() for log in self._folder.glob("*.log")):
            self._check(deadline)

    def _check(self, deadline: float) -> None:
        ended = any(node.poll() is not None for node in self._nodes)
        if ended or time.monotonic() > deadline:
            raise RuntimeError("\n".join(path.read_text() for path in sorted(self._folder.glob("*.log"))))
        time.sleep(0.1)

    def _find(self, words: tuple[str, ...]) -> Iterator[int]:
        """Yield processes that have words in their command line.

        Jobs have sessions of their own, and Ray's workers overwrite their environment by a title.
        """
        mark, sessions = f"{_MARK}={self._mark}".encode(), {node.pid for node in self._nodes}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                environment, command = (folder / "environ").read_bytes(), (folder / "cmdline").read_bytes()
                state, _, _, session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            except OSError:
                continue  # it has ended, or is not ours
            ours = mark in environment or int(session) in sessions
            if ours and state != "Z" and all(word.encode() in command for word in words):
                yield int(folder.name)


def free_ports(count: int) -> list[int]:
    """Return ports that no program listens on."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()
