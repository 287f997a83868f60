"""Take the screenshots docs/images/ui-*.png in a browser, and check that each page shows what docs/ui.md says of it.

The script makes a store in a temporary folder: a checkpoint, adapters, holdout metrics, a backtest, a champion, and a
run that fails because of a bad CSV. It starts Dagster and MLflow on free ports of this machine, launches runs through
the UI's own interface, and ends both servers. It copies the README's picture from the plots of `make demo`.

    make screenshots                          needs Chromium, on the path or named by the variable CHROMIUM
    python docs/screenshots.py --store DIR    keeps the store in DIR, or takes the store that an earlier call kept there
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

if TYPE_CHECKING:
    from playwright.sync_api import Page

T = TypeVar("T")
ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
DEMO_PLOT = ROOT / "artifacts-demo" / "plots" / "META.png"
LARGEST_BYTES = 200_000
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_WIDTH, _HEIGHT = 1400, 900
_COLOURS = 256
_SAME_PICTURES, _SECONDS_TO_SETTLE = 5, 15
_SECONDS_TO_START, _SECONDS_TO_RUN, _SECONDS_TO_SHOW, _SECONDS_TO_END = 180, 900, 60, 30
_LOCATION = {"repositoryName": "__repository__", "repositoryLocationName": "kronos_pipeline.definitions"}
_GOOD, _BAD = ("AAPL", "META", "NVDA"), "XOM"
_SETTINGS = {"epochs": 1, "stride": 16, "eval_samples": 32, "backtest_origins": 8, "backtest_refit_every": 4}
_LAUNCH = """mutation Launch($run: ExecutionParams!) { launchRun(executionParams: $run) {
    __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""
_STATUS = "query Status($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }"
# MLflow opens a panel for chats over every page of a new browser.
_NO_ASSISTANT = """localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true");
    localStorage.setItem("mlflow.assistant.panelOpen_v1", "false");"""


# MLflow opens its pages for chatbots unless an address asks for those of training.
_MODE = "?workflowType=machine_learning"


class ScreenshotError(Exception):
    """A tool is missing, a run ended otherwise than it should, or a page does not show what it should."""


class Store(NamedTuple):
    """The addresses of both UIs, a failed run, and the champion's version with the experiment of its training."""

    dagster: str
    mlflow: str
    failed_run: str
    version: str
    experiment: str


class Picture(NamedTuple):
    """A page of a UI: the image's name, the address, the texts that must be visible, and clicks before the picture."""

    name: str
    url: str
    texts: tuple[str, ...]
    act: Callable[[Page], None] | None = None


def pictures(store: Store) -> list[Picture]:
    """Return the pages of the screenshots."""
    assets, model = f"{store.dagster}/assets", f"{store.mlflow}/#/models/kronos-NVDA"
    groups = ",".join(f"global@global:{group}" for group in ("data", "training", "evaluation", "serving"))
    return [
        Picture(
            "graph",
            f"{store.dagster}/asset-groups?expanded={groups}",
            ("raw_bars", "windows", "adapter", "checkpoint", "holdout_metrics", "leaderboard"),
        ),
        Picture(
            "adapter",
            f"{assets}/adapter?view=partitions&partition=META",
            ("META", "Materialized", "summary", "selection loss", "kronos-nano (embedded demo model)"),
        ),
        Picture(
            "holdout",
            f"{assets}/holdout_metrics?view=partitions&partition=NVDA",
            ("NVDA", "Materialized", "summary", "Holdout: MAE of the adapter"),
        ),
        Picture(
            "holdout-plot",
            f"{assets}/holdout_metrics?view=partitions&partition=NVDA",
            ("Close",),
            _open_plot,
        ),
        Picture(
            "checks",
            f"{assets}/holdout_metrics?view=checks",
            ("better_mean", "better_distribution", "complete", "Skipped"),
        ),
        Picture(
            "failed-run",
            f"{store.dagster}/runs/{store.failed_run}",
            ("Failure", f"{_BAD}.csv:42", "must be above 0"),
        ),
        Picture(
            "leaderboard",
            f"{assets}/leaderboard?view=events",
            ("QLIKE", "seasonal_naive", "adapter"),
            _scroll_to_ranking,
        ),
        Picture("runs", f"{store.dagster}/runs", ("retrain_adapter", "promote_adapter", "Success", "Failure")),
        Picture(
            "mlflow-runs",
            f"{store.mlflow}/#/experiments/{store.experiment}/runs{_MODE}",
            ("NVDA", "META", "checkpoint"),
        ),
        Picture("mlflow-model", f"{model}{_MODE}", ("kronos-NVDA", f"Version {store.version}", "champion")),
        Picture("mlflow-version", f"{model}/versions/{store.version}{_MODE}", (f"Version {store.version}", "champion")),
    ]


def _open_plot(page: Page) -> None:
    page.get_by_role("row").filter(has_text="forecasts").get_by_text("[Show Markdown]").first.click()


def _scroll_to_ranking(page: Page) -> None:
    page.get_by_text("QLIKE").first.evaluate("header => header.scrollIntoView({block: 'center'})")


def main() -> int:
    """Make the store, take the pictures, and return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--store", metavar="DIR", help="folder that keeps the store; by default a temporary folder")
    options = parser.parse_args()
    try:
        chromium = find_chromium()
        with ExitStack() as ends:
            folder = options.store or ends.enter_context(tempfile.TemporaryDirectory(prefix="kronos-screenshots-"))
            store = ends.enter_context(serving(Path(folder).resolve()))
            take_pictures(chromium, pictures(store))
        if DEMO_PLOT.exists():
            save_image(DEMO_PLOT.read_bytes(), IMAGES / "forecast.png")
        else:
            print(f"docs/images/forecast.png stays as it is: {DEMO_PLOT} is missing; make demo draws it.")
    except ScreenshotError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def find_chromium() -> str:
    """Return the path of the browser.

    Raises:
        ScreenshotError: the browser or playwright is missing.
    """
    try:
        import playwright  # noqa: F401
    except ImportError:
        raise ScreenshotError("playwright is missing; uv pip install -e '.[screenshots]' installs it.") from None
    named = os.environ.get("CHROMIUM")
    found = shutil.which(named) if named else next(filter(None, map(shutil.which, _BROWSERS)), None)
    if found is None:
        problem = f"CHROMIUM is {named!r}, which is no program" if named else "Chromium is not on the path"
        raise ScreenshotError(f"{problem}; install it, or set the variable CHROMIUM to its path.")
    return found


@contextmanager
def serving(folder: Path) -> Iterator[Store]:
    """Make a store in a folder that has none, and serve it by Dagster's and MLflow's UI until the block ends."""
    data, out, home, kept = folder / "data", folder / "artifacts", folder / "dagster", folder / "failed_run"
    if not kept.exists():
        home.mkdir(parents=True)
        _make_data(data)
        shutil.copy(ROOT / "kronos_pipeline" / "orchestration" / "dagster.yaml", home)
    dagster, mlflow = (f"http://127.0.0.1:{_free_port()}" for _ in range(2))
    environment = {
        **{
            name: value
            for name, value in os.environ.items()
            if name not in ("DAGSTER_MODULE_NAME", "MLFLOW_TRACKING_URI")
        },
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "DAGSTER_HOME": str(home),
        "KRONOS_DATA_DIR": str(data),
        "KRONOS_OUTPUT_DIR": str(out),
        "KRONOS_BASE_MODEL": "kronos-nano",
        "KRONOS_MLFLOW_UI": mlflow,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    with ExitStack() as servers:
        dev = ["-m", "dagster", "dev", "-m", "kronos_pipeline.definitions", "-h", "127.0.0.1", "-p", _port(dagster)]
        servers.enter_context(_server(dev, environment, folder / "dagster.log", f"{dagster}/server_info"))
        if not kept.exists():
            failed_run = _make_store(dagster)
            _kronos(environment, "promote", _GOOD[-1], "--reason", "for the screenshots")
            kept.write_text(failed_run)
        ui = ["-m", "mlflow", "ui", "--backend-store-uri", f"sqlite:///{out / 'mlflow.db'}", "--host", "127.0.0.1"]
        ui += ["--port", _port(mlflow), "--workers", "1"]
        servers.enter_context(_server(ui, environment, folder / "mlflow.log", f"{mlflow}/health"))
        yield Store(dagster, mlflow, kept.read_text(), *_champion(out / "mlflow.db"))


def _make_data(folder: Path) -> None:
    """Copy the simulated tickers, the last with a price below 0 in line 42."""
    folder.mkdir()
    for ticker in (*_GOOD, _BAD):
        shutil.copy(ROOT / "trainingdata" / ticker / f"{ticker}.csv", folder)
    path = folder / f"{_BAD}.csv"
    lines = path.read_text().splitlines()
    stamp, _, *rest = lines[41].split(",")
    lines[41] = ",".join((stamp, "-1", *rest))
    path.write_text("\n".join(lines) + "\n")


def _make_store(dagster: str) -> str:
    """Run jobs as the UI does: checkpoint, adapters with holdout metrics, backtest and gate; return the failed run."""
    good = {"dagster/asset_partition_range_start": _GOOD[0], "dagster/asset_partition_range_end": _GOOD[-1]}
    _run(dagster, "retrain_checkpoint", good, "SUCCESS")
    _run(dagster, "retrain_adapter", good, "SUCCESS")
    _run(dagster, "promote_adapter", {"dagster/partition": _GOOD[-1]}, "SUCCESS")
    return _run(dagster, "ingest", {"dagster/partition": _BAD}, "FAILURE")


def _run(dagster: str, job: str, tags: dict[str, str], expected: str) -> str:
    """Launch a job, wait for its end, and return the run's id.

    Raises:
        ScreenshotError: the run does not start, or does not end as expected.
    """
    print(f"{job} {' to '.join(tags.values())}", flush=True)
    run = {
        "selector": {**_LOCATION, "jobName": job},
        "runConfigData": {"resources": {"pipeline": {"config": _SETTINGS}}},
        "mode": "default",
        "executionMetadata": {"tags": [{"key": key, "value": value} for key, value in tags.items()]},
    }
    launched = _ask(dagster, _LAUNCH, run=run)["launchRun"]
    if launched["__typename"] != "LaunchRunSuccess":
        raise ScreenshotError(f"{job} did not start: {launched}")
    run_id = str(launched["run"]["runId"])

    def end() -> str | None:
        status = str(_ask(dagster, _STATUS, id=run_id)["runOrError"]["status"])
        return status if status in ("SUCCESS", "FAILURE", "CANCELED") else None

    status = _poll(end, _SECONDS_TO_RUN, f"the run of {job}")
    if status != expected:
        raise ScreenshotError(f"the run of {job} ended with {status}, and {expected} was expected.")
    return run_id


def _ask(dagster: str, query: str, **variables: Any) -> dict[str, Any]:
    body = json.dumps({"query": query, "variables": variables}).encode()
    request = urllib.request.Request(f"{dagster}/graphql", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=_SECONDS_TO_START) as answer:
        data: dict[str, Any] = json.load(answer)
    if "errors" in data:
        raise ScreenshotError(f"Dagster refuses a query: {data['errors'][0]['message']}")
    return dict(data["data"])


def _kronos(environment: dict[str, str], *arguments: str) -> None:
    command = [sys.executable, "-m", "kronos_pipeline.cli", *arguments]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise ScreenshotError(f"kronos {' '.join(arguments)} failed: {ended.stderr.strip()}")


def _champion(database: Path) -> tuple[str, str]:
    """Return the champion's version, and the experiment of its training."""
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{database}")
    version = client.get_model_version_by_alias(f"kronos-{_GOOD[-1]}", "champion")
    return str(version.version), str(client.get_run(str(version.run_id)).info.experiment_id)


@contextmanager
def _server(arguments: list[str], environment: dict[str, str], log: Path, url: str) -> Iterator[None]:
    """Start a server, wait until it answers, and end it with all its processes after the block."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:

            def answers() -> bool | None:
                if process.poll() is not None:
                    raise ScreenshotError(f"{arguments[1]} ended at its start: {log.read_text()[-500:]}")
                try:
                    with urllib.request.urlopen(url, timeout=5):
                        return True
                except (urllib.error.URLError, OSError):
                    return None

            _poll(answers, _SECONDS_TO_START, f"the start of {arguments[1]}")
            yield
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the processes of a server's session: by an interrupt, as Ctrl-C sends it, and those that remain by force."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(_SECONDS_TO_END)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def _poll(attempt: Callable[[], T | None], seconds: float, what: str) -> T:
    """Call `attempt` until it returns a result, and return the result.

    Raises:
        ScreenshotError: there is none in time.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        result = attempt()
        if result is not None:
            return result
        time.sleep(0.5)
    raise ScreenshotError(f"{what} took more than {seconds:g} s.")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _port(address: str) -> str:
    return address.rsplit(":", 1)[1]


def take_pictures(chromium: str, pages: list[Picture]) -> None:
    """Open each page, check its texts, and save its picture.

    Raises:
        ScreenshotError: a page does not show a text that it should, or a picture is too large.
    """
    from playwright.sync_api import Error, sync_playwright

    with sync_playwright() as tools:
        # Chromium's sandbox does not work for root, as in a container.
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = tools.chromium.launch(executable_path=chromium, args=["--disable-gpu", *sandbox])
        context = browser.new_context(viewport={"width": _WIDTH, "height": _HEIGHT}, color_scheme="light")
        context.set_default_timeout(1000 * _SECONDS_TO_SHOW)
        context.add_init_script(_NO_ASSISTANT)
        for picture in pages:
            page = context.new_page()
            text = ""
            try:
                page.goto(picture.url)
                for text in picture.texts if picture.act is None else ():
                    _visible(page, text)
                if picture.act:
                    text = "its plot or table"
                    picture.act(page)
                    for text in picture.texts:
                        _visible(page, text)
            except Error:
                raise ScreenshotError(f"the page {picture.name} does not show {text!r}: {picture.url}") from None
            save_image(_settled(page), IMAGES / f"ui-{picture.name}.png")
            page.close()
        browser.close()


def _visible(page: Page, text: str) -> None:
    page.get_by_text(text).filter(visible=True).first.wait_for()


def _settled(page: Page) -> bytes:
    """Return the page's picture when it stays the same: states arrive, and menus and graphs move into place.

    A page with a clock never stays the same; its picture is the last of `_SECONDS_TO_SETTLE`.
    """
    last = [b""] * _SAME_PICTURES
    end = time.monotonic() + _SECONDS_TO_SETTLE
    while len(set(last)) > 1 or not last[0]:
        last = [*last[1:], page.screenshot()]
        if time.monotonic() > end:
            break
        page.wait_for_timeout(500)
    return last[-1]


def save_image(png: bytes, path: Path) -> None:
    """Save a picture with few colours, which takes a third of the bytes.

    Raises:
        ScreenshotError: it takes more than a page of the documents should load.
    """
    from PIL import Image

    with Image.open(io.BytesIO(png)) as picture:
        small = picture.convert("RGB").quantize(_COLOURS, Image.Quantize.FASTOCTREE)
    encoded = io.BytesIO()
    small.save(encoded, "PNG", optimize=True)
    if len(encoded.getvalue()) > LARGEST_BYTES:
        raise ScreenshotError(f"{path.name} has {len(encoded.getvalue()):,} bytes, above {LARGEST_BYTES:,}.")
    path.write_bytes(encoded.getvalue())
    print(f"{path.relative_to(ROOT)} {len(encoded.getvalue()):,} bytes", flush=True)


if __name__ == "__main__":
    sys.exit(main())
