"""An MLflow server that ends and starts again on its port."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

_SERVER = """
import logging, sys, threading
from mlflow import server
from werkzeug.serving import WSGIRequestHandler, make_server

logging.getLogger("werkzeug").setLevel("WARNING")
WSGIRequestHandler.protocol_version = "HTTP/1.0"  # no connection is kept that outlives an end of the server
serving = None
for line in sys.stdin:
    if line == "start\\n" and serving is None:
        serving = make_server("127.0.0.1", int(sys.argv[1]), server.app, threaded=True)
        threading.Thread(target=serving.serve_forever, daemon=True).start()
    elif line == "end\\n" and serving is not None:
        serving.shutdown()
        serving.server_close()
        serving = None
    print("done", flush=True)
"""
"""MLflow's own server; it is no part of the tests' process, as it changes where that process keeps its artifacts."""


class MlflowServer:
    """A process with MLflow's server, which listens on a port of this machine or not."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        port = _free_port()
        self.uri = f"http://127.0.0.1:{port}"
        self.artifacts = Path(environment["_MLFLOW_SERVER_ARTIFACT_DESTINATION"])
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVER, str(port)],
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.start()

    def start(self) -> None:
        self._tell("start")

    def end(self) -> None:
        self._tell("end")

    def close(self) -> None:
        self._process.communicate()

    def _tell(self, command: str) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "done\n"


def _free_port() -> int:
    """Return a free port that the system gives to no client, which would keep an ended server from starting again."""
    for port in random.sample(range(20_000, 32_000), 1_000):
        with socket.socket() as free, suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no port of this machine is free")


def server_environment(database: Path, artifacts: Path) -> dict[str, str]:
    """Return the variables of a server with a SQLite store and artifacts that it serves itself."""
    return {
        "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{database}",
        "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
        "_MLFLOW_SERVER_ARTIFACT_DESTINATION": str(artifacts),
        "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
    }
