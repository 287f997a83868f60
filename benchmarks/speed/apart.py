"""Parts of a benchmark, each in a process of its own: whatever ends one part, the others are measured.

An error of a CUDA kernel leaves the whole process without its GPU, a crash or a hang leaves nothing. So the parent
starts a child per part, waits for so long and no longer, and never touches the GPU itself. The child writes its tables
to a file as JSON, anew with each table, so that those that it had are kept however it ends.
"""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from speed.table import NOT_MEASURED, Goal, Report, Table

MEASURED = "measured"
_LENGTH = 200
"""Characters of an error's message that fit into a table."""


@dataclass(frozen=True)
class Found:
    """What a part found.

    Attributes:
        reports: in the order of measuring; fewer than all where the part did not end well.
        end: "measured", or why there is no more.
        code: the exit status of its process; None where it was stopped or never begun.
    """

    reports: Sequence[Report]
    end: str
    code: int | None = None


def run(command: Sequence[str], file: Path, limit: float) -> Found:
    """Run a part in a process of its own, which is ended before this returns or raises.

    Args:
        command: starts a process that calls `carry_out` with the same file; what it prints goes to standard error.
        file: where the process writes what it finds.
        limit: seconds after which it is ended.
    """
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=2, start_new_session=True)
    try:
        code = child.wait(limit)
    except subprocess.TimeoutExpired:
        code = None
    finally:
        _end(child)
    late = f"{NOT_MEASURED}: the time was up after {limit:.0f} s"
    return read(file, late if code is None else f"failed: {_status(code)}", code)


def read(file: Path, end: str, code: int | None = None) -> Found:
    """What a process has written.

    Args:
        file: that it wrote to; it need not be there.
        end: what became of the process, where it did not write that itself.
        code: its exit status.
    """
    if not file.exists():
        return Found([], end, code)
    content = json.loads(file.read_text(encoding="utf-8"))
    reports = [
        Report([Table(**table) for table in report["tables"]], [Goal(**goal) for goal in report["goals"]])
        for report in content["reports"]
    ]
    return Found(reports, content["end"] or end, code)


def carry_out(part: Callable[[], Iterable[Report]], file: Path) -> None:
    """Measure, in the child: each report of the part goes to the file as it comes, an error to the file and to stderr.

    Raises:
        SystemExit: the part failed.
    """
    _end_with_parent()
    reports: list[Report] = []

    def write(end: str | None) -> None:
        new = file.with_suffix(".new")
        new.write_text(json.dumps({"reports": [asdict(report) for report in reports], "end": end}), encoding="utf-8")
        new.replace(file)

    try:
        for report in part():
            reports.append(report)
            write(None)
    except Exception as error:
        traceback.print_exc()
        first = (str(error).strip().splitlines() or [""])[0][:_LENGTH].replace("|", "/")
        write(f"failed: {type(error).__name__}: {first}".rstrip(": "))
        raise SystemExit(1) from None
    write(MEASURED)


def _end_with_parent() -> None:
    """End this process when the parent ends, even by SIGKILL: standard input is a pipe that closes then."""
    if not stat.S_ISFIFO(os.fstat(0).st_mode):
        return

    def watch() -> None:
        while os.read(0, 1):
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _end(child: subprocess.Popen[bytes]) -> None:
    child.kill()  # does nothing to a process that has ended
    try:
        child.wait(10)
    except subprocess.TimeoutExpired:
        print(f"Process {child.pid} does not end; it waits for its device.", file=sys.stderr)
    if child.stdin is not None:
        child.stdin.close()


def _status(code: int) -> str:
    if code >= 0:
        return f"its process ended with exit status {code}"
    try:
        return f"its process was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"its process was ended by signal {-code}"
