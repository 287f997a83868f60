"""Measure what thousands of tickers cost Dagster: the code location, each tick, the summary, and the pages of the UI.

    python benchmarks/capacity.py                           # 5,000 tickers on SQLite
    python benchmarks/capacity.py --tickers 1000 --postgres # on a PostgreSQL server of its own
    python benchmarks/capacity.py --tickers 4 --no-pages    # a smoke test, without the webserver

Nothing is trained: the instance gets the events of one night, with metadata of the size of real ones, and the data
folder a CSV per ticker. Each row says the load of the machine beside the time, as other work makes the times longer;
the numbers of queries and of bytes do not depend on it.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ui
from speed.table import Table, seconds

from kronos_pipeline.artifacts import MANIFEST, ArtifactLayout
from kronos_pipeline.data.simulate import write_simulated
from kronos_pipeline.evaluation.predictions import ADAPTER

if TYPE_CHECKING:
    import dagster as dg

ROOT = Path(__file__).resolve().parent.parent
BARS = 300
EVENT_BYTES = {
    "raw_bars": 4_300,
    "windows": 3_100,
    "adapter": 16_700,
    "holdout_metrics": 145_000,
    "backtest": 87_000,
    "champion": 4_200,
    "forecast": 28_000,
    "track_record": 2_400,
    "drift": 900,
}
"""Bytes of a materialisation by asset, of kronos-nano with pictures; measured in a Dagster run of two tickers."""
_PAGE = 500

Row = list[str]


class Figures:
    """The rows of the table; a measurement counts its time, its queries and what it returns as `extent`."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self._queries = 0
        import sqlalchemy

        sqlalchemy.event.listen(sqlalchemy.engine.Engine, "before_cursor_execute", self._count)

    def _count(self, *_: Any) -> None:
        self._queries += 1

    def measure(self, what: str, call: Callable[[], str]) -> None:
        """Add a row; `call` returns what it found, in words."""
        self._queries, start, processor = 0, time.perf_counter(), time.process_time()
        found = call()
        elapsed, busy = time.perf_counter() - start, time.process_time() - processor
        self.add(what, elapsed, seconds(busy), str(self._queries), found)

    def add(self, what: str, elapsed: float, busy: str = "", queries: str = "", found: str = "") -> None:
        """Add a row, and print it, as the whole takes minutes."""
        row = [what, seconds(elapsed), busy, queries, f"{os.getloadavg()[0]:.1f}", found]
        self.rows.append(row)
        print(" | ".join(row), file=sys.stderr, flush=True)


def report(tickers: int, *, postgres: bool, pages: bool = True) -> Table:
    """Measure everything with an instance in a temporary folder, and return the table.

    Args:
        tickers: number of tickers.
        postgres: PostgreSQL in place of SQLite.
        pages: measure the pages of the UI too, by a webserver.
    """
    with tempfile.TemporaryDirectory() as temporary, _settings(Path(temporary), postgres=postgres) as home:
        folder = home.parent
        names = [f"T{number:05}" for number in range(tickers)]
        _write_csvs(folder / "data", names)
        os.environ |= ui.environment(ROOT, folder)
        _write_artifacts(folder / "out", names)
        figures = Figures()
        import dagster as dg

        instance = dg.DagsterInstance.get()
        instance.run_storage.add_run(dg.DagsterRun("ingest", status=dg.DagsterRunStatus.SUCCESS))  # for `old_runs`
        _measure_events(figures, instance, names)
        _measure_location(figures, instance, names)
        if pages:
            _measure_pages(figures, folder, names)
    database = "PostgreSQL" if postgres else "SQLite"
    columns = ("what", "time", "of it on the CPU", "queries", "load", "found")
    return Table(f"Dagster with {tickers:,} tickers on {database}", columns, figures.rows)


@contextmanager
def _settings(folder: Path, *, postgres: bool) -> Iterator[Path]:
    """Yield a folder with the settings of an instance, on SQLite or on a PostgreSQL server that ends with the block."""
    home = folder / "home"
    home.mkdir()
    if not postgres:
        shutil.copy(ROOT / "kronos_pipeline" / "orchestration" / "dagster.yaml", home)
        yield home
        return
    sys.path.append(str(ROOT / "tests"))
    from postgres_server import USER, PostgresServer, postgres_programs

    programs = postgres_programs()
    if programs is None:
        raise SystemExit("error: PostgreSQL is not installed; install Debian's package postgresql, or leave --postgres")
    server = PostgresServer(programs)
    try:
        settings = (ROOT / "deploy" / "dagster.yaml").read_text()
        settings = settings.replace("      scheme:", f"      port: {server.port}\n      scheme:")
        settings = settings.replace("        env: KRONOS_DAGSTER_DATABASE", "        env: PGDATABASE")
        (home / "dagster.yaml").write_text(settings)
        own = {
            "PGHOST": "127.0.0.1",
            "PGUSER": USER,
            "PGPASSWORD": server.password,
            "PGDATABASE": server.new_database(),
        }
        os.environ |= own
        yield home
    finally:
        server.close()


def _write_csvs(data: Path, names: Sequence[str]) -> None:
    """Write the same simulated bars for every ticker: the simulation of thousands takes minutes."""
    write_simulated(data, tickers=["T"], bars=BARS)
    text = (data / "T" / "T.csv").read_text()
    shutil.rmtree(data / "T")
    for name in names:
        (data / f"{name}.csv").write_text(text)


