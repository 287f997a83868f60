"""Errors for a user: one plain message, exit code 2, no traceback, and unchanged good artifacts."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from small_trainings import small_flags
from tiny_models import save_tiny_base

from kronos_pipeline import run_training
from kronos_pipeline.cli import app as cli
from kronos_pipeline.data.simulate import write_simulated

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_mlflow_store")]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_simulated(tmp_path / "data", tickers=["AAPL"], bars=130)
    return tmp_path / "data"


def error_of(capsys: pytest.CaptureFixture[str], code: int) -> str:
    captured = capsys.readouterr()
    assert code == 2
    assert captured.err.startswith("error: ")
    assert "Traceback" not in captured.err + captured.out
    return captured.err


def train(base: Path | str, data: Path, output: Path, *flags: str, **changes: Any) -> int:
    return run_training.main([*small_flags(Path(base), data_dir=data, output_dir=output, **changes), *flags])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--horizon", "0"], "--horizon: Input should be greater than or equal to 1 (found '0')"),
        (["--lookback", "600"], "--lookback 600 is above the context of"),
        (["--horizon", "511"], "--horizon 511 leaves no lookback in the context of"),
        (["--adapter", "lora", "--adapter-name", "a/b"], "--adapter-name: use letters, digits and .-_^= only"),
        (["--adapter", "lora", "--adapter-name", "../x"], "--adapter-name: use letters"),
        (["--adapter-name", "x"], "--adapter-name and --no-freeze-backbone need --adapter lora"),
        (["--adapter", "lora", "--adapter-targets", "nonsense"], "the model has no linear module nonsense"),
        (["--model-name", "NeoQuasar/Kronos-huge"], "No model is called 'NeoQuasar/Kronos-huge'"),
        (["--epochs", "two"], "--epochs: "),
        (["--epoch", "2", "--nonsense"], "unrecognized arguments: --epoch 2 --nonsense"),
        (["--device", "cuda:99"], "--device cuda:99"),
        (["--precision", "fp16"], "--precision fp16 needs a GPU"),
    ],
)
def test_settings_that_cannot_work(
    tiny_base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert message in error_of(capsys, train(tiny_base, data, tmp_path / "out", *flags))
    assert not list((tmp_path / "out").rglob("*.safetensors"))
    assert not (tmp_path / "out/metrics").exists()


@pytest.mark.parametrize("make", ["missing", "empty", "file"])
def test_a_folder_that_is_none_or_holds_no_csv(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], make: str
) -> None:
    data = tmp_path / "nothing"
    if make == "empty":
        data.mkdir()
    if make == "file":
        data.write_text("x")
    assert str(data) in error_of(capsys, train(tiny_base, data, tmp_path / "out"))


def test_all_tickers_bad_is_an_error_that_names_every_line_and_leaves_the_last_good_artifacts(
    tiny_base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert train(tiny_base, data, output, "--adapter", "lora", epochs=1) == 0
    before = {file: file.read_bytes() for file in output.rglob("*") if file.is_file() and "adapters" in str(file)}
    evaluation = (output / "metrics/evaluation.json").read_bytes()
    capsys.readouterr()
    lines = (data / "AAPL/AAPL.csv").read_text().splitlines()
    for number, cell in ((5, "-1"), (9, "text")):
        cells = lines[number - 1].split(",")
        lines[number - 1] = ",".join([cells[0], cell, *cells[2:]])
    (data / "AAPL/AAPL.csv").write_text("\n".join(lines))
    message = error_of(capsys, train(tiny_base, data, output, "--adapter", "lora"))
    assert "AAPL.csv:5: open" in message
    assert "AAPL.csv:9: open" in message
    assert before == {
        file: file.read_bytes() for file in output.rglob("*") if file.is_file() and "adapters" in str(file)
    }
    assert (output / "metrics/evaluation.json").read_bytes() == evaluation


def test_too_few_bars_say_how_many_there_are_and_are_needed(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_simulated(tmp_path / "data", tickers=["AAPL"], bars=40)
    message = error_of(capsys, train(tiny_base, tmp_path / "data", tmp_path / "out"))
    assert "40 bars" in message
    assert "48" in message  # 16 + 5 + 1 for one training window, 14 and 12 days


def test_an_output_folder_that_cannot_be_written(
    tiny_base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    message = error_of(capsys, train(tiny_base, data, tmp_path / "file/out"))
    assert "cannot be written" in message
    assert "--output-dir" in message


def test_an_offline_machine_is_told_the_three_ways_out(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "nothing_cached"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    message = error_of(capsys, train("NeoQuasar/Kronos-small", data, tmp_path / "out"))
    for remedy in ("folder", "download", "kronos-nano"):
        assert remedy in message


def test_a_damaged_base_model_is_named(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = save_tiny_base(tmp_path / "base")
    weights = base / "predictor/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    message = error_of(capsys, train(base, data, tmp_path / "out"))
    assert "predictor" in message
    assert "model.safetensors" in message


def test_an_adapter_of_another_base_is_left_out_by_name_and_damage_is_an_error(
    tiny_base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    other = save_tiny_base(tmp_path / "other", seed=9)
    assert train(other, data, output, "--adapter", "lora", epochs=1) == 0
    assert train(tiny_base, data, output, epochs=1) == 0
    assert "AAPL: the adapter is left out: it was trained on another base model" in capsys.readouterr().out
    assert train(tiny_base, data, output, "--adapter", "lora", epochs=1) == 0
    capsys.readouterr()
    weights = output / "adapters/AAPL/adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    message = error_of(capsys, train(tiny_base, data, output, epochs=1))
    assert "adapter_model.safetensors" in message


def test_an_mlflow_server_that_is_away(
    tiny_base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    message = error_of(capsys, train(tiny_base, data, tmp_path / "out"))
    assert "http://127.0.0.1:9" in message
    assert not (tmp_path / "out/checkpoints").exists()


def test_the_environment_counts_after_flags_and_before_defaults(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KRONOS_BASE_MODEL", "from-the-environment")
    monkeypatch.setenv("KRONOS_DATA_DIR", str(data))
    assert "'from-the-environment'" in error_of(capsys, run_training.main(["--output-dir", str(tmp_path / "out")]))
    assert "'from-a-flag'" in error_of(
        capsys, run_training.main(["--output-dir", str(tmp_path / "out"), "--model-name", "from-a-flag"])
    )


def test_doctors_proposal_trains_and_simulate_makes_the_same_bars_again(
    tiny_base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["simulate", "--data-dir", str(tmp_path / "again"), "--tickers", "AAPL", "--bars", "130"]) == 0
    assert (tmp_path / "again/AAPL/AAPL.csv").read_bytes() == (data / "AAPL/AAPL.csv").read_bytes()
    capsys.readouterr()
    settings = ["--lookback", "16", "--horizon", "5", "--validation-days", "12", "--selection-days", "14"]
    doctor = ["doctor", "--data-dir", str(data), "--model-name", str(tiny_base), *settings]
    assert cli.main(doctor) == 0
    report = capsys.readouterr().out
    assert "1 of 1 tickers are fit" in report
    assert "cost: about" in report
    [proposal] = re.findall(r"^proposal: python -m kronos_pipeline.run_training (.*)$", report, re.MULTILINE)
    quick = ["--output-dir", str(tmp_path / "proposed"), "--epochs", "1", "--eval-samples", "2"]
    assert cli.main(["train", *shlex.split(proposal), *quick]) == 0
    (data / "EMPTY.csv").touch()
    assert cli.main(doctor) == 2
    assert "EMPTY.csv" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["train", "--help"], ["pretrain", "--help"]])
def test_help_ends_well(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert cli.main(arguments) == 0
    assert "usage: kronos" in capsys.readouterr().out
