"""Checks of the machine and of the output folder, for `kronos doctor --system`: a finding and a remedy each.

The checks read versions, files and SQLite tables, and import neither torch nor MLflow nor Dagster, so that they take
seconds and work on a broken installation. A check that fails itself is an error with its reason.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from filelock import FileLock, Timeout
from packaging.requirements import Requirement

from kronos_pipeline.artifact_store.sharing import shared_folder
from kronos_pipeline.artifacts import MANIFEST, ArtifactLayout, read_json
from kronos_pipeline.base_models import WeightsSource, find_base_model
from kronos_pipeline.checksums import file_hash
from kronos_pipeline.errors import KronosError, count, enumerate_some, first_sentence, readable_size
from kronos_pipeline.leases import HeldLease, LeaseError
from kronos_pipeline.locks import held_leases
from kronos_pipeline.pipeline.dagster_process import answer_of, ask_dagster
from kronos_pipeline.removal import free_bytes, size_of
from kronos_pipeline.tracking.store import find_store_uri
from kronos_pipeline.tracking.store_checks import check_champions, check_store

OK, WARNING, ERROR = "ok", "warning", "error"
_ROOT = Path(__file__).resolve().parents[2]
_SAMPLE = 50
"""Newest folders of MLflow's artifacts whose size is measured."""
_FIRST_TRAINING = 600_000
"""Bytes that a training of a ticker adds, where none has been measured."""
_NIGHTS = 7
_LEASES_SHOWN = 5
_WAIT_SECONDS = 10.0


@dataclass(frozen=True)
class Finding:
    """The result of a check.

    Attributes:
        subject: what was checked.
        state: "ok", "warning" or "error".
        text: what was found.
        remedy: what to do about it; empty if nothing.
    """

    subject: str
    state: str
    text: str
    remedy: str = ""


def check_system(data_dir: Path, layout: ArtifactLayout, model: str, now: datetime) -> list[Finding]:
    """Return the findings of all checks.

    Args:
        data_dir: the folder of CSVs.
        layout: the layout of the artifacts.
        model: the base model.
        now: the current time, with a zone.
    """
    of_dagster = ask_dagster("health")  # its process takes longest, and works beside the other checks
    checks: dict[str, Callable[[], Finding]] = {
        "python": _python,
        "packages": _packages,
        "gpu": _gpu,
        "base model": lambda: _base_model(model),
        "output folder": lambda: _output_folder(layout),
        "artifact store": lambda: _artifact_store(layout),
        "MLflow store": lambda: Finding("", *check_store(find_store_uri(None, layout.root))),
        "champions": lambda: Finding("", *check_champions(find_store_uri(None, layout.root))),
        "disk": lambda: _disk(layout),
        "clock": lambda: _clock(layout, now),
        "bars and models": lambda: _stale(data_dir, layout, now),
        "locks": lambda: _locks(layout),
        "Dagster": lambda: _dagster(of_dagster),
    }
    findings = []
    for subject, check in checks.items():
        try:
            finding = check()
        except Exception as error:  # one broken part must not hide the others
            remedy = "" if isinstance(error, KronosError) else "mend that first, then run the command again"
            finding = Finding(subject, ERROR, f"cannot be checked: {first_sentence(error)}", remedy)
        findings.append(Finding(subject, finding.state, finding.text, finding.remedy))
    return findings


def _python() -> Finding:
    version = platform.python_version()
    if sys.version_info[:2] not in ((3, 11), (3, 12)):
        return Finding("", ERROR, f"Python {version}", "use Python 3.11 or 3.12: make venv")
    return Finding("", OK, f"Python {version} in {sys.prefix}")


