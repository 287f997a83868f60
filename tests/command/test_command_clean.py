"""`kronos clean`: what it deletes by its rules, and what it never touches."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest
from filelock import FileLock
from published_folders import publish, read_published

from kronos_pipeline.artifacts import ArtifactLayout, write_json
from kronos_pipeline.cli.app import main
from kronos_pipeline.data.bars import save_bars
from kronos_pipeline.data.csv_files import find_csv_files
from kronos_pipeline.data.ingest import read_files
from kronos_pipeline.data.simulate import write_simulated
from kronos_pipeline.evaluation import ledger
from kronos_pipeline.training.checkpoint import lock_file

pytestmark = pytest.mark.slow

DAY = 86_400


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def layout(tmp_path: Path) -> ArtifactLayout:
    (tmp_path / "out").mkdir()
    return ArtifactLayout(tmp_path / "out")


def clean(layout: ArtifactLayout, *flags: str) -> int:
    data = layout.root.parent / "data"
    return main(["clean", "--output-dir", str(layout.root), "--data-dir", str(data), *flags])


def age(path: Path, days: float) -> None:
    """Make a file, link or folder look as if it and all below it had not changed for some days."""
    moment = time.time() - days * DAY
    for entry in (*path.rglob("*"), path):
        os.utime(entry, (moment, moment), follow_symlinks=False)


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def state(layout: ArtifactLayout, key: str, artifact: str, **content: object) -> Path:
    folder = layout.state(key)
    write_json(folder / "run.json", {"artifact": artifact, "parts": {}, **content})
    (folder / "state.pt").write_bytes(b"weights")
    return folder


def test_a_look_for_old_versions_reads_the_links_of_a_folder_once(
    layout: ArtifactLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thousands of adapters have as many versions: each version was compared with each link anew."""
    names = [f"T{number}" for number in range(20)]
    for name in names:
        publish(layout.adapter(name), "one")
        publish(layout.adapter(name), "two")
    age(layout.root, 3)
    read: list[Path] = []
    readlink = Path.readlink

    def counted(path: Path) -> Path:
        read.append(path)
        return readlink(path)

    monkeypatch.setattr(Path, "readlink", counted)
    assert clean(layout, "--dry-run") == 0
    assert sum(path.parent.name == "adapters" for path in read) == len(names)


def test_versions_that_no_link_points_to_go_and_the_published_one_stays(layout: ArtifactLayout) -> None:
    for text in ("one", "two"):
        publish(layout.adapter("AAPL"), text)
    publish(layout.adapter("GONE"), "whole")
    layout.adapter("GONE").unlink()  # as the README says
    age(layout.root, 3)
    publish(layout.adapter("MSFT"), "one")
    publish(layout.adapter("MSFT"), "two")  # the version before it is of today: a reader may have it open

    assert clean(layout) == 0

    assert read_published(layout.adapter("AAPL")) == ("two", "two")
    assert read_published(layout.adapter("MSFT")) == ("two", "two")
    versions = sorted(path.name[:4] for path in (layout.root / "adapters" / ".versions").iterdir())
    assert versions == ["AAPL", "MSFT", "MSFT"]


def test_states_of_given_up_trainings_go_unless_a_process_holds_them(layout: ArtifactLayout) -> None:
    dead = state(layout, "a" * 32, "adapters/AAPL")
    held = state(layout, "b" * 32, "adapters/MSFT")
    group = state(layout, "c" * 32, "together x", artifacts=[str(layout.adapter(name)) for name in ("META", "MSFT")])
    damaged = layout.state("d" * 32)
    damaged.mkdir()
    (damaged / "run.json").write_text("[]")
    age(layout.root, 31)
    young = state(layout, "e" * 32, "adapters/AMD")

    with FileLock(lock_file(dead.parent, "adapters/MSFT")):
        assert clean(layout) == 0
        assert [folder.exists() for folder in (dead, held, group, damaged, young)] == [False, True, True, True, True]
    assert clean(layout) == 0
    assert [folder.exists() for folder in (held, group, damaged, young)] == [False, False, False, True]