def _write_artifacts(out: Path, names: Sequence[str]) -> None:
    """Write empty files in place of artifacts: the sensor of the output folder looks at their times alone."""
    layout = ArtifactLayout(out)
    for name in names:
        for path in (
            layout.bars(name),
            layout.windows(name),
            layout.adapter(name) / MANIFEST,
            layout.ticker_metrics(name),
            layout.backtest_report(ADAPTER, name),
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()


def _measure_events(figures: Figures, instance: dg.DagsterInstance, names: Sequence[str]) -> None:
    """Write the events of a night, a page in a statement, and those of `adapter/<T>` one by one, as a run does."""
    import dagster as dg
    from dagster._core.events import DagsterEvent, StepMaterializationData
    from dagster._core.events.log import EventLogEntry as Entry

    from kronos_pipeline.orchestration.metadata import DRIFTED, FINDING, KIND

    store: Any = instance.event_log_storage

    def entry(asset: str, ticker: str, run: str) -> Any:
        measured: dict[str, Any] = {DRIFTED: False, FINDING: "", KIND: "adapter"} if asset == "drift" else {}
        metadata = {"picture": dg.MetadataValue.md("x" * EVENT_BYTES[asset]), **measured}
        event = dg.AssetMaterialization(asset, partition=ticker, metadata=metadata)
        kind = dg.DagsterEventType.ASSET_MATERIALIZATION.value
        data = DagsterEvent(kind, "promote_adapter", step_key=asset, event_specific_data=StepMaterializationData(event))
        now = time.time()
        entry_of: Any = Entry
        return entry_of(None, 20, "", run, now, step_key=asset, job_name="promote_adapter", dagster_event=data)

    def fill() -> str:
        for asset in EVENT_BYTES:
            store.store_event(entry(asset, names[0], ""))
            for start in range(1, len(names), _PAGE):
                page = [entry(asset, name, "") for name in names[start : start + _PAGE]]
                with store.index_connection() as connection:
                    connection.execute(store.prepare_insert_event_batch(page))
        return f"{len(names) * len(EVENT_BYTES):,} events, {len(names) * sum(EVENT_BYTES.values()) / 1e6:,.0f} MB"

    def fill_own() -> str:
        for name in names:
            instance.report_runless_asset_event(dg.AssetMaterialization(["adapter", name]))
        return f"{len(names):,} events"

    figures.measure("events of a night's runs, by page", fill)
    figures.measure("events of the assets `adapter/<T>`, one by one", fill_own)


def _measure_location(figures: Figures, instance: dg.DagsterInstance, names: Sequence[str]) -> None:
    """Load the code location, and evaluate each tick in it."""
    import dagster as dg
    from dagster._core.remote_representation.external_data import RepositorySnap

    repository: Any = None

    def load() -> str:
        nonlocal repository
        from kronos_pipeline.definitions import defs

        repository = defs.get_repository_def()
        size = len(dg.serialize_value(RepositorySnap.from_def(repository)))
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return f"{size / 1e6:.1f} MB to the webserver; {memory:,.0f} MB of memory"

    figures.measure("load of the code location", load)
    from kronos_pipeline.definitions import defs
    from kronos_pipeline.orchestration.instance import old_runs
    from kronos_pipeline.orchestration.messages.summary import read_events

    resources = {"pipeline": defs.resources["pipeline"]}  # type: ignore[index]

    def tick(sensor: str, cursor: str | None) -> Any:
        with dg.build_sensor_context(
            instance=instance, cursor=cursor, repository_def=repository, sensor_name=sensor, resources=resources
        ) as context:
            return repository.get_sensor_def(sensor).evaluate_tick(context)

    for sensor in sorted(definition.name for definition in repository.sensor_defs):
        cursors: list[str | None] = [None]

        def once(sensor: str = sensor, cursors: list[str | None] = cursors) -> str:
            data = tick(sensor, cursors[-1])
            cursors.append(data.cursor)
            return f"{len(data.run_requests or [])} runs, a cursor of {len(data.cursor or '')} bytes"

        figures.measure(f"{sensor}, first tick", once)
        figures.measure(f"{sensor}, next tick", once)
    for schedule in sorted(repository.schedule_defs, key=lambda definition: definition.name):

        def evaluate(schedule: Any = schedule) -> str:
            context = dg.build_schedule_context(
                instance=instance, scheduled_execution_time=datetime.now(UTC), repository_def=repository
            )
            return f"{len(schedule.evaluate_tick(context).run_requests)} runs"

        figures.measure(schedule.name, evaluate)
    now = datetime.now(UTC)
    day = timedelta(days=1)
    figures.measure(
        "the events of the morning summary",
        lambda: f"{len(read_events(instance, names, now - day)['trained']):,} trained",
    )
    figures.measure("clean: Dagster's old runs", lambda: f"{len(old_runs(instance, now + day)):,} runs")


def _measure_pages(figures: Figures, folder: Path, names: Sequence[str]) -> None:
    """Ask a webserver what its pages ask."""
    with ui.webserver(folder) as (address, started):
        figures.add(ui.START, started)
        for name, query in ui.QUERIES.items():
            first = ui.timed(address, query, {})
            figures.add(f"page: {name}", ui.timed(address, query, {}), found=f"the first time {seconds(first)}")
        figures.add("reload of the code location", ui.timed(address, ui.RELOAD, {}))
        params = {"assetSelection": [{"path": ["raw_bars"]}], "partitionNames": list(names)}
        figures.add("launch of a backfill of all tickers", ui.timed(address, ui.BACKFILL, {"params": params}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tickers", type=int, default=5000, help="number of tickers")
    parser.add_argument("--postgres", action="store_true", help="PostgreSQL in place of SQLite")
    parser.add_argument("--pages", action=argparse.BooleanOptionalAction, default=True, help="the pages of the UI too")
    options = parser.parse_args()
    print(report(options.tickers, postgres=options.postgres, pages=options.pages).text())