def _packages() -> Finding:
    """Compare the installed packages with the requirements of the project, and with the pins of a clone."""
    missing = []
    for text in importlib.metadata.requires("kronos-pipeline") or []:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        installed = _version(requirement.name)
        if installed is None or not requirement.specifier.contains(installed, prereleases=True):
            missing.append(f"{requirement} (here {installed or 'none'})")
    install = "uv pip install -e . -c constraints.txt"
    if missing:
        return Finding("", ERROR, f"{count(len(missing), 'requirement')} not met: {enumerate_some(missing)}", install)
    pins = _pins(_ROOT / "constraints.txt")
    others = [
        f"{name} {_version(name)}, pinned {pin}" for name, pin in pins.items() if _version(name) not in (None, pin)
    ]
    others = [text for text in others if not text.startswith("torch ")]  # a CUDA or CPU build has a version of its own
    if others:
        return Finding(
            "", WARNING, f"{count(len(others), 'package')} not as pinned: {enumerate_some(others, 3)}", install
        )
    return Finding("", OK, f"all requirements met; torch {_version('torch')}, mlflow {_version('mlflow')}")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _pins(path: Path) -> dict[str, str]:
    """Return the pinned version of each package that has one pin on this platform."""
    pins: dict[str, str] = {}
    for line in path.read_text().splitlines() if path.is_file() else []:
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate():
            pins[requirement.name] = str(requirement.specifier).removeprefix("==")
    return pins


def _gpu() -> Finding:
    """Compare torch's build with the driver; report each GPU's free memory."""
    build = _torch_cuda()
    query = "--query-gpu=name,memory.used,memory.total,utilization.gpu,driver_version"
    if shutil.which("nvidia-smi") is None:
        if build is None:
            return Finding("", OK, "none; trainings and forecasts run on the CPU")
        return Finding("", OK, f"no NVIDIA driver here; torch is built for CUDA {build} and runs on the CPU")
    command = ["nvidia-smi", query, "--format=csv,noheader,nounits"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)  # noqa: S603 - constant
    rows = [[cell.strip() for cell in line.split(",")] for line in answer.stdout.splitlines() if line.count(",") == 4]
    if answer.returncode or not rows:
        reason = (answer.stderr or answer.stdout).strip().splitlines()[:1]
        return Finding("", ERROR, f"nvidia-smi fails: {enumerate_some(reason)}", "reload or reinstall the driver")
    shown = "; ".join(f"{name}, {used} of {total} MiB used, {load} % busy" for name, used, total, load, _ in rows)
    text = f"{shown}; driver {rows[0][4]}"
    if build is None:
        remedy = "install torch's CUDA build: unset PIP_FIND_LINKS and run make venv"
        return Finding("", ERROR, f"{text}; torch is built for the CPU alone", remedy)
    busy = [name for name, used, total, *_ in rows if used.isdigit() and int(used) > int(total) / 2]
    if busy:
        return Finding("", WARNING, text, "nvidia-smi names the processes; a training waits, or runs in smaller parts")
    return Finding("", OK, f"{text}; torch for CUDA {build}")


def _torch_cuda() -> str | None:
    """Return the CUDA version of torch's build, or None for a CPU build, without importing torch."""
    files = importlib.metadata.files("torch") or []
    version_file = next((file for file in files if str(file) == "torch/version.py"), None)
    if version_file is None:
        return None
    found = re.search(r"^cuda[^=]*= '([^']+)'", version_file.read_text(), re.MULTILINE)
    return found[1] if found else None


def _base_model(name: str) -> Finding:
    source = find_base_model(name)
    for weights in (source.predictor, source.tokenizer):
        if weights.folder is not None:
            if damaged := _damaged_files(weights.folder):
                return Finding("", ERROR, f"{damaged} is damaged or missing", "restore the folder from its origin")
        elif problem := _cache_problem(weights):
            fetch = f"hf download {weights.repository} --revision {weights.revision}"
            return Finding("", ERROR, problem, f"{fetch}; or KRONOS_BASE_MODEL=kronos-nano")
    return Finding("", OK, f"{source.label} is on this machine, whole")


def _damaged_files(folder: Path) -> Path | None:
    """Return the first file of a local model that is missing or differs from its manifest."""
    hashes = read_json(folder / MANIFEST).get("files", {}) if (folder / MANIFEST).is_file() else {}
    for name in ("config.json", "model.safetensors"):
        path = folder / name
        if not path.is_file() or (name in hashes and file_hash(path) != hashes[name]):
            return path
    return None


def _cache_problem(weights: WeightsSource) -> str | None:
    """Return what is wrong with the Hub's cache of some weights; the cache names large files by their SHA-256."""
    from huggingface_hub import try_to_load_from_cache

    for name in ("config.json", "model.safetensors"):
        found = try_to_load_from_cache(str(weights.repository), name, revision=weights.revision)
        if not isinstance(found, str):
            return f"{weights.repository} at {str(weights.revision)[:8]} is not on this machine: {name} is missing"
        blob = Path(found).resolve()
        if len(blob.name) == 64 and file_hash(blob) != blob.name:
            return f"{found} is damaged"
    return None


