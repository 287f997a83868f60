"""The lines of docs/operations.md that back up an output folder and restore it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pandas as pd
import pytest
from published_folders import publish, read_published
from registered_models import GOOD, evidence, made_adapter
from small_trainings import SMALL, small_recipe

from kronos_pipeline import cli
from kronos_pipeline.artifacts import ArtifactLayout
from kronos_pipeline.config import Recipe
from kronos_pipeline.tracking.packaging import EvidenceTable
from kronos_pipeline.tracking.registry import Registry, registered_name
from kronos_pipeline.tracking.runs import Tracker

pytestmark = pytest.mark.slow

PAGE = Path(__file__).resolve().parents[2] / "docs" / "operations.md"
BACK_UP, RESTORE = re.findall(r"^```bash\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
NAMES = BACK_UP.splitlines()[0]


def run(lines: str, layout: ArtifactLayout, backup: Path) -> None:
    """Run lines of the page in bash, in a shell that stops at the first error."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    folders = {"KRONOS_OUTPUT_DIR": str(layout.root), "KRONOS_BACKUP_DIR": str(backup)}
    subprocess.run(["bash", "-euo", "pipefail", "-c", lines], check=True, env={**os.environ, "PATH": path, **folders})


def forecast(ticker: str, layout: ArtifactLayout, base: Path) -> pd.DataFrame:
    data = str(layout.root.parent / "data")
    settings = {name: str(SMALL[name]) for name in ("horizon", "device")}
    flags = [part for name, value in settings.items() for part in (f"--{name}", value)]
    flags += ["--model-name", str(base), "--eval-samples", str(SMALL["eval_samples"])]
    assert cli.main(["forecast", ticker, "--data-dir", data, "--output-dir", str(layout.root), *flags]) == 0
    return pd.read_parquet(layout.forecast(ticker))


def write_all_the_time(layout: ArtifactLayout, stop: threading.Event) -> None:
    """Publish adapters and record runs until told to stop."""
    tracker, number = Tracker(None, layout.root), 0
    while not stop.is_set():
        number += 1
        publish(layout.adapter("BUSY"), str(number))
        with tracker.training_run(f"run {number}", Recipe()):
            pass


def test_a_restored_output_folder_forecasts_the_same_from_a_backup_at_rest_and_beside_a_writer(
    ticker: str, tiny_base: Path, empty_mlflow_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    layout = ArtifactLayout(tmp_path / "out")
    layout.root.mkdir()
    shutil.copy(empty_mlflow_store, layout.mlflow_database)
    folder = made_adapter(tmp_path / "adapter", small_recipe(tiny_base), [ticker])
    tracker = Tracker(None, layout.root)
    with tracker.training_run("made", Recipe()) as training:
        pass
    table = EvidenceTable(evidence(GOOD, symbol=ticker))
    Registry(tracker).register(folder, registered_name(ticker), training.run_id, evidence=table, metrics={})
    Registry(tracker).promote(registered_name(ticker), 1, "to see it restored")
    before = forecast(ticker, layout, tiny_base)
    assert "version 1" in before["model"].iloc[0]

    run(BACK_UP, layout, tmp_path / "at rest")
    stop = threading.Event()
    writer = threading.Thread(target=write_all_the_time, args=(layout, stop))
    writer.start()
    try:
        run(BACK_UP, layout, tmp_path / "busy")
    finally:
        stop.set()
        writer.join()

    issued = sorted(path.name for path in layout.ledger.glob("*/*"))
    for backup in (tmp_path / "at rest", tmp_path / "busy"):
        shutil.rmtree(layout.root)
        run(f"{NAMES}\n{RESTORE}", layout, backup)
        assert sorted(path.name for path in layout.ledger.glob("*/*")) == issued
        pd.testing.assert_frame_equal(forecast(ticker, layout, tiny_base), before)
    first, second = read_published(layout.adapter("BUSY"))
    assert first == second, "a published folder of the busy moment is whole"
