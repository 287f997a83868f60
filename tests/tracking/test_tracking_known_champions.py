"""Forecasts while the MLflow server is away: by the champions that were known last, with a warning that says so."""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import mlflow.artifacts
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow_servers import MlflowServer
from registered_models import GOOD, base_of, evidence, made_adapter
from small_trainings import simulated_bars

from kronos_pipeline.artifacts import ArtifactLayout, read_json, read_parquet, write_json
from kronos_pipeline.cli import main
from kronos_pipeline.config import Recipe
from kronos_pipeline.errors import KronosError
from kronos_pipeline.evaluation import ledger
from kronos_pipeline.evaluation.forecasting.batching import run_jobs, unwrap
from kronos_pipeline.evaluation.scoring.targets import TARGETS, Target
from kronos_pipeline.model.loading import KronosModel
from kronos_pipeline.pipeline.clean import CleaningRules, carry_out, plan_cleaning
from kronos_pipeline.promotion.champion_forecast import TickerForecast, forecast_ticker_job
from kronos_pipeline.promotion.drift_watch import WatchedChampion, watch_drift_job
from kronos_pipeline.tracking import runs, version_store
from kronos_pipeline.tracking.packaging import EvidenceTable
from kronos_pipeline.tracking.registry import Registry
from kronos_pipeline.tracking.runs import Tracker
from kronos_pipeline.tracking.store import TrackingError, open_store

pytestmark = pytest.mark.slow

NOW = datetime(2024, 6, 1, tzinfo=UTC)
TICKER, NAME = "AAPL", "kronos-AAPL"
REFIT = f"{NAME} version 3, a refit of version 2"


@pytest.fixture(scope="module")
def base(recipe: Recipe) -> KronosModel:
    return base_of(recipe)


