"""`kronos check-blind` on a user's own data: its comparison, its messages, and that it detects a leak."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate.utils import set_seed
from hypothesis import given
from hypothesis import strategies as st
from random_tickers import cases, tickers
from small_trainings import small_flags

from kronos_pipeline.cli import app as cli
from kronos_pipeline.data import windows as windows_module
from kronos_pipeline.data.bars import FEATURES, Bars
from kronos_pipeline.data.normalisation import rolling_statistics
from kronos_pipeline.data.schemas import BarFrame
from kronos_pipeline.data.simulate import write_simulated
from kronos_pipeline.data.windows import WindowSet
from kronos_pipeline.evaluation.forecasting import candidates as candidates_module
from kronos_pipeline.evaluation.forecasting.tuning import fit_sampling_job
from kronos_pipeline.evaluation.leakage_test import with_noise
from kronos_pipeline.training import dataset as dataset_module
from kronos_pipeline.training import single as alone_module

pytestmark = pytest.mark.slow

ADAPTER = ("--adapter", "lora")
Patch = Callable[[pytest.MonkeyPatch], None]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_simulated(tmp_path / "data", tickers=["AAPL", "MSFT"], bars=130)
    return tmp_path / "data"


@pytest.fixture
def one_ticker(tmp_path: Path) -> Path:
    write_simulated(tmp_path / "one", tickers=["AAPL"], bars=130)
    return tmp_path / "one"


def check(base: Path, data: Path, *flags: str, **changes: Any) -> int:
    settings = {"data_dir": data, "output_dir": data.parent / "out", "epochs": 1, **changes}
    return cli.main(["check-blind", *small_flags(base, **settings), *flags])


@pytest.mark.parametrize(
    ("mode", "files"),
    [
        (
            ADAPTER,
            ["adapters/AAPL/adapter_model.safetensors", "adapters/MSFT/adapter.pt", "adapters/MSFT/sampling/MSFT.json"],
        ),
        (
            (*ADAPTER, "--adapter-name", "both", "--no-freeze-backbone"),
            ["adapters/both/base/model.safetensors", "adapters/both/sampling/MSFT.json"],
        ),
        (
            (),
            [
                "checkpoints/best_model/model.safetensors",
                "checkpoints/last_model/model.safetensors",
                "checkpoints/best_model/sampling/AAPL.json",
            ],
        ),
    ],
    ids=["an adapter each", "one adapter and its base", "a checkpoint"],
)
def test_what_the_pipeline_makes_is_blind_to_the_holdout(
    tiny_base: Path, data: Path, capsys: pytest.CaptureFixture[str], mode: tuple[str, ...], files: list[str]
) -> None:
    assert check(tiny_base, data, *mode) == 0
    printed = capsys.readouterr().out
    for file in (*files, "base/sampling/MSFT.json"):
        assert f"same  {file}\n" in printed
    assert "differs" not in printed
    assert "depends on the 24 holdout bars of 2 tickers" in printed
    assert not list((data.parent / "out").iterdir())


def leaky_statistics(patch: pytest.MonkeyPatch) -> None:
    """Normalise by the whole file, a common mistake."""
    original = rolling_statistics

    def statistics_of_file(values: np.ndarray, lookback: int) -> tuple[np.ndarray, np.ndarray]:
        mean, std = original(values, lookback)
        return np.broadcast_to(values.mean(axis=0), mean.shape), np.broadcast_to(values.std(axis=0), std.shape)

    patch.setattr(windows_module, "rolling_statistics", statistics_of_file)


def leaky_selection(patch: pytest.MonkeyPatch) -> None:
    """Stop early on the holdout: the loss that selects the weights uses windows that reach into it."""
    original = dataset_module._normalised

    def shift(windows: WindowSet) -> WindowSet:
        rows = windows.rows.copy()
        rows.loc[rows["split"] == "selection", ["start", "origin", "end"]] += windows.horizon
        return replace(windows, rows=rows)

    def shifted(windows: Sequence[WindowSet], *arguments: Any) -> Iterator[np.ndarray]:
        return original([shift(ticker) for ticker in windows], *arguments)

    patch.setattr(dataset_module, "_normalised", shifted)


def leaky_sampling(patch: pytest.MonkeyPatch) -> None:
    """Fit the intervals' widths on the bars that test them."""
    original = fit_sampling_job

    def fit_on_holdout(windows: WindowSet, *arguments: Any) -> Any:
        moved = replace(windows, selection_start=windows.holdout_start, holdout_start=len(windows.bars))
        return original(moved, *arguments)

    patch.setattr(candidates_module, "fit_sampling_job", fit_on_holdout)


