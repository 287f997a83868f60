"""Measure what a person waits for in the Dagster UI with many tickers, by queries to a real webserver.

    python benchmarks/ui.py                   # 300 tickers, and the ingestion of 50
    python benchmarks/ui.py --tickers 1000
    python benchmarks/ui.py --quick           # 12 tickers: a smoke test

Simulated tickers are ingested in a Dagster run, so that partitions, events and checks exist; nothing is trained. Each
query is the part of a page that reads what grows with the tickers. `--beside` measures the ingestion of another
checkout of this project in turns.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from speed.table import Goal, Report, Table, seconds
from speed.timing import Spread

from kronos_pipeline.data.simulate import write_simulated

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 3.0
"""Seconds that a person waits at most for anything but a training."""
START = "start of webserver and code location"
RELOAD = 'mutation{reloadRepositoryLocation(repositoryLocationName:"kronos_pipeline.definitions"){__typename}}'
BARS = 400
PORT_WAIT = 120.0
LOCATION = {"repositoryLocationName": "kronos_pipeline.definitions", "repositoryName": "__repository__"}
STATS = "partitionStats{numMaterialized numPartitions numFailed}"
QUERIES: Mapping[str, str] = {
    "catalog, all assets": "{assetNodes{assetKey{path} groupName kinds description isPartitioned owners{__typename}}}",
    "lineage, all dependencies": "{assetNodes{assetKey{path} dependencyKeys{path} dependedByKeys{path}}}",
    "asset page": '{assetNodeOrError(assetKey:{path:["raw_bars"]}){... on AssetNode{description '
    + STATS
    + " metadataEntries{label} jobs{name} assetMaterializations(limit:1){metadataEntries{label "
    "... on MarkdownMetadataEntry{mdStr}}}}}}",
    "partitions of an asset": '{assetNodeOrError(assetKey:{path:["raw_bars"]}){... on AssetNode{'
    "partitionKeysByDimension{partitionKeys} assetPartitionStatuses{__typename "
    "... on DefaultPartitionStatuses{materializedPartitions failedPartitions}}}}}",
    "checks of an asset": '{assetNodeOrError(assetKey:{path:["windows"]}){... on AssetNode{assetChecksOrError{'
    "... on AssetChecks{checks{name description partitionStatuses{__typename} "
    "executionForLatestMaterialization{status evaluation{description}}}}}}}}",
    "runs": "{runsOrError(limit:25){... on Runs{results{id status tags{key value} assetSelection{path}}}}}",
}
TICKS: Mapping[str, str] = {
    "schedule tick, adapters_on_weekday_nights": "mutation($selector:ScheduleSelector!){scheduleDryRun("
    "selectorData:$selector,timestamp:1700000000){__typename ... on PythonError{message} "
    "... on DryRunInstigationTick{evaluationResult{error{message} runRequests{runKey}}}}}",
    "sensor tick, changed_csvs": "mutation($selector:SensorSelector!){"
    "sensorDryRun(selectorData:$selector,cursor:null){__typename ... on PythonError{message} "
    "... on DryRunInstigationTick{evaluationResult{error{message} runRequests{runKey}}}}}",
}
BACKFILL = (
    "mutation($params:LaunchBackfillParams!){launchPartitionBackfill(backfillParams:$params)"
    "{__typename ... on LaunchBackfillSuccess{backfillId} ... on PythonError{message}}}"
)


def report(quick: bool, tickers: int, beside: Path | None = None) -> Report:
    """Measure the ingestion of 50 tickers, then the pages, ticks and a backfill with `tickers` tickers."""
    few, many, rounds = (4, 12, 1) if quick else (50, tickers, 3)
    checkouts = {"this": ROOT, **({} if beside is None else {"beside": beside.resolve()})}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        runs: dict[str, list[float]] = {name: [] for name in checkouts}
        for number in range(rounds):
            for name, checkout in checkouts.items():
                runs[name].append(_ingest(checkout, _folder(root / f"{name} {number}", few), few))
        rows = [
            [f"ingest {few} tickers{'' if name == 'this' else ', the other checkout'}", Spread.of(times).text(seconds)]
            for name, times in runs.items()
        ]
        ingestion = Table("The ingestion of tickers in a Dagster run, from process start to end", ("run", "time"), rows)
        times = _pages(_folder(root / "many", many), many, rounds)
    rows = [[name, Spread.of(values).text(seconds)] for name, values in times.items()]
    pages = Table(f"The Dagster UI with {many:,} tickers", ("what", "time"), rows)
    slowest = max((name for name in times if name != START), key=lambda name: Spread.of(times[name]).median)
    worst = Spread.of(times[slowest]).median
    goal = Goal(f"each page and tick with {many:,} tickers ({slowest})", seconds(LIMIT), seconds(worst), worst <= LIMIT)
    return Report([ingestion, pages], [goal])


def _folder(root: Path, tickers: int) -> Path:
    """Return a folder with simulated tickers in `data`, and Dagster's settings in `home`."""
    write_simulated(root / "data", tickers=_names(tickers), bars=BARS)
    (root / "home").mkdir()
    shutil.copy(ROOT / "kronos_pipeline" / "orchestration" / "dagster.yaml", root / "home")
    return root


