"""A registered model as people use it: MLflow loads or serves it, a request has bars, the response is the forecast."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PyFuncModel
from registered_models import base_of, evidence, made_adapter, made_checkpoint
from small_trainings import simulated_bars, simulated_windows, small_recipe
from tiny_models import save_tiny_base

from kronos_pipeline.artifacts import ArtifactLayout
from kronos_pipeline.config import Recipe
from kronos_pipeline.data.bars import Bars, make_bars
from kronos_pipeline.evaluation import ledger
from kronos_pipeline.evaluation.forecasting.future import forecast_ahead
from kronos_pipeline.evaluation.forecasting.sampling import plain_sampling, save_sampling
from kronos_pipeline.evaluation.predictions import LEVELS, VARIANTS
from kronos_pipeline.model.lora import load_adapter
from kronos_pipeline.tracking.packaging import FORECAST, EvidenceTable
from kronos_pipeline.tracking.registry import Registry, registered_name
from kronos_pipeline.tracking.runs import Tracker

pytestmark = pytest.mark.slow

START_SECONDS = 400.0
BARS = simulated_bars(bars=60)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("output")


@pytest.fixture(scope="module")
def tracker(own_mlflow_store: str, output: Path) -> Tracker:
    return Tracker(own_mlflow_store, output)


@pytest.fixture(scope="module")
def register(tracker: Tracker) -> Callable[[Path, str], Path]:
    """Register a folder, make it champion, and return the folder in which MLflow keeps it."""
    with tracker.training_run("made", Recipe()) as run:
        pass
    registry = Registry(tracker)

    def register_folder(folder: Path, name: str) -> Path:
        number = registry.register(
            folder, name, run.run_id, evidence=EvidenceTable(evidence({"naive": 1.0})), metrics={}
        )
        registry.promote(name, number, "for the test")
        place = MlflowClient(tracker.uri).get_model_version_download_uri(name, str(number))
        return Path(place.removeprefix("file://"))

    return register_folder


@pytest.fixture(scope="module")
def adapter(recipe: Recipe, output: Path) -> Path:
    return with_sampling(made_adapter(output / "adapter", recipe), recipe)


@pytest.fixture(scope="module")
def name() -> str:
    return registered_name("^SERVED=X.B")


@pytest.fixture(scope="module")
def place(register: Callable[[Path, str], Path], adapter: Path, name: str) -> Path:
    return register(adapter, name)


@pytest.fixture(scope="module")
def served(place: Path) -> PyFuncModel:
    model: PyFuncModel = mlflow.pyfunc.load_model(str(place))
    return model


def with_sampling(folder: Path, recipe: Recipe) -> Path:
    """Return the adapter with its own sampling: a lower temperature, and intervals three times as wide."""
    [windows] = simulated_windows(recipe)
    weights = load_adapter(folder, base_of(recipe)).weights_hash
    widths = dict.fromkeys(LEVELS, (3.0,) * recipe.horizon)
    sampling = replace(
        plain_sampling(recipe),
        temperature=0.5,
        widths=dict.fromkeys(VARIANTS, widths),
        residuals=9,
        weights_hash=weights,
    )
    save_sampling(folder, windows, sampling, recipe)
    return folder


def direct_forecast(folder: Path, bars: Bars, recipe: Recipe) -> pd.DataFrame:
    """Return the forecast without MLflow and without the registry."""
    widths = dict.fromkeys(LEVELS, (3.0,) * recipe.horizon)
    sampling = replace(plain_sampling(recipe), temperature=0.5, widths=dict.fromkeys(VARIANTS, widths))
    return forecast_ahead(bars, load_adapter(folder, base_of(recipe)), sampling, recipe)[["ds", *FORECAST]]


def predicted(model: PyFuncModel, frame: pd.DataFrame) -> pd.DataFrame:
    result = model.predict(frame)
    assert isinstance(result, pd.DataFrame)
    return result


def as_request(frame: pd.DataFrame, **changes: Any) -> pd.DataFrame:
    """Return bars in the form of a request: times as text."""
    return frame.assign(timestamps=frame["timestamps"].astype(str)).assign(**changes)


def test_mlflow_loads_a_model_that_forecasts_as_the_project_does(
    served: PyFuncModel, adapter: Path, recipe: Recipe
) -> None:
    expected = direct_forecast(adapter, BARS, recipe)
    assert expected["hi_90"].gt(expected["lo_90"]).iloc[1:].all()  # the few paths may agree on the first bar
    for frame in (BARS.frame, as_request(BARS.frame)):
        pd.testing.assert_frame_equal(predicted(served, frame), expected, check_dtype=False, rtol=1e-12)


def test_only_the_newest_lookback_shapes_the_forecast_and_two_bars_will_do(
    served: PyFuncModel, adapter: Path, recipe: Recipe
) -> None:
    expected = predicted(served, BARS.frame)
    older = BARS.frame.copy()
    older.loc[: len(older) - recipe.lookback - 1, ["open", "high", "low", "close"]] *= 2
    pd.testing.assert_frame_equal(predicted(served, older), expected)
    two = make_bars("AAPL", BARS.frame.tail(2).reset_index(drop=True), source="two")
    pd.testing.assert_frame_equal(
        predicted(served, two.frame), direct_forecast(adapter, two, recipe), check_dtype=False, rtol=1e-12
    )


def test_bars_are_read_as_a_csvs_are(served: PyFuncModel) -> None:
    """Bars newest first, with an integer volume, no amount, and a zone with a changing offset: local time stays."""
    frame = BARS.frame.drop(columns="amount").assign(volume=7)
    plain = predicted(served, frame)
    zones = ["-05:00" if stamp.month < 3 else "-04:00" for stamp in frame["timestamps"]]
    stamps = [f"{stamp.isoformat()}{zone}" for stamp, zone in zip(frame["timestamps"], zones, strict=True)]
    zoned = frame.assign(timestamps=stamps)[::-1].reset_index(drop=True)
    pd.testing.assert_frame_equal(predicted(served, zoned), plain)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda frame: frame.head(1), "a forecast needs 2 bars or more, and there is 1"),
        (lambda frame: frame.head(0), "a forecast needs 2 bars or more, and there are 0"),
        (lambda frame: frame.assign(close=frame["close"].where(frame.index != 3)), "bars:4: close: has no value"),
        (lambda frame: frame.assign(high=1.0), "bars:1: high: is below the low, open or close of its bar"),
        (lambda frame: frame.assign(timestamps="2024-01-02"), "bars:2: timestamps: is the same time as in line 1"),
        (lambda frame: frame.assign(timestamps="soon"), "bars:1: timestamps: no time that can be read"),
        (lambda frame: frame.assign(volume=-1.0), "bars:1: volume: must not be negative"),
        (lambda frame: frame.assign(**dict.fromkeys(["open", "high", "low", "close"], 5.0)), "closes are all 5"),
        (lambda frame: frame.assign(unique_id="../../x"), "unique_id '../../x' is no symbol"),
        (lambda frame: frame.assign(unique_id=["A", "B"] * 30), "unique_id names 2 tickers; send the bars of one"),
        (lambda frame: frame.drop(columns="close"), "close"),
    ],
)
def test_bad_bars_are_the_callers_mistake_and_every_one_is_named(
    served: PyFuncModel, damage: Callable[[pd.DataFrame], pd.DataFrame], message: str
) -> None:
    with pytest.raises(MlflowException) as caught:
        served.predict(damage(as_request(BARS.frame)))
    assert message in str(caught.value)
    assert caught.value.get_http_status_code() == 400  # type: ignore[no-untyped-call]  # MLflow does not annotate it


def test_a_forecast_is_recorded_in_the_ledger_only_if_the_server_is_told_so(
    served: PyFuncModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.predict(as_request(BARS.frame))
    monkeypatch.setenv("KRONOS_LEDGER", str(tmp_path))
    forecast = pd.DataFrame(served.predict(as_request(BARS.frame)))
    found = ledger.read(ArtifactLayout(tmp_path))
    assert found.notes == ()
    assert found.rows["mean"].tolist() == pytest.approx(forecast["mean"].tolist())
    assert found.rows["last"].iloc[0] == BARS.frame["close"].iloc[-1]
    assert found.rows["replay"].all()  # the times of the simulated bars have passed


def test_a_model_of_several_tickers_asks_whose_bars_they_are(
    register: Callable[[Path, str], Path], recipe: Recipe, output: Path
) -> None:
    folder = made_checkpoint(output / "checkpoint", recipe, ["AAPL", "MSFT"])
    model = mlflow.pyfunc.load_model(str(register(folder, registered_name("SEVERAL"))))
    with pytest.raises(MlflowException, match=r"name the ticker of the bars in unique_id; .* trained on AAPL, MSFT"):
        model.predict(BARS.frame)
    forecasts = [model.predict(BARS.frame.assign(unique_id=ticker)) for ticker in ("AAPL", "MSFT", "AAPL")]
    pd.testing.assert_frame_equal(forecasts[0], forecasts[2])
    assert not forecasts[0].equals(forecasts[1]), "each ticker's paths are drawn with a seed of its own"


def test_a_base_model_that_is_gone_or_another_is_told_before_anything_is_served(
    register: Callable[[Path, str], Path], tmp_path: Path
) -> None:
    base = save_tiny_base(tmp_path / "base")
    place = register(made_adapter(tmp_path / "adapter", small_recipe(base)), registered_name("GONE"))
    base.rename(tmp_path / "moved")
    with pytest.raises(Exception, match="The base model that this model was trained on is not to be had"):
        mlflow.pyfunc.load_model(str(place))
    save_tiny_base(tmp_path / "base", seed=7)
    with pytest.raises(Exception, match="was trained on another base model"):
        mlflow.pyfunc.load_model(str(place))


@contextmanager
def serving(model_uri: str, store: str, folder: Path) -> Iterator[str]:
    """Run `mlflow models serve` in a folder, yield its address once it answers, and end it with its children."""
    with closing(socket.socket()) as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    binaries = Path(sys.executable).parent
    environment = {**os.environ, "MLFLOW_TRACKING_URI": store, "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}"}
    command = [str(binaries / "mlflow"), "models", "serve", "-m", model_uri, "--env-manager", "local"]
    log = folder / "log"
    with log.open("w") as lines:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            cwd=folder,
            env=environment,
            stdout=lines,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not answers(f"http://127.0.0.1:{port}/ping"):
            assert time.monotonic() < deadline, log.read_text()
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.1)
                pytest.fail(log.read_text())
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def post(url: str, body: Any) -> tuple[int, Any]:
    request = urllib.request.Request(
        f"{url}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_the_champion_is_served_over_http(
    register: Callable[[Path, str], Path],
    tracker: Tracker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The server runs in another folder than the folder to which the base model's name is relative."""
    monkeypatch.chdir(tmp_path)
    save_tiny_base(tmp_path / "base")
    recipe = small_recipe(Path("base"))
    adapter = with_sampling(made_adapter(tmp_path / "adapter", recipe), recipe)
    register(adapter, registered_name("^HTTP=X.B"))
    (tmp_path / "elsewhere").mkdir()
    with serving("models:/kronos-^HTTP=X.B@champion", tracker.uri, tmp_path / "elsewhere") as url:
        rows = as_request(BARS.frame)
        status, body = post(url, {"dataframe_split": rows.to_dict("split", index=False)})
        assert status == 200, body
        forecast = pd.DataFrame(body["predictions"])
        expected = direct_forecast(adapter, BARS, recipe)
        assert list(forecast) == ["ds", *FORECAST]
        assert list(pd.to_datetime(forecast["ds"])) == list(expected["ds"])
        pd.testing.assert_frame_equal(forecast[[*FORECAST]], expected[[*FORECAST]], check_dtype=False, rtol=1e-9)

        status, body = post(url, {"dataframe_records": rows.assign(low=1e9).head(5).to_dict("records")})
        assert status == 400
        assert "low: is above the open or close of its bar in 5 lines, first in 1, 2, 3" in body["message"]
        assert post(url, {"dataframe_records": rows.head(1).to_dict("records")})[0] == 400
        assert post(url, {"dataframe_records": rows.to_dict("records")})[0] == 200, "a bad request harms no later one"
