"""Damage in the output folder: every flipped bit of a file that is read back is refused with its name, or harmless.

Each file of a real output folder is found by a walk and read by the function that reads its kind; a file of a new kind
fails the test until its reader is listed.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from small_trainings import small_flags

from kronos_pipeline.artifacts import MANIFEST, ArtifactLayout, check_folder, read_json, read_parquet
from kronos_pipeline.base_models import find_base_model
from kronos_pipeline.cli.app import main
from kronos_pipeline.data.bars import load_bars
from kronos_pipeline.data.simulate import write_simulated
from kronos_pipeline.data.windows import load_windows
from kronos_pipeline.errors import ArtifactError, KronosError
from kronos_pipeline.evaluation import ledger
from kronos_pipeline.model.loading import KronosModel, load_base
from kronos_pipeline.model.lora import load_trained
from kronos_pipeline.model.predictor.predictor import KronosPredictor
from kronos_pipeline.promotion.submit import find_evidence
from kronos_pipeline.tracking.packaging import read_evidence

pytestmark = pytest.mark.slow

FLIPS = 12
NOT_READ_BACK = (
    *("*.png", "*.lock", "adapter.pt", "state/*"),
    *("mlflow.db*", "mlflow_backups/*", "MLmodel", "*.yaml", "requirements.txt"),
)
"""Pictures, locks, PEFT's tensors for scripts, and the state of a training, which has own tests; MLflow's own files."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("damage") / "data"
    write_simulated(folder, tickers=["AAPL", "MSFT"], bars=130)
    return folder