@pytest.mark.parametrize(
    ("mode", "leak", "file"),
    [
        (ADAPTER, leaky_statistics, "adapters/AAPL/adapter_model.safetensors"),
        ((), leaky_statistics, "checkpoints/best_model/model.safetensors"),
        (("--epochs", "6", "--learning-rate", "0.1"), leaky_selection, "checkpoints/best_model/model.safetensors"),
        (ADAPTER, leaky_sampling, "adapters/AAPL/sampling/AAPL.json"),
    ],
)
def test_a_leak_does_not_pass(
    tiny_base: Path,
    one_ticker: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    mode: tuple[str, ...],
    leak: Patch,
    file: str,
) -> None:
    leak(monkeypatch)
    assert check(tiny_base, one_ticker, *mode) == 2
    captured = capsys.readouterr()
    assert f"differs  {file}" in captured.out
    assert "blind:" not in captured.out
    assert captured.err.startswith("error: ")
    assert file in captured.err
    assert "has read the holdout" in captured.err
    if leak is leaky_sampling:
        assert "safetensors" not in captured.err


def test_a_device_that_does_not_repeat_itself_is_no_leak_and_no_proof(
    tiny_base: Path, one_ticker: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = itertools.count()
    monkeypatch.setattr(alone_module, "set_seed", lambda *_, **__: set_seed(next(seeds)))
    assert check(tiny_base, one_ticker, *ADAPTER) == 2
    captured = capsys.readouterr()
    assert "a training on this device is not repeatable. Use --deterministic, or --device cpu." in captured.err
    assert "has read the holdout" not in captured.err
    assert "blind:" not in captured.out


def test_a_bad_ticker_is_named_and_the_others_are_checked(
    tiny_base: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "ACME.csv").write_text("date,open,high,low,close\n2024-01-02,1,2,1,2\n2024-01-03,-1,2,1,2\n")
    (data / "SHORT.csv").write_text("date,open,high,low,close\n2024-01-02,1,2,1,2\n2024-01-03,1,2,1,2\n")
    assert check(tiny_base, data, *ADAPTER) == 2
    captured = capsys.readouterr()
    assert "same  adapters/MSFT/adapter_model.safetensors" in captured.out
    assert "ACME.csv:3: open" in captured.err
    assert "SHORT.csv: 2 bars" in captured.err


def test_data_without_a_good_ticker_are_an_error(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/ACME.csv").write_text("date,open,high,low,close\n2024-01-02,-1,2,1,2\n")
    assert check(tiny_base, tmp_path / "data") == 2
    assert "ACME.csv:2: open" in capsys.readouterr().err


def test_several_processes_are_refused(
    tiny_base: Path, data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert check(tiny_base, data) == 2
    assert "start it without torchrun" in capsys.readouterr().err


@cases(60)
@given(tickers(), st.floats(0, 1), st.integers(0, 2**32 - 1), st.booleans())
def test_noise_is_valid_bars_at_the_same_times_and_nothing_else_of_the_old_ones(
    bars: Bars, fraction: float, seed: int, without_volume: bool
) -> None:
    if without_volume:
        bars = replace(bars, frame=bars.frame.assign(volume=0.0, amount=0.0))
    first = 1 + int(fraction * (len(bars) - 2))
    noise = with_noise(bars, first, seed)
    BarFrame.validate(noise.frame.assign(ticker=0))
    assert noise.frame["timestamps"].equals(bars.frame["timestamps"])
    assert noise.frame.iloc[:first].equals(bars.frame.iloc[:first])
    columns = list(FEATURES)
    assert (noise.frame[columns].iloc[first:] != bars.frame[columns].iloc[first:]).all(axis=None)
    assert noise.content_hash != bars.content_hash
