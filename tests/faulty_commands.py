"""Commands whose N-th call to the file system fails, as a full disk, an I/O error or a kill would let it fail."""

from __future__ import annotations

import enum
import json
import mmap
import os
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent
_STATE = struct.Struct("<qqqqqq256s")
_CLOCK = struct.Struct("<q")
_CLOCK_OFFSET = 40
"""Place of the clock in the state."""


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


class Faults:
    """Faults of processes that load `nth_call.c` and share its state: their calls below `root` are counted."""

    def __init__(self, root: Path, scratch: Path) -> None:
        library = scratch / "nth_call.so"
        build = [compiler() or "cc", "-shared", "-fPIC", "-O2", "-o", str(library), str(FOLDER / "nth_call.c"), "-ldl"]
        subprocess.run(build, check=True)
        self.clock_offset = 0
        """Seconds between the clock of the processes and the true time, from the next `arm` or `set_clock` on."""
        state = scratch / "state"
        state.write_bytes(bytes(_STATE.size))
        with state.open("r+b") as opened:
            self._state = mmap.mmap(opened.fileno(), _STATE.size)
        self.list = scratch / "state.calls"
        """The file of the listed calls."""
        self.environment: Mapping[str, str] = {
            "LD_PRELOAD": str(library),
            "KRONOS_FAULTS_ROOT": str(root),
            "KRONOS_FAULTS_STATE": str(state),
        }
        """The variables of the processes."""

    def arm(self, fault: Fault = Fault.NONE, nth: int = 0, *, listing: bool = False) -> None:
        """Count calls from 0, and let the nth meet the fault; list the calls in a file if wanted."""
        self._state[:] = _STATE.pack(0, nth, fault, 0, listing, self.clock_offset, b"")

    def set_clock(self, offset: int) -> None:
        """Set the clock of all processes, while calls are counted."""
        self.clock_offset = offset
        _CLOCK.pack_into(self._state, _CLOCK_OFFSET, offset)

    def read(self) -> tuple[int, int, str]:
        """Return the number of calls, the number that failed, and name and path of the first that failed."""
        calls, _, _, failed, _, _, where = _STATE.unpack(self._state[:])
        return calls, failed, where.rstrip(b"\0").decode(errors="replace")


class FaultyCommands:
    """Runs `kronos` commands one after the other; calls below `root` are counted, and one of them can fail."""

    def __init__(self, root: Path, scratch: Path) -> None:
        self._faults = Faults(root, scratch)
        self._printed = scratch / "printed.txt"
        environment = {**os.environ, **self._faults.environment, "OMP_NUM_THREADS": "1"}
        environment.pop("MLFLOW_TRACKING_URI", None)
        command = [sys.executable, str(FOLDER / "fork_server.py")]
        self._server = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._read_line()

    @property
    def clock_offset(self) -> int:
        """Seconds between the clock of the commands and the true time."""
        return self._faults.clock_offset

    @clock_offset.setter
    def clock_offset(self, seconds: int) -> None:
        self._faults.clock_offset = seconds

    def warm_up(self, arguments: Sequence[str]) -> None:
        """Run `kronos` in the process that is forked for the commands, on folders of its own, so that they are fast."""
        outcome = self._run(arguments, Fault.NONE, 0, here=True)
        if outcome.exit_code != 0:
            raise RuntimeError(f"{arguments} fails without a fault: {outcome.printed}")

    def list_calls(self, arguments: Sequence[str]) -> list[str]:
        """Run `kronos` without a fault, and return name and path of each call."""
        self._faults.list.unlink(missing_ok=True)
        outcome = self._run(arguments, Fault.NONE, 0, listing=True)
        if outcome.exit_code != 0:
            raise RuntimeError(f"{arguments} fails without a fault: {outcome.printed}")
        return self._faults.list.read_text().splitlines()

    def run(self, arguments: Sequence[str], fault: Fault = Fault.NONE, nth: int = 0) -> Outcome:
        """Run `kronos` with these arguments, and let the nth call meet the fault."""
        return self._run(arguments, fault, nth)

    def _run(
        self, arguments: Sequence[str], fault: Fault, nth: int, *, listing: bool = False, here: bool = False
    ) -> Outcome:
        self._faults.arm(fault, nth, listing=listing)
        assert self._server.stdin is not None
        request = {"arguments": list(arguments), "output": str(self._printed), "here": here}
        try:
            self._server.stdin.write(json.dumps(request) + "\n")
            self._server.stdin.flush()
            exit_code = int(self._read_line())
        except BaseException:  # a time limit, or Ctrl-C: no later command may get this one's answer, nor run beside it
            os.killpg(self._server.pid, signal.SIGKILL)
            raise
        calls, failed, where = self._faults.read()
        printed = self._printed.read_text(errors="replace")
        return Outcome(exit_code, printed, calls, failed, where)

    def _read_line(self) -> str:
        assert self._server.stdout is not None
        line = self._server.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of the commands ended with {self._server.wait()}")
        return line.strip()

    def close(self) -> None:
        """End the process of the commands."""
        self._server.communicate()