def test_temporary_and_damaged_files_go_when_they_are_old(layout: ArtifactLayout) -> None:
    names = (
        "metrics/.AAPL.json.0a1b2c3d.tmp",
        "metrics/AAPL.json.damaged",
        "metrics/AAPL.json",
        "ledger/.x.0a1b2c3d.tmp",
    )
    for name in names:
        path = layout.root / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
    unpublished = layout.root / "adapters" / ".AAPL.0a1b2c3d.tmp"
    unpublished.parent.mkdir()
    unpublished.symlink_to(".versions/AAPL")
    age(layout.root, 3)

    assert clean(layout) == 0
    assert {*files_below(layout.root)} >= {"metrics/AAPL.json.damaged", "metrics/AAPL.json", "ledger/.x.0a1b2c3d.tmp"}
    assert not (layout.root / names[0]).exists()
    assert not unpublished.is_symlink()

    age(layout.root, 31)
    assert clean(layout) == 0
    assert not (layout.root / "metrics/AAPL.json.damaged").exists()
    assert (layout.root / "metrics/AAPL.json").exists()
    assert (layout.root / "ledger/.x.0a1b2c3d.tmp").exists(), "nothing in the ledger is touched"


def test_bars_go_with_their_csv_unless_the_ledger_needs_them_or_the_folder_is_another(
    layout: ArtifactLayout, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = layout.root.parent / "data"
    write_simulated(data, tickers=["AAPL", "GONE", "MSFT"], bars=40)
    bars, _ = read_files(list(find_csv_files(data).files.values()))
    for ticker, of_ticker in bars.items():
        save_bars(layout.bars(ticker), of_ticker)
    for gone in ("GONE", "MSFT"):
        next(data.rglob(f"{gone}.csv")).unlink()
    issued = ledger.SCHEMA.empty_table().to_pandas()
    issued.loc[0, "unique_id"] = "MSFT"
    monkeypatch.setattr(ledger, "read", lambda *_: ledger.Ledger(issued))
    age(layout.root, 31)

    assert clean(layout, "--data-dir", str(layout.root)) == 0
    assert "Stored bars stay" in capsys.readouterr().out
    assert clean(layout) == 0
    assert sorted(path.stem for path in layout.bars("X").parent.iterdir()) == ["AAPL", "MSFT"]


def test_a_dry_run_says_what_and_how_many_bytes_and_deletes_nothing(
    layout: ArtifactLayout, capsys: pytest.CaptureFixture[str]
) -> None:
    state(layout, "a" * 32, "adapters/AAPL")
    age(layout.root, 31)
    before = files_below(layout.root)
    assert clean(layout, "--dry-run", "-v") == 0
    printed = capsys.readouterr().out
    size = sum(path.stat().st_size for path in layout.state("a" * 32).iterdir())
    assert f"{size} B would be deleted" in printed
    assert f"state/{'a' * 32} {size} B" in printed
    assert files_below(layout.root) == before


def test_no_link_is_followed_out_of_the_output_folder(layout: ArtifactLayout, tmp_path: Path) -> None:
    elsewhere = ArtifactLayout(tmp_path / "elsewhere")
    state(elsewhere, "a" * 32, "adapters/AAPL")
    publish(elsewhere.adapter("AAPL"), "one")
    elsewhere.adapter("AAPL").unlink()
    (elsewhere.root / ".x.0a1b2c3d.tmp").write_text("x")
    for name in ("state", "adapters"):
        (layout.root / name).symlink_to(elsewhere.root / name)
    (layout.root / "seeds").mkdir()
    (layout.root / "seeds" / "1").symlink_to(elsewhere.root)
    age(elsewhere.root, 31)
    before = files_below(elsewhere.root)
    assert clean(layout) == 0
    assert files_below(elsewhere.root) == before


def test_a_second_clean_up_at_the_same_time_says_so(layout: ArtifactLayout, capsys: pytest.CaptureFixture[str]) -> None:
    with FileLock(layout.root / ".clean.lock"):
        assert clean(layout) == 2
    assert "Another process cleans" in capsys.readouterr().err


def test_a_folder_that_does_not_exist_and_a_damaged_store_are_errors_and_the_files_are_cleaned_all_the_same(
    layout: ArtifactLayout, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["clean", "--output-dir", str(layout.root / "none")]) == 2
    assert "name the output folder by --output-dir" in capsys.readouterr().err
    layout.mlflow_database.write_bytes(b"no database" * 100)
    dead = state(layout, "a" * 32, "adapters/AAPL")
    age(dead, 31)
    assert clean(layout) == 2
    assert "mlflow.db cannot be used" in capsys.readouterr().err
    assert not dead.exists()
    shutil.rmtree(layout.root)
