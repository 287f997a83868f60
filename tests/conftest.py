"""Fixtures for the tests of several layers."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from mlflow_servers import MlflowServer
    from postgres_server import PostgresServer

# The same examples every time, on machines of any speed; --hypothesis-profile=search looks for new examples, and fuzz,
# the profile of `make fuzz`, for many.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("search", deadline=None)
settings.register_profile("fuzz", deadline=None, max_examples=int(os.environ.get("FUZZ_EXAMPLES", "10000")))
settings.load_profile("repeatable")

pytest_plugins = ["quick_parts", "recorded_durations"]

_SETTINGS = tuple(f"KRONOS_{name}" for name in ("DATA_DIR", "OUTPUT_DIR", "BASE_MODEL", "DEVICE", "COLUMNS"))
_STORES = ("MLFLOW_TRACKING_URI", "KRONOS_LEASE_DATABASE", "KRONOS_ARTIFACT_STORE")
_DAGSTER = ("DAGSTER_HOME", "DAGSTER_MODULE_NAME")
for _variable in _SETTINGS + _STORES + _DAGSTER:
    os.environ.pop(_variable, None)  # settings of the shell that runs the tests, for instance by env.sh


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A local base model of a few thousand random parameters; later tests see the files that a test adds to it."""
    from tiny_models import save_tiny_base

    return save_tiny_base(tmp_path_factory.mktemp("tiny_base"))


@pytest.fixture(scope="session")
def empty_mlflow_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow store to copy: creating a store takes seconds, so the workers of a run share one."""
    from kronos_pipeline.tracking.store import open_store

    folder = tmp_path_factory.mktemp("mlflow")
    run = folder.parent.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    open_store(f"sqlite:///{run / 'empty.db'}")  # made under a lock
    return Path(shutil.copy(run / "empty.db", folder / "own.db"))


@pytest.fixture(scope="session")
def made_mlflow_store(empty_mlflow_store: Path) -> str:
    """The URI of a store shared by tests that ignore the other runs in it."""
    return f"sqlite:///{shutil.copy(empty_mlflow_store, empty_mlflow_store.with_name('mlflow.db'))}"


@pytest.fixture(scope="module")
def own_mlflow_store(empty_mlflow_store: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URI of a store for one test file."""
    return f"sqlite:///{shutil.copy(empty_mlflow_store, tmp_path_factory.mktemp('mlflow') / 'mlflow.db')}"


@pytest.fixture
def one_mlflow_store(made_mlflow_store: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Set MLFLOW_TRACKING_URI to the shared store during the test, and return it."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", made_mlflow_store)
    return made_mlflow_store


@pytest.fixture
def clean_mlflow_store(empty_mlflow_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Set MLFLOW_TRACKING_URI to a new, empty store during the test, and return it."""
    uri = f"sqlite:///{shutil.copy(empty_mlflow_store, tmp_path / 'mlflow.db')}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return uri


@pytest.fixture(scope="module")
def mlflow_server(empty_mlflow_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """Return an MLflow server with an empty store, which its tests end and start."""
    from mlflow_servers import MlflowServer, server_environment

    folder = tmp_path_factory.mktemp("server")
    environment = server_environment(Path(shutil.copy(empty_mlflow_store, folder / "mlflow.db")), folder / "artifacts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        started = MlflowServer(environment)
        yield started
        started.close()


@pytest.fixture
def working(mlflow_server: MlflowServer) -> MlflowServer:
    """Return the server of the test file, started."""
    mlflow_server.start()
    return mlflow_server


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server; the test is skipped on a machine without PostgreSQL's programs."""
    from postgres_server import PostgresServer, postgres_programs

    programs = postgres_programs()
    if programs is None:
        pytest.skip("PostgreSQL's programs are missing: install Debian's package postgresql, or put initdb on the PATH")
    server = PostgresServer(programs)
    yield server
    server.close()


@pytest.fixture(scope="session")
def empty_mlflow_database(postgres: PostgresServer) -> str:
    """The name of a database with an empty MLflow store, to copy: creating a store takes seconds."""
    from kronos_pipeline.tracking.store import open_store

    name = postgres.new_database()
    open_store(postgres.url(name))
    return name


@pytest.fixture
def mlflow_database(postgres: PostgresServer, empty_mlflow_database: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Set MLFLOW_TRACKING_URI to a new, empty store on PostgreSQL during the test, and return it."""
    uri = postgres.url(postgres.new_database(empty_mlflow_database))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return uri


@pytest.fixture
def decoded_batches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Record the numbers of series and paths of each decoded batch."""
    from kronos_pipeline.model.decode.decoder import Decoder

    batches: list[tuple[int, int]] = []
    generate = Decoder.generate

    def recording(self: Decoder, prompts: Any, *arguments: Any, paths: int, **settings: Any) -> Any:
        batches.append((len(prompts.tokens[0]), paths))
        return generate(self, prompts, *arguments, paths=paths, **settings)

    monkeypatch.setattr(Decoder, "generate", recording)
    return batches
