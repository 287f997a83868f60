"""The MLflow run of a training, kept with the training's state, so that a resumed training goes on with its run.

    state/<key>/mlflow_run.json   {"tracking_id": ..., "run_id": ..., "store": ...}

The record is written before the run is made, and the run has the tracking id as a tag: a kill between the two loses
neither. A run also names its process in a tag, so that the run of a process that was killed is told from a live one.
"""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path

from kronos_pipeline.artifacts import read_json, write_json
from kronos_pipeline.errors import ArtifactError
from kronos_pipeline.leases import owner_name

TRACKING_ID, PROCESS, FORMER_RUN = "tracking_id", "process", "former_run"
"""Tags of a run: the tracking id, the process that writes it, and the run before it that is gone."""
_FILE = "mlflow_run.json"


@dataclass(frozen=True)
class RunRecord:
    """The run of a training.

    Attributes:
        tracking_id: the id that this project gives the run, a tag of it.
        run_id: MLflow's id of the run; None before the run is made.
        store: the store of the run, without a password.
        process: the process that trains, or that was killed as it trained.
    """

    tracking_id: str
    run_id: str | None
    store: str
    process: str


def new_record(store: str) -> RunRecord:
    """Return the record of a training without a run, by this process."""
    return RunRecord(uuid.uuid4().hex, None, store, process_name())


def read_record(folder: Path) -> RunRecord | None:
    """Read the record in the folder of a training's state; None without a record, or if it is damaged."""
    try:
        return RunRecord(**read_json(folder / _FILE))
    except (ArtifactError, TypeError):
        return None


def write_record(folder: Path, record: RunRecord) -> None:
    """Write the record into the folder of a training's state.

    Raises:
        ArtifactError: it cannot be written.
    """
    write_json(folder / _FILE, asdict(record))


def process_name() -> str:
    """Return the name of this process: host, number and start, as another process may get the same number later."""
    return f"{_host()}:{os.getpid()}:{_start_of(os.getpid())}"


def is_dead(process: str) -> bool:
    """Return whether a process of this host has ended; False for a process of another host, which cannot be seen."""
    host, number, start = [*process.split(":"), "", ""][:3]
    return host == _host() and number.isdecimal() and _start_of(int(number)) != start


def holds_no_lease(process: str, owners: Collection[str]) -> bool:
    """Return whether a process of another host has ended, as it holds none of the leases that are held.

    Args:
        process: the name of the process, see `process_name`.
        owners: the holders of all leases.
    """
    host, number, *_ = [*process.split(":"), ""]
    return number.isdecimal() and host != _host() and owner_name(host, int(number)) not in owners


def is_other(process: str) -> bool:
    """Return whether a process is alive, as far as can be seen here, and not this process."""
    return process != process_name() and process.startswith(f"{_host()}:") and not is_dead(process)


def _host() -> str:
    return socket.gethostname().replace(":", "-")


def _start_of(number: int) -> str | None:
    """Return the start of a process, in clock ticks after the system's; None if there is no such process.

    A system without /proc tells only whether a process exists; then the start is "".
    """
    try:
        fields = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return None
    except OSError:
        return ""  # it exists, and is another user's
    return ""
