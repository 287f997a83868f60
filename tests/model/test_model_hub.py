"""Published models: from the cache without a network, else downloaded at their commit, else an error within seconds.

The Hub library reads its settings at import, so each test case runs in a process of its own, against a server on this
machine that answers like the Hub.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from kronos_pipeline.model.weights import weights_hash

pytestmark = pytest.mark.slow

PREDICTOR = f"someone/model@{'1' * 40}"
TOKENIZER = f"someone/tokenizer@{'2' * 40}"
UNKNOWN = f"someone/nothing@{'3' * 40}"
BROKEN = f"someone/broken@{'4' * 40}"
SCENE = """
import json, sys, time
import torch
from kronos_pipeline.base_models import find_base_model
from kronos_pipeline.errors import KronosError
from kronos_pipeline.model.loading import load_base
for names in json.loads(sys.argv[1]):
    start = time.monotonic()
    try:
        model = load_base(find_base_model(*names), torch.device("cpu"))
        said = {"hash": model.weights_hash, "name": model.source.name}
    except KronosError as error:
        said = {"error": str(error)}
    print("\\nSAID" + json.dumps({**said, "seconds": time.monotonic() - start}))
"""


class Hub(ThreadingHTTPServer):
    """Server with the tiny base model's files as two repositories, each at one commit."""

    def __init__(self, tiny_base: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = {
            f"/{name.replace('@', '/resolve/')}/{file}": (tiny_base / part / file, name.split("@")[1])
            for name, part in ((PREDICTOR, "predictor"), (TOKENIZER, "tokenizer"))
            for file in ("config.json", "model.safetensors")
        }


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self._answer(with_content=False)

    def do_GET(self) -> None:
        self._answer(with_content=True)

    def _answer(self, with_content: bool) -> None:
        if self.path not in self.server.files:
            broken = self.path.startswith(f"/{BROKEN.split('@')[0]}/")
            self.send_response(503 if broken else 404)
            if not broken:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        file, commit = self.server.files[self.path]
        content = file.read_bytes()
        self.send_response(200)
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{file.stat().st_size}-{file.parent.name}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if with_content:
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Log nothing."""


def play(cache: Path, names: list[list[str]], **environment: str) -> list[dict[str, Any]]:
    """Load base models by name in a new process; return the result or the error of each."""
    inherited = {name: value for name, value in os.environ.items() if not name.upper().endswith("_PROXY")}
    inherited = {name: value for name, value in inherited.items() if not name.startswith("HF_")}
    ran = subprocess.run(
        [sys.executable, "-c", SCENE, json.dumps(names)],
        env={**inherited, "HF_HOME": str(cache), "OMP_NUM_THREADS": "1", **environment},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [json.loads(line.removeprefix("SAID")) for line in ran.stdout.splitlines() if line.startswith("SAID")]


@dataclass(frozen=True)
class Fetched:
    """Return the results of three models while the server ran, and the cache after it."""

    cache: Path
    known: dict[str, Any]
    unknown: dict[str, Any]
    broken: dict[str, Any]


@pytest.fixture(scope="module")
def fetched(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Fetched:
    cache = tmp_path_factory.mktemp("hub_cache")
    server = Hub(tiny_base)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        names = [[PREDICTOR, TOKENIZER], [UNKNOWN, TOKENIZER], [BROKEN, TOKENIZER]]
        return Fetched(cache, *play(cache, names, HF_ENDPOINT=f"http://127.0.0.1:{server.server_port}"))
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_model_is_fetched_at_its_commit(fetched: Fetched, tiny_base: Path) -> None:
    assert fetched.known["hash"] == weights_hash(tiny_base / "predictor", tiny_base / "tokenizer")
    assert fetched.known["name"] == PREDICTOR


def test_a_model_that_does_not_exist_is_named(fetched: Fetched) -> None:
    assert "has no config.json in someone/nothing at commit 333" in fetched.unknown["error"]
    assert "kronos-nano needs no Hub" in fetched.unknown["error"]


def test_a_server_that_fails_is_not_asked_for_minutes(fetched: Fetched) -> None:
    assert "503" in fetched.broken["error"]
    assert "--model-name kronos-nano" in fetched.broken["error"]
    assert fetched.broken["seconds"] < 60


@pytest.mark.parametrize(
    ("environment", "reason"),
    [({"HF_ENDPOINT": "http://127.0.0.1:9"}, "Connection refused"), ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set")],
    ids=["no network", "HF_HUB_OFFLINE"],
)
def test_offline_the_cache_serves_and_what_is_not_in_it_says_at_once_what_helps(
    fetched: Fetched, environment: dict[str, str], reason: str
) -> None:
    cached, absent = play(fetched.cache, [[PREDICTOR, TOKENIZER], ["NeoQuasar/Kronos-small"]], **environment)
    assert cached["hash"] == fetched.known["hash"]
    assert absent["seconds"] < 60
    assert f"{reason})" in absent["error"]
    assert "NeoQuasar/Kronos-small is not in this machine's cache" in absent["error"]
    assert "--model-name with a local folder" in absent["error"]
    assert (
        "`hf download NeoQuasar/Kronos-small config.json model.safetensors --revision "
        "901c26c1332695a2a8f243eb2f37243a37bea320 && hf download NeoQuasar/Kronos-Tokenizer-base config.json "
        "model.safetensors --revision 0e0117387f39004a9016484a186a908917e22426`"
    ) in absent["error"]
    assert "--model-name kronos-nano" in absent["error"]
