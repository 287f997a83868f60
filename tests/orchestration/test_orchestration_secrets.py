"""Secrets come from the environment, and are in no file, record, log or message that a run leaves.

Every variable that takes a secret holds a marked one while trainings, an evaluation, a promotion, a check of the
machine and messages succeed and fail, by command and by Dagster; then everything that they left is searched.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
from code_locations import Location
from postgres_server import USER, PostgresServer
from small_trainings import small_flags

from kronos_pipeline.cli import main
from kronos_pipeline.leases import LeaseError, Leases
from kronos_pipeline.orchestration.automation.jobs import AutomationSettings
from kronos_pipeline.orchestration.messages.failure_sensor import make_failure_sensor
from kronos_pipeline.orchestration.messages.notifications import notify
from kronos_pipeline.orchestration.resources import Tracking
from kronos_pipeline.tracking.store_checks import check_store

pytestmark = pytest.mark.slow

MARK = "h1ddenS3cret"
ROOT = Path(__file__).resolve().parents[2]
SERVICES = (
    f"json://user:{MARK}@127.0.0.1:1/{MARK}",
    f"slack://{MARK[:9]}AA/{MARK[:9]}BB/{MARK}{MARK}/#channel",
    f"mailto://user:{MARK}@127.0.0.1:1?from=a@b.invalid&to=c@d.invalid",
    f"nothing://{MARK}",
)
"""Addresses of apprise: services that do not answer, and one that it does not know."""
SECRETS = {
    "AWS_ACCESS_KEY_ID": MARK,
    "AWS_SECRET_ACCESS_KEY": MARK,
    "AWS_SESSION_TOKEN": MARK,
    "HF_TOKEN": MARK,
    "HUGGING_FACE_HUB_TOKEN": MARK,
    "KRONOS_DAGSTER_UI": f"http://user:{MARK}@127.0.0.1:1",
    "KRONOS_MLFLOW_UI": f"http://user:{MARK}@127.0.0.1:1",
    "KRONOS_NOTIFY_URLS": " ".join(SERVICES),
    "MLFLOW_TRACKING_PASSWORD": MARK,
    "MLFLOW_TRACKING_TOKEN": MARK,
    "PGPASSFILE": f"/nowhere/{MARK}",
}
AWAY = (
    f"http://user:{MARK}@127.0.0.1:1/{MARK[:0]}",
    f"postgresql://user:{MARK}@127.0.0.1:1/mlflow",
    f"postgresql://user:{MARK}/{MARK}@127.0.0.1:1/mlflow",
    f"postgresql://user:{MARK}@{MARK}@127.0.0.1:1/mlflow",
    f"postgresql://127.0.0.1:1/mlflow?user=someone&password={MARK}",
    f"nothing://user:{MARK}@127.0.0.1/mlflow",
)
"""Stores that do not answer; some have a password that their user has not encoded."""


@pytest.fixture
def secrets(
    location: Location, postgres: PostgresServer, mlflow_database: str, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """Set every variable that takes a secret, and return the marks that nothing may hold."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    assert mlflow_database == os.environ["MLFLOW_TRACKING_URI"]
    monkeypatch.setenv("KRONOS_LEASE_DATABASE", mlflow_database)
    monkeypatch.setenv("KRONOS_BASE_MODEL", str(location.base))
    home = location.root / "home"
    home.mkdir()
    settings = ROOT / "kronos_pipeline" / "orchestration" / "dagster.yaml"
    (home / "dagster.yaml").write_text(settings.read_text())
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    return [MARK, postgres.password]


def run(*words: str) -> int:
    """Run a command of `kronos` in this process."""
    return main(words)


def leaks(folder: Path, secrets: list[str]) -> list[Path]:
    """Return the files below a folder that hold a secret, in their names or in their bytes."""
    marks = [secret.encode() for secret in secrets]
    found = [path for path in folder.rglob("*") if any(secret in path.name for secret in secrets)]
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return [*found, *(path for path in files if any(mark in path.read_bytes() for mark in marks))]


def records(postgres: PostgresServer, database: str) -> str:
    """Return all rows of a database as text."""
    tables = postgres.execute(
        "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'", database
    )
    return "\n".join(str(postgres.execute(f'SELECT * FROM "{table}"', database)) for (table,) in tables)


def test_no_secret_is_in_anything_that_runs_leave(
    secrets: list[str],
    location: Location,
    postgres: PostgresServer,
    mlflow_database: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    location.write("AAPL")
    folders = ["--data-dir", str(location.data), "--output-dir", str(location.layout.root)]
    flags = [*folders, *small_flags(location.base), "--adapter", "lora"]
    # Everything works.
    assert run("train", *flags) == 0
    assert run("promote", "AAPL", "--output-dir", str(location.layout.root)) == 0
    assert run("forecast", "AAPL", *folders, "--eval-samples", "4") == 0
    run("doctor", "--system", *folders)
    assert run("status", *folders) == 0
    # A run of Dagster, with its events and captured output.
    command = [sys.executable, "-m", "dagster", "asset", "materialize", "-m", "kronos_pipeline.definitions"]
    environment = {**os.environ, "KRONOS_DATA_DIR": str(location.data), "KRONOS_OUTPUT_DIR": str(location.layout.root)}
    ended = subprocess.run(
        [*command, "--select", "raw_bars,windows,forecast", "--partition", "AAPL"],
        env={**environment, "PYTHONPATH": str(ROOT)},
        cwd=location.root,
        capture_output=True,
        text=True,
    )
    assert "Made raw_bars, forecast of AAPL" in ended.stderr, ended.stdout + ended.stderr
    assert "windows failed for AAPL" in ended.stderr  # too few bars for the default settings
    # The store does not answer, or refuses the user.
    for address in (*AWAY, mlflow_database.replace(postgres.password, f"{MARK}2")):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        assert run("promote", "AAPL", "--output-dir", str(location.layout.root)) == 2, address
        assert check_store(address)[0] == "error", address
        if address.startswith("postgres"):
            with pytest.raises(LeaseError) as caught:
                Leases(address, "place").take("lock")
            print(caught.value)
    run("status", *folders)
    run("doctor", "--system", *folders)
    monkeypatch.delenv("KRONOS_LEASE_DATABASE")
    run("train", *flags)  # its run waits on the disk for the store that refuses the user
    assert any(location.layout.mlflow_waiting.glob("*/*.json"))
    # No service takes a message.
    delivery = notify(" ".join(SERVICES), "title", "text")
    assert len(delivery.problems) == len(SERVICES)
    settings = AutomationSettings.from_environment()
    with dg.DagsterInstance.from_config(str(location.root / "home")) as instance:
        sensor = make_failure_sensor(settings)
        context = dg.build_sensor_context(instance, cursor='{"until": 0, "told": {}}')
        tick = sensor(context)
    said = capfd.readouterr()
    texts = {
        "stdout": said.out,
        "stderr": said.err,
        "log": caplog.text,
        "dagster": ended.stdout + ended.stderr,
        "problems": str(delivery.problems),
        "settings": f"{settings!r} {settings.model_dump_json()} {Tracking.from_environment()!r} {tick!r}",
        "records": records(postgres, mlflow_database.rpartition("/")[2]),
    }
    for secret in secrets:
        assert [name for name, text in texts.items() if secret in text] == []
    assert USER in texts["stderr"] or "127.0.0.1" in texts["stderr"]
    assert leaks(location.root, secrets) == []