@pytest.fixture(scope="module")
def made(tiny_base: Path, data: Path, empty_mlflow_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder with every kind of artifact."""
    output = tmp_path_factory.mktemp("damage") / "out"
    output.mkdir()
    shutil.copy(empty_mlflow_store, output / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        flags = small_flags(tiny_base, data_dir=data, output_dir=output, epochs=1)
        assert main(["train", *flags]) == 0
        assert main(["train", *flags, "--adapter", "lora", "--backtest-origins", "2", "--seeds", "2"]) == 0
        assert main(["forecast", "--data-dir", str(data), "--output-dir", str(output)]) == 0
        assert main(["record", "--data-dir", str(data), "--output-dir", str(output)]) == 0
    return output


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> KronosModel:
    return load_base(find_base_model(str(tiny_base)), torch.device("cpu"))


def read_model(folder: Path, base: KronosModel) -> Any:
    model = load_trained(folder, base)
    scaling = [part.scaling for part in model.predictor.modules() if hasattr(part, "scaling")]
    return {name: value.tolist() for name, value in model.predictor.state_dict().items()}, scaling, model.weights_hash


def read_published(path: Path, folder: Path, base: KronosModel) -> Any:
    """Read a file of an adapter or a checkpoint as the loader and the evaluation do."""
    check_folder(folder)
    if path.suffix == ".csv":
        return pd.read_csv(path).to_dict()
    return (read_json(path), None) if path.name == MANIFEST else (None, read_model(folder, base))


def read_frame(path: Path) -> Any:
    frame, manifest = read_parquet(path)
    return frame.to_json(orient="split", double_precision=15), manifest


def read_windows(path: Path) -> Any:
    windows = load_windows(path, load_bars(path.parents[1] / "bars" / path.name))
    return windows.rows.to_json(double_precision=15), windows.excluded, windows.holdout_start


def read_stored_evidence(path: Path) -> Any:
    evidence = read_evidence(path)
    return evidence.predictions.to_json(double_precision=15), evidence.variants


def read_ledger(root: Path) -> Any:
    entries = ledger.read(ArtifactLayout(root))
    if entries.notes:
        raise ArtifactError(" ".join(entries.notes))
    return entries.rows.to_json(double_precision=15)


def reader_of(path: Path, root: Path, base: KronosModel) -> Callable[[], Any] | None:
    """Return the function that reads a file as the commands do; None for a file that is not read back."""
    name = path.relative_to(root).as_posix()
    if any(path.match(pattern) for pattern in NOT_READ_BACK) or name.startswith("state/"):
        return None
    folder = next((parent for parent in path.parents if (parent / MANIFEST).is_file()), None)
    sampling = path.parent.name == "sampling"
    if name.startswith("mlruns/") and not sampling and "/artifacts/artifacts/model/" not in name:
        # The other files are what MLflow's pages show.
        return partial(read_stored_evidence, path) if path.name == "evidence.parquet" else None
    if folder is not None and not sampling:
        return partial(read_published, path, folder, base)
    kinds: dict[str, Callable[[], Any]] = {
        "bars": lambda: load_bars(path),
        "windows": partial(read_windows, path),
        "ledger": partial(read_ledger, root),
    }
    suffixes: dict[str, Callable[[Path], Any]] = {".json": read_json, ".parquet": read_frame}
    return kinds.get(name.split("/")[0]) or partial(suffixes[path.suffix], path)


@contextmanager
def flipped(path: Path, bit: int) -> Iterator[None]:
    """Flip a bit of a file during the block."""
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[bit // 8] ^= 1 << bit % 8
    path.write_bytes(damaged)
    try:
        yield
    finally:
        path.write_bytes(whole)


def files_of(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())


def test_a_flipped_bit_of_any_file_is_refused_with_its_name_or_changes_nothing(made: Path, base: KronosModel) -> None:
    draw = random.Random(14)
    silent, unnamed, refused, readers = [], [], 0, 0
    for path in files_of(made):
        reader = reader_of(path, made, base)
        if reader is None:
            continue
        readers += 1
        sound = reader()
        for bit in (draw.randrange(8 * path.stat().st_size) for _ in range(FLIPS)):
            with flipped(path, bit):
                try:
                    read = reader()
                except KronosError as error:
                    refused += 1
                    if path.name not in str(error):
                        unnamed.append((path, bit, str(error)))
                else:
                    if str(read) != str(sound):
                        silent.append((path, bit))
    assert not silent
    assert not unnamed
    assert readers > 30
    assert refused > 0.9 * readers * FLIPS


def test_every_kind_of_file_is_damaged_above(made: Path, base: KronosModel) -> None:
    read = {path for path in files_of(made) if reader_of(path, made, base)}
    folders = {path.relative_to(made).parts[0] for path in read}
    expected = {"adapters", "checkpoints", "bars", "windows", "metrics", "backtest", "forecasts", "ledger", "base"}
    assert folders >= expected | {"track_record", "seeds", "mlruns"}


def run(*words: str) -> int:
    """Run a command; an exception that is no error of the project escapes."""
    return main(list(words))


@pytest.mark.parametrize(
    ("file", "command"),
    [
        ("metrics/evaluation.json", "report"),
        ("backtest/adapter.json", "report"),
        ("metrics/AAPL.json", "report AAPL"),
        ("backtest/adapter/AAPL.json", "report AAPL"),
        ("metrics/AAPL.json", "forecast AAPL"),
        ("backtest/adapter/AAPL.json", "forecast AAPL"),
        ("ledger", "record AAPL"),
        ("bars/AAPL.parquet", "status"),
        ("checkpoints/best_model/manifest.json", "status"),
        ("metrics/evaluation.json", "status"),
    ],
)
def test_a_command_names_the_damaged_file_that_it_needs(
    made: Path,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    file: str,
    command: str,
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    path = made / file
    if path.is_dir():
        path = next(path.rglob("*.parquet"))
    where = ["--output-dir", str(made), *([] if "report" in command else ["--data-dir", str(data)])]
    with flipped(path, 4 * path.stat().st_size):
        code = run(*command.split(), *where)
    text = capsys.readouterr()
    assert path.name in text.out + text.err
    assert code == (2 if command.startswith("report") else 0)


def test_a_damaged_evaluation_of_a_ticker_costs_no_forecast(
    made: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    where = ["--output-dir", str(made), "--data-dir", str(data)]
    with flipped(made / "metrics/AAPL.json", 4000):
        assert run("forecast", *where) == 0
    words = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "AAPL: read with the settings of the last evaluation of all tickers, as" in words
    assert "the evaluation is left out:" in words
    assert "metrics/AAPL.json was edited or damaged" in words
    assert "AAPL: close" in words
    assert "MSFT: close" in words


@pytest.mark.parametrize("command", ["forecast", "record", "drift"])
def test_a_damaged_evaluation_of_all_tickers_is_set_aside_and_costs_no_ticker_anything(
    made: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    path = made / "metrics/evaluation.json"
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    try:
        assert run(command, "--output-dir", str(made), "--data-dir", str(data)) == 0
        assert f"{path} is damaged: it is now evaluation.json.damaged; the next training" in capsys.readouterr().out
        assert run(command, "--output-dir", str(made), "--data-dir", str(data)) == 0, "as without the file"
        assert "damaged" not in capsys.readouterr().out
    finally:
        path.write_bytes(whole)
        path.with_name("evaluation.json.damaged").unlink()


def test_damaged_evidence_reaches_no_gate(made: Path) -> None:
    layout = ArtifactLayout(made)
    assert find_evidence(layout, "adapter", ["AAPL"], layout.adapter("AAPL")).source == "backtest"
    for path in (layout.backtest("adapter", "AAPL"), layout.ticker_forecasts("AAPL")):
        with flipped(path, 9000), pytest.raises(ArtifactError, match=r"AAPL\.parquet was edited or damaged"):
            find_evidence(layout, "adapter", ["AAPL"], layout.adapter("AAPL"))


def test_an_edited_alpha_does_not_load_and_the_message_says_what_to_do(made: Path, tiny_base: Path) -> None:
    folder = ArtifactLayout(made).adapter("AAPL")
    path = folder / "adapter_config.json"
    whole = path.read_text()
    path.write_text(whole.replace('"lora_alpha": 16.0', '"lora_alpha": 80.0'))
    try:
        with pytest.raises(KronosError) as caught:
            KronosPredictor.from_pretrained(str(tiny_base), device="cpu", adapters={"AAPL": folder})
    finally:
        path.write_text(whole)
    assert "adapter_config.json was edited or damaged" in str(caught.value)
    assert f"kronos train --adapter lora --output-dir {made}" in str(caught.value)
    KronosPredictor.from_pretrained(str(tiny_base), device="cpu", adapters={"AAPL": folder})


def test_files_of_before_without_checksums_are_read(made: Path, tmp_path: Path) -> None:
    path = tmp_path / "AAPL.json"
    content = json.loads((made / "metrics/AAPL.json").read_text())
    assert content.pop("checksum").startswith("kronos-sha256:")
    path.write_text(json.dumps(content))
    assert read_json(path) == read_json(made / "metrics/AAPL.json")
    frame, _ = read_parquet(made / "metrics/AAPL.parquet")
    table = pq.read_table(made / "metrics/AAPL.parquet")
    metadata = {key: value for key, value in table.schema.metadata.items() if key != b"kronos_checksum"}
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "AAPL.parquet")
    assert read_parquet(tmp_path / "AAPL.parquet")[0].equals(frame)