@pytest.fixture(scope="module")
def registered(mlflow_server: MlflowServer, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Register two versions and a refit of the second, as that takes seconds; return the server's address."""
    mlflow_server.start()
    folder = tmp_path_factory.mktemp("registered")
    tracker = Tracker(mlflow_server.uri, folder)
    with tracker.training_run("made", Recipe()) as run:
        pass
    adapters = [made_adapter(folder / str(seed), recipe, seed=seed) for seed in range(3)]
    for adapter in adapters[:2]:
        Registry(tracker).register(adapter, NAME, run.run_id, evidence=EvidenceTable(evidence(GOOD)), metrics={})
    Registry(tracker).register_refit(adapters[2], NAME, run.run_id, refit_of=2)
    return mlflow_server.uri


@pytest.fixture
def layout(tmp_path: Path) -> ArtifactLayout:
    return ArtifactLayout(tmp_path / "out")


@pytest.fixture
def promote(registered: str, tmp_path: Path) -> Callable[..., None]:
    """Return a function that makes a version champion of some targets or all, as a person on another machine does."""

    def promote_version(number: int, *targets: Target) -> None:
        Registry(Tracker(registered, tmp_path / "other")).promote(NAME, number, "to try it", targets or TARGETS)

    return promote_version


@pytest.fixture
def forecast(
    working: MlflowServer, layout: ArtifactLayout, base: KronosModel, recipe: Recipe
) -> Callable[..., TickerForecast]:
    """Return a function that forecasts as a new command does."""

    def make(registry: Registry | None = None, ticker: str = TICKER) -> TickerForecast:
        registry = registry or Registry(Tracker(working.uri, layout.root))
        bars = {ticker: simulated_bars(ticker)}
        job = forecast_ticker_job(registry, layout, bars, ticker, base, recipe, lambda: NOW)
        [(_, outcome)] = run_jobs({ticker: job})
        return unwrap(outcome)

    return make


def manifest_of(forecast: TickerForecast) -> dict[str, Any]:
    return {key: value for key, value in read_parquet(forecast.file)[1].items() if key != "notes"}


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def files_of(working: MlflowServer, registry: Registry, number: int) -> Path:
    """Return the folder in which the server keeps the files of a version."""
    location = registry._store._client.get_model_version_download_uri(NAME, str(number))
    return working.artifacts / location.removeprefix("mlflow-artifacts:/")


def test_a_forecast_without_the_server_is_that_with_the_server_and_a_warning(
    working: MlflowServer, promote: Callable[..., None], forecast: Callable[..., TickerForecast]
) -> None:
    promote(1)
    promote(2, "distribution")
    known = forecast()
    table, manifest = read_parquet(known.file)[0], manifest_of(known)
    assert (known.warnings, known.label) == ((), f"{NAME} version 1, spread of {REFIT}, not itself measured")
    working.end()
    without = forecast()
    pd.testing.assert_frame_equal(read_parquet(without.file)[0], table, check_exact=True)
    assert manifest_of(without) == manifest
    pd.testing.assert_frame_equal(without.ledger_rows, known.ledger_rows, check_exact=True)
    [warning] = without.warnings
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    assert warning.startswith(f"MLflow at {working.uri} does not answer; the champions are those known at {today}")
    assert sorted(read_parquet(without.file)[1]["notes"]) == sorted([*known.notes, warning])
    working.start()
    assert forecast().warnings == ()


def test_a_ticker_without_a_champion_is_forecast_without_the_server_too(
    working: MlflowServer, forecast: Callable[..., TickerForecast]
) -> None:
    known = forecast(ticker="NONE")
    working.end()
    without = forecast(ticker="NONE")
    pd.testing.assert_frame_equal(without.table, known.table, check_exact=True)
    assert len(without.warnings) == 1


def test_the_drift_of_a_champion_with_a_refit_is_measured_without_the_server_too(
    working: MlflowServer,
    layout: ArtifactLayout,
    promote: Callable[..., None],
    forecast: Callable[..., TickerForecast],
    base: KronosModel,
) -> None:
    promote(2)

    def watch() -> WatchedChampion:
        registry, bars = Registry(Tracker(working.uri, layout.root)), {TICKER: simulated_bars(TICKER)}
        [(_, outcome)] = run_jobs({TICKER: watch_drift_job(registry, ledger.read(layout), bars, TICKER, base)})
        return unwrap(outcome)

    known = watch()
    shutil.rmtree(layout.champions)
    forecast()  # keeps what drift needs
    working.end()
    without = watch()
    assert (without.drift, without.sentence()) == (known.drift, known.sentence())
    assert known.drift is not None
    assert (known.warning, str(without.warning)[:9]) == (None, "MLflow at")


def test_without_the_server_and_an_earlier_forecast_the_error_names_the_remedy(
    working: MlflowServer, forecast: Callable[..., TickerForecast]
) -> None:
    working.end()
    with pytest.raises(TrackingError, match=f"start it, mend .* no champion of {NAME} is known: no forecast"):
        forecast()


def test_the_files_of_a_champion_are_fetched_once_until_a_decision_on_it(
    working: MlflowServer,
    layout: ArtifactLayout,
    promote: Callable[..., None],
    forecast: Callable[..., TickerForecast],
) -> None:
    promote(1)
    known, registry = forecast(), Registry(Tracker(working.uri, layout.root))
    files = files_of(working, registry, 1)
    files.rename(files.with_name("away"))
    try:
        pd.testing.assert_frame_equal(forecast().table, known.table, check_exact=True)
        promote(2)
        promote(1)
        with pytest.raises(TrackingError, match=f"files of {NAME} version 1 cannot be fetched"):
            forecast()
    finally:
        files.with_name("away").rename(files)


def test_a_damaged_copy_is_named_and_made_anew_from_a_server_that_answers(
    working: MlflowServer,
    layout: ArtifactLayout,
    promote: Callable[..., None],
    forecast: Callable[..., TickerForecast],
    caplog: pytest.LogCaptureFixture,
) -> None:
    promote(1)
    known, kept = forecast(), layout.champions / NAME
    damaged = kept / "model-1" / "files" / "model" / "adapter_model.safetensors", kept / "champions.json"
    for path in damaged:
        flip_a_bit(path)
        with caplog.at_level(logging.WARNING):
            assert forecast().warnings == ()
    assert f"{kept}/model-1 was edited or damaged after it was written" in caplog.text
    working.end()
    pd.testing.assert_frame_equal(forecast().table, known.table, check_exact=True)
    for path in damaged:
        flip_a_bit(path)
        with pytest.raises(TrackingError, match=f"MLflow .*{kept}/(model-1|champions.json) was edited or damaged"):
            forecast()
        flip_a_bit(path)
    assert forecast().warnings


def test_a_promotion_by_the_command_counts_for_a_forecast_without_the_server(
    working: MlflowServer,
    layout: ArtifactLayout,
    promote: Callable[..., None],
    forecast: Callable[..., TickerForecast],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    promote(1)
    promote(2)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", working.uri)
    assert forecast().label.startswith(REFIT)
    assert main(["rollback", TICKER, "--output-dir", str(layout.root)]) == 0
    working.end()
    assert forecast().label == f"{NAME} version 1"
    working.start()
    assert main(["promote", TICKER, "--version", "2", "--output-dir", str(layout.root)]) == 0
    working.end()
    assert forecast().label.startswith(REFIT)


def test_a_server_that_goes_away_while_a_new_champion_is_fetched_leaves_the_champion_before(
    working: MlflowServer,
    promote: Callable[..., None],
    forecast: Callable[..., TickerForecast],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    promote(1)
    known = forecast()
    promote(2)
    download = mlflow.artifacts.download_artifacts

    def download_from_an_ended_server(**arguments: Any) -> str:
        working.end()
        return download(**arguments)

    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", download_from_an_ended_server)
    without = forecast()
    assert len(without.warnings) == 1
    pd.testing.assert_frame_equal(without.table, known.table, check_exact=True)


@contextmanager
def answering(status: int) -> Iterator[str]:
    """Let a server answer every request with a status, and yield its address."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("status", "stands_in"), [(401, False), (404, False), (500, False), (502, True), (503, True)])
def test_known_champions_stand_in_for_a_server_that_is_away_and_for_no_refusal(
    layout: ArtifactLayout, forecast: Callable[..., TickerForecast], status: int, stands_in: bool
) -> None:
    known = forecast(ticker="NONE")  # a copy of files is of the store that they were fetched from
    with answering(status) as address:
        for record in layout.champions.glob("*/champions.json"):
            write_json(record, read_json(record) | {"store": address})  # as if they had been read from it
        registry = Registry(Tracker(address, layout.root))
        if stands_in:
            without = forecast(registry, ticker="NONE")
            assert len(without.warnings) == 1
            pd.testing.assert_frame_equal(without.table, known.table, check_exact=True)
        else:
            with pytest.raises(TrackingError, match="cannot be used"):
                forecast(registry, ticker="NONE")


def test_many_tickers_ask_a_server_that_does_not_answer_once(
    working: MlflowServer,
    layout: ArtifactLayout,
    forecast: Callable[..., TickerForecast],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    forecast()
    working.end()
    asked = []

    def open_counted(uri: str) -> MlflowClient:
        asked.append(uri)
        return open_store(uri)

    for module in (runs, version_store):
        monkeypatch.setattr(module, "open_store", open_counted)
    registry = Registry(Tracker(working.uri, layout.root))
    for _ in range(5):
        assert len(forecast(registry).warnings) == 1
    assert len(asked) == 1


def test_what_is_kept_of_one_server_does_not_stand_in_for_another(
    working: MlflowServer, layout: ArtifactLayout, forecast: Callable[..., TickerForecast]
) -> None:
    forecast()
    working.end()
    other = working.uri.replace("127.0.0.1", "localhost")
    with pytest.raises(TrackingError, match=rf"champions\.json is of {working.uri}"):
        forecast(Registry(Tracker(other, layout.root)))


@pytest.mark.parametrize("content", [{}, {"store": 1}, {"champions": {"mean": 4}, "versions": [], "refits": {}}])
def test_a_record_of_another_form_is_damaged(
    working: MlflowServer,
    layout: ArtifactLayout,
    forecast: Callable[..., TickerForecast],
    content: dict[str, Any],
) -> None:
    forecast()
    working.end()
    write_json(layout.champions / NAME / "champions.json", {"store": working.uri, **content})
    with pytest.raises(KronosError, match=r"champions\.json is"):
        forecast()


def test_nothing_is_kept_of_a_store_in_a_file(
    own_mlflow_store: str, layout: ArtifactLayout, forecast: Callable[..., TickerForecast]
) -> None:
    assert forecast(Registry(Tracker(own_mlflow_store, layout.root))).warnings == ()
    assert not layout.champions.exists()


def test_a_cleaning_deletes_copies_of_former_champions_and_what_is_no_longer_read(
    working: MlflowServer,
    layout: ArtifactLayout,
    promote: Callable[..., None],
    forecast: Callable[..., TickerForecast],
    tmp_path: Path,
) -> None:
    promote(2)
    forecast()
    promote(1)
    known, kept = forecast(), layout.champions / NAME
    assert {path.name for path in kept.glob("model-*")} == {"model-1"}

    def clean(days: int) -> None:
        now = datetime.now(UTC) + timedelta(days=days)
        carry_out(plan_cleaning(layout, tmp_path, f"sqlite:///{tmp_path}/none.db", CleaningRules(), now), layout)

    def copies() -> set[str]:
        return {path.name.rsplit("-", 2)[0] for path in (kept / ".versions").iterdir()}

    clean(1)
    assert copies() == {"model-1", "evidence-1", "model-2", "evidence-2", "model-3"}
    clean(365)
    assert copies() == {"model-1", "evidence-1"}
    working.end()
    pd.testing.assert_frame_equal(forecast().table, known.table, check_exact=True)