def _names(tickers: int) -> list[str]:
    return [f"T{number:04}" for number in range(tickers)]


def environment(checkout: Path, folder: Path) -> dict[str, str]:
    """Return the variables of a process of a checkout, for the data, output and settings below a folder."""
    inherited = {
        key: value for key, value in os.environ.items() if not key.startswith(("KRONOS_", "MLFLOW_", "DAGSTER_"))
    }
    return inherited | {
        "PYTHONPATH": str(checkout),
        "DAGSTER_HOME": str(folder / "home"),
        "KRONOS_DATA_DIR": str(folder / "data"),
        "KRONOS_OUTPUT_DIR": str(folder / "out"),
        "KRONOS_BASE_MODEL": "kronos-nano",
    }


def _ingest(checkout: Path, folder: Path, tickers: int) -> float:
    """Ingest all tickers in a run, and return its seconds."""
    names = _names(tickers)
    command = [sys.executable, "-m", "dagster", "asset", "materialize", "-m", "kronos_pipeline.definitions"]
    command += ["--select", "raw_bars,windows", "--partition-range", f"{names[0]}...{names[-1]}"]
    start = time.perf_counter()
    result = subprocess.run(
        command, cwd=checkout, env=environment(checkout, folder), capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {result.returncode}:\n{result.stderr}")
    return time.perf_counter() - start


def _pages(folder: Path, tickers: int, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each page, tick and backfill, by name."""
    _ingest(ROOT, folder, tickers)
    times: dict[str, list[float]] = {}
    with webserver(folder) as (address, started):
        times[START] = [started]
        for _ in range(rounds):
            for name, query in QUERIES.items():
                times.setdefault(name, []).append(timed(address, query, {}))
            for name, query in TICKS.items():
                kind = "scheduleName" if name.startswith("schedule") else "sensorName"
                selector = {**LOCATION, kind: name.rpartition(" ")[2]}
                times.setdefault(name, []).append(timed(address, query, {"selector": selector}))
        times["reload of the code location"] = [timed(address, RELOAD, {})]
        params = {"assetSelection": [{"path": ["raw_bars"]}, {"path": ["windows"]}], "partitionNames": _names(tickers)}
        times[f"launch of a backfill of {tickers:,} tickers"] = [timed(address, BACKFILL, {"params": params})]
    return times


@contextmanager
def webserver(folder: Path) -> Iterator[tuple[str, float]]:
    """Yield the address of a webserver, and the seconds that it took to start."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "dagster_webserver", "-h", "127.0.0.1", "-p", str(port)]
    command += ["-m", "kronos_pipeline.definitions"]
    start = time.perf_counter()
    with (folder / "webserver.log").open("w") as log:
        server = subprocess.Popen(command, cwd=ROOT, env=environment(ROOT, folder), stdout=log, stderr=log)
        try:
            address = f"http://127.0.0.1:{port}/graphql"
            while True:
                try:
                    _ask(address, "{version}", {})
                    break
                except OSError:
                    if server.poll() is not None or time.perf_counter() - start > PORT_WAIT:
                        raise RuntimeError((folder / "webserver.log").read_text()) from None
                    time.sleep(0.1)
            yield address, time.perf_counter() - start
        finally:
            server.terminate()
            server.wait()


def timed(address: str, query: str, variables: Mapping[str, Any]) -> float:
    """Return the seconds until the webserver answers a query."""
    start = time.perf_counter()
    answer = _ask(address, query, variables)
    elapsed = time.perf_counter() - start
    text = json.dumps(answer)
    if "errors" in answer or '"PythonError"' in text:
        raise RuntimeError(f"{query}\n{text[:2000]}")
    return elapsed


def _ask(address: str, query: str, variables: Mapping[str, Any]) -> dict[str, Any]:
    body = json.dumps({"query": query, "variables": variables}).encode()
    request = urllib.request.Request(address, data=body, headers={"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request) as response:
            answer: dict[str, Any] = json.load(response)
    except urllib.error.HTTPError as error:
        raise RuntimeError(f"{query}\n{error.read().decode()[:2000]}") from error
    return answer


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few tickers, each query once")
    parser.add_argument("--tickers", type=int, default=300, help="number of tickers")
    parser.add_argument("--beside", type=Path, help="another checkout of this project, for the ingestion")
    options = parser.parse_args()
    measured = report(options.quick, options.tickers, options.beside)
    print(measured.text())
    for goal in measured.goals:
        print(f"{goal.what}: {goal.found}, goal {goal.wanted}, {'reached' if goal.reached else 'missed'}")