def _output_folder(layout: ArtifactLayout) -> Finding:
    if not layout.root.is_dir():
        return Finding("", WARNING, f"{layout.root} does not exist yet", "the first training makes it")
    if not os.access(layout.root, os.W_OK | os.X_OK):
        return Finding("", ERROR, f"{layout.root} cannot be written to", "change its owner, or set KRONOS_OUTPUT_DIR")
    if damaged := sorted(layout.root.glob("*/*.damaged"))[:_SAMPLE] + sorted(layout.root.glob("state/*/*.damaged")):
        text = f"{count(len(damaged), 'damaged file')} set aside, such as {damaged[0]}"
        return Finding("", WARNING, text, "check the disk (smartctl, dmesg); `kronos clean` deletes them after a month")
    return Finding("", OK, f"{layout.root} can be written to")


def _artifact_store(layout: ArtifactLayout) -> Finding:
    """Ask the store of `KRONOS_ARTIFACT_STORE`, write to it, and count what waits for it."""
    folder = shared_folder(layout.root)
    if folder is None:
        return Finding("", OK, "none: this machine keeps its artifacts to itself")
    seconds = folder.probe()
    waiting = folder.records.waiting() if layout.root.is_dir() else []
    text = f"{folder.store.url} answers, is writable and obeys conditional writes, in {seconds:.1f} s"
    if waiting:
        text += f"; {count(len(waiting), 'artifact')} to deliver: {enumerate_some(waiting, 3)}"
        return Finding("", WARNING, text, "kronos sync delivers them, and so does the next command on their tickers")
    return Finding("", OK, text)


def _disk(layout: ArtifactLayout) -> Finding:
    """Compare the free space with what a night needs, by the newest trainings."""
    free = free_bytes(layout.root)
    tickers = len(list((layout.root / "bars").glob("[!.]*.parquet")))
    one, source = _training_size(layout)
    need = max(tickers, 1) * one
    text = f"{readable_size(free)} free; a night of {count(tickers, 'ticker')} adds {readable_size(need)} ({source})"
    remedy = "kronos clean --dry-run shows what can go"
    if free < need:
        return Finding("", ERROR, text, remedy)
    return Finding("", WARNING if free < _NIGHTS * need else OK, text, remedy if free < _NIGHTS * need else "")


def _training_size(layout: ArtifactLayout) -> tuple[int, str]:
    """Return the bytes that a training of a ticker adds, and the source of the number."""
    parts = [_newest(layout.mlflow_artifacts / "models"), _newest(layout.mlflow_artifacts)]
    sizes = [sum(map(size_of, folders)) / len(folders) for folders in parts if folders]
    return (int(sum(sizes)), "measured") if len(sizes) == len(parts) else (_FIRST_TRAINING, "as on other machines")


def _newest(folder: Path) -> list[Path]:
    entries = [entry for entry in folder.glob("[!.]*") if entry.is_dir() and entry.name != "models"]
    return sorted(entries, key=lambda entry: -entry.stat().st_mtime)[:_SAMPLE]


def _clock(layout: ArtifactLayout, now: datetime) -> Finding:
    """Compare the clock with the newest file; a clock that is behind dates forecasts back."""
    paths = [*layout.root.glob("*"), *(layout.root / "bars").glob("*"), *layout.ledger.glob("*/*")]
    newest = max((path.lstat().st_mtime for path in paths), default=0.0)
    ahead = timedelta(seconds=newest - now.timestamp())
    if ahead > timedelta(minutes=1):
        remedy = "set the clock (timedatectl); no forecast is issued at a wrong time then"
        return Finding("", ERROR, f"{now:%Y-%m-%d %H:%M} UTC is {ahead} before the newest file", remedy)
    return Finding("", OK, f"{now:%Y-%m-%d %H:%M} UTC, {time.tzname[0]}")


