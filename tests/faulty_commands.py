"""Commands whose N-th call to the file system fails, as a full disk, an I/O error or a kill would let it fail."""

from __future__ import annotations

import enum
import json
import mmap
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent
_STATE = struct.Struct("<qqqqqq256s")


class Fault(enum.IntEnum):
    """Faults, numbered as in `nth_call.c`."""

    NONE = 0
    FULL_DISK = 1
    IO_ERROR = 2
    KILL = 3


@dataclass(frozen=True)
class Outcome:
    """The end of a command: exit code (minus the signal's number after a kill), output, and calls."""

    exit_code: int
    printed: str
    calls: int
    """Calls that changed a file of the folder."""
    failed: int
    where: str
    """Name and path of the first call that failed."""


def compiler() -> str | None:
    """Return the C compiler, or None."""
    return shutil.which("cc") or shutil.which("gcc")


class FaultyCommands:
    """Runs `kronos` commands one after the other; calls below `root` are counted, and one of them can fail."""

    def __init__(self, root: Path, scratch: Path) -> None:
        library = scratch / "nth_call.so"
        build = [compiler() or "cc", "-shared", "-fPIC", "-O2", "-o", str(library), str(FOLDER / "nth_call.c"), "-ldl"]
        subprocess.run(build, check=True)
        self.clock_offset = 0
        """Seconds between the clock of the commands and the true time."""
        state = scratch / "state"
        state.write_bytes(bytes(_STATE.size))
        with state.open("r+b") as opened:
            self._state = mmap.mmap(opened.fileno(), _STATE.size)
        self._printed, self._calls = scratch / "printed.txt", scratch / "state.calls"
        environment = {
            **os.environ,
            "LD_PRELOAD": str(library),
            "KRONOS_FAULTS_ROOT": str(root),
            "KRONOS_FAULTS_STATE": str(state),
            "OMP_NUM_THREADS": "1",
        }
        environment.pop("MLFLOW_TRACKING_URI", None)
        command = [sys.executable, str(FOLDER / "fork_server.py")]
        self._server = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._read_line()

    def list_calls(self, arguments: Sequence[str]) -> list[str]:
        """Run `kronos` without a fault, and return name and path of each call."""
        self._calls.unlink(missing_ok=True)
        outcome = self._run(arguments, Fault.NONE, 0, listing=True)
        if outcome.exit_code != 0:
            raise RuntimeError(f"{arguments} fails without a fault: {outcome.printed}")
        return self._calls.read_text().splitlines()

    def run(self, arguments: Sequence[str], fault: Fault = Fault.NONE, nth: int = 0) -> Outcome:
        """Run `kronos` with these arguments, and let the nth call meet the fault."""
        return self._run(arguments, fault, nth, listing=False)

    def _run(self, arguments: Sequence[str], fault: Fault, nth: int, *, listing: bool) -> Outcome:
        self._state[:] = _STATE.pack(0, nth, fault, 0, listing, self.clock_offset, b"")
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps({"arguments": list(arguments), "output": str(self._printed)}) + "\n")
        self._server.stdin.flush()
        exit_code = int(self._read_line())
        calls, _, _, failed, _, _, where = _STATE.unpack(self._state[:])
        printed = self._printed.read_text(errors="replace")
        return Outcome(exit_code, printed, calls, failed, where.rstrip(b"\0").decode(errors="replace"))

    def _read_line(self) -> str:
        assert self._server.stdout is not None
        line = self._server.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of the commands ended with {self._server.wait()}")
        return line.strip()

    def close(self) -> None:
        """End the process of the commands."""
        self._server.communicate()