def _stale(data_dir: Path, layout: ArtifactLayout, now: datetime) -> Finding:
    """Report bars in the future, what is older than its source, and what failed in the last run."""
    from kronos_pipeline.pipeline.status import read_status

    status = read_status(data_dir, layout, now)
    tomorrow = (now + timedelta(days=1)).replace(tzinfo=None).isoformat()
    future = [ticker.ticker for ticker in status.tickers if ticker.last_bar and ticker.last_bar[:19] > tomorrow]
    if future:
        return Finding("", ERROR, f"bars in the future: {enumerate_some(future)}", "mend their CSVs, or the clock")
    stale = [ticker.ticker for ticker in status.tickers if ticker.stale]
    failed = [ticker.ticker for ticker in status.tickers if ticker.failed]
    told = [
        f"{len(tickers)} {word}: {enumerate_some(tickers, 3)}"
        for tickers, word in ((stale, "stale"), (failed, "failed"))
        if tickers
    ]
    if told or status.notes:
        return Finding(
            "", WARNING, "; ".join([*told, *status.notes]), "kronos status has the reasons and the next command"
        )
    return Finding("", OK, f"{count(len(status.tickers), 'ticker')}, none stale or failed")


def _locks(layout: ArtifactLayout) -> Finding:
    """Report the locks that are held; the system frees the locks of a dead process, and not those of a stopped one."""
    try:
        leases = held_leases()
    except LeaseError as error:
        return Finding("", ERROR, str(error), "without it, no training and no promotion starts")
    if leases is not None:
        return Finding("", OK, _describe_leases(leases))
    names = ("*.lock", ".*.lock", "state/.*.lock", "ledger/.lock")
    held = [path for name in names for path in sorted(layout.root.glob(name)) if _is_held(path)]
    if not held:
        return Finding("", OK, "none held: no training is in progress")
    holders = {path: _holder(path) for path in held}
    told = "; ".join(f"{path.name} by {holder or 'a process'}" for path, holder in list(holders.items())[:3])
    if stopped := [holder for holder in holders.values() if holder and "stopped" in holder]:
        return Finding("", WARNING, told, f"continue (kill -CONT) or end {stopped[0].split(',')[0]}")
    return Finding("", OK, f"{len(held)} held: {told}")


def _describe_leases(leases: Sequence[HeldLease]) -> str:
    """Return the leases that are held on all machines, with their holders."""
    if not leases:
        return "no lease is held: no training is in progress on any machine"
    told = [f"{lease.name} by {lease.owner}, for {lease.seconds} s without a renewal" for lease in leases]
    return f"{count(len(leases), 'lease')} held: {'; '.join(told[:_LEASES_SHOWN])}" + (
        f" and {len(told) - _LEASES_SHOWN} more" if len(told) > _LEASES_SHOWN else ""
    )


def _is_held(path: Path) -> bool:
    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True


def _holder(path: Path) -> str | None:
    """Return the process that holds a lock, such as "process 1234, stopped", on Linux."""
    try:
        inode = str(path.stat().st_ino)
        for line in Path("/proc/locks").read_text().splitlines():
            fields = line.split()
            if len(fields) > 5 and fields[5].rpartition(":")[2] == inode:
                state = Path(f"/proc/{fields[4]}/stat").read_text().rpartition(")")[2].split()[0]
                return f"process {fields[4]}" + (", stopped" if state in "TtZ" else "")
    except OSError:
        pass
    return None


def _dagster(process: subprocess.Popen[str] | None) -> Finding:
    if process is None:
        home = os.environ.get("DAGSTER_HOME")
        text = f"no dagster.yaml in {home}" if home else "DAGSTER_HOME is not set"
        return Finding("", WARNING if home else OK, text, "source env.sh, to use Dagster")
    health = answer_of(process, _WAIT_SECONDS)
    text = f"{health['started']} runs in progress, {health['queued']} queued, {health['failed']} failed since yesterday"
    dead = [name for name, healthy in health["daemons"].items() if not healthy]
    if dead:
        remedy = "start it: make dev, or dagster-daemon run; no schedule, sensor or queue works without it"
        return Finding("", ERROR, f"{text}; no heartbeat of {enumerate_some(dead)}", remedy)
    if health["failed"] or health["waiting_a_day"]:
        return Finding("", WARNING, text, "the UI's page Runs has the reasons")
    return Finding("", OK, text)


def worst(findings: Sequence[Finding]) -> str:
    """Return the worst state of findings."""
    states = {finding.state for finding in findings}
    return next(state for state in (ERROR, WARNING, OK) if state in states or state == OK)
