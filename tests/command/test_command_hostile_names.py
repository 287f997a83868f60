"""Names from outside: a name that could leave its folder or steer a terminal ends a command with one plain line.

Every option and argument of every command that takes a text has its kind in the table below, and is tried with hostile
texts of that kind. A new option or command that is not in the table fails a test.
"""

from __future__ import annotations

import os
import re
import sqlite3
import typing
from contextlib import closing
from importlib import import_module
from pathlib import Path

import pytest
from hostile_texts import TEXTS_OF_SETTINGS, takes_text
from market_files import daily_frame, write_frame
from pydantic_settings import CliPositionalArg

from kronos_pipeline.artifacts import ArtifactLayout, write_json
from kronos_pipeline.cli import main
from kronos_pipeline.cli.command import Command
from kronos_pipeline.cli.overview import SUBCOMMANDS
from kronos_pipeline.cli.train import RunTraining
from kronos_pipeline.config import environment_settings, environment_variable
from kronos_pipeline.run_training import main as run_training
from kronos_pipeline.tracking.store import find_store_uri
from kronos_pipeline.tracking.version_store import VersionStore

pytestmark = pytest.mark.slow

NAMES = {"adapter", "adapter_name", "names", "ticker", "tickers"}
"""Options that take symbols or names of adapters: they become names of files, partitions and registered models."""
TEXTS = {**TEXTS_OF_SETTINGS, "output": "{}", "reason": "{}"}
"""Options that take a folder, the name of a model or a sentence, each with the place of a free text in it."""

MARKS = ["a\0b", "a\nb", "\x1b[31mred", "\x1b]0;title\x07", "\u202eLPAA", "A\u200fB", "A\x85B", "A\u2028B", "\udcff"]
"""Texts that break lines, steer a terminal, or look like another text."""
PATHS = [
    "..",
    "../x",
    "/etc/passwd",
    "a/b",
    "a\\b",
    ".hidden",
    "-dash",
    "%2e%2e",
    "",
    " ",
    "A B",
    "\u0391APL",
    "A" * 300,
]
"""Names that could leave a folder, hide in it, pass as an option, or look like another name."""


def commands() -> dict[str, type[Command]]:
    """Return the class of every command by its name; that of the plain command has none."""
    of_kronos = {
        name: getattr(import_module(f"kronos_pipeline.cli.{module}"), class_name)
        for name, (module, class_name, _) in SUBCOMMANDS.items()
    }
    return {**of_kronos, "": RunTraining}


ENTRIES = [
    (name, field)
    for name, command in commands().items()
    for field, info in command.model_fields.items()
    if takes_text(info.annotation)
]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to a folder that has a CSV of ten bars in its folder `data`, and nothing else."""
    folder = tmp_path / "work"
    write_frame(folder / "data", "AAPL", daily_frame(10))
    monkeypatch.chdir(folder)
    for variable in ("MLFLOW_TRACKING_URI", "KRONOS_DATA_DIR", "KRONOS_OUTPUT_DIR", "DAGSTER_HOME"):
        monkeypatch.delenv(variable, raising=False)
    return folder


def files(folder: Path) -> list[Path]:
    return sorted(folder.parent.rglob("*"))


def words_of(name: str, field: str, text: str) -> list[str]:
    """Return a command line that gives a text to an option or an argument."""
    fields = commands()[name].model_fields
    words = [name] if name else []
    if "adapter" in fields and field == "adapter_name":
        words.append("--adapter=lora")
    positional = typing.get_args(CliPositionalArg[str])[1]
    if positional in fields[field].metadata:
        return [*words, *(["--"] if text.startswith("-") else []), text]
    words.append(f"--{'from' if field == 'from_date' else field.replace('_', '-')}={text}")
    return [*words, *["AAPL" for info in fields.values() if info.is_required()]]


def refusal(capsys: pytest.CaptureFixture[str], words: list[str]) -> str:
    """Run a command that must fail at once, and return its only line."""
    entry = main if words[0] in SUBCOMMANDS else run_training
    assert entry(words) == 2, words
    said = capsys.readouterr()
    assert said.out == "", words
    [line] = said.err.splitlines()
    assert line.startswith("error: "), words
    assert line.isprintable(), words
    return line


def test_each_option_that_takes_a_text_has_a_kind() -> None:
    assert {field for _, field in ENTRIES} == NAMES | TEXTS.keys()


@pytest.mark.parametrize(("name", "field"), [entry for entry in ENTRIES if entry[1] in NAMES])
def test_a_name_that_could_leave_its_folder_is_refused(
    name: str, field: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(folder)
    for text in (*PATHS, *MARKS):
        if field == "adapter_name" and text == "":
            continue
        line = refusal(capsys, words_of(name, field, text))
        assert "letters, digits and .-_^= only, without a leading dot or dash" in line or text in ("", *MARKS), line
        assert repr(text)[1:-1] in line, line
    assert files(folder) == before


@pytest.mark.parametrize(("name", "field"), [entry for entry in ENTRIES if entry[1] in TEXTS])
def test_a_text_that_steers_a_terminal_is_refused(
    name: str, field: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(folder)
    for mark in MARKS:
        line = refusal(capsys, words_of(name, field, TEXTS[field].format(mark)))
        assert repr(mark)[1:-1] in line, line
    assert files(folder) == before


@pytest.mark.parametrize("field", sorted(TEXTS.keys() & {"data_dir", "output_dir", "model_name", "device", "columns"}))
def test_variables_of_the_environment_are_checked_as_flags_are(
    field: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(environment_variable(field), TEXTS[field].format("\x1b[31mred"))
    assert environment_settings().keys() >= {field}
    assert r"\x1b[31mred" in refusal(capsys, ["doctor"])


@pytest.mark.parametrize("name", ["status", "report", "doctor", "clean"])
def test_a_folder_whose_name_is_too_long_is_an_error_in_a_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    option = "--data-dir" if name == "doctor" else "--output-dir"
    assert "File name too long" in refusal(capsys, [name, f"{option}={'A' * 300}"])


def test_files_and_cells_with_hostile_names_are_refused_by_name(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bars = (folder / "data" / "AAPL.csv").read_text()
    for mark in ("\x1b[31mred", "a\nb", "\u202eLPAA", "..", "%2e%2e", "\u0391APL", "A" * 80):
        (folder / "data" / f"{mark}.csv").write_text(bars)
    (folder / "data" / "x\x1b[2J").mkdir()
    (folder / "data" / "x\x1b[2J" / "AAPL.csv").write_text(bars)
    (folder / "data" / os.fsdecode(b"\xff.csv")).write_text(bars)
    header, *rows = bars.splitlines()
    symbols = ("../../x", "\x1b[31mred", "\u202eLPAA", ".hidden", "-dash", "a/b/c", "B" * 80)
    cells = [f"{symbol},{row}" for symbol in symbols for row in rows]
    (folder / "data" / "several.csv").write_text("\n".join([f"symbol,{header}", *cells, ""]))
    before = {path for path in files(folder) if "out" not in path.parts}
    assert main(["doctor", "--data-dir", "data", "--output-dir", "out"]) == 2
    assert main(["train", "--data-dir", "data", "--output-dir", "out", "--model-name", "kronos-nano"]) == 2
    assert main(["status", "--data-dir", "data", "--output-dir", "out"]) == 0
    said = capsys.readouterr()
    assert all(line.isprintable() for line in re.sub(r"\x1b\[[\d;]*m", "", said.out + said.err).splitlines())
    assert r"\x1b[31mred" in said.out
    assert r"\x1b[31mred" in said.err
    assert {path for path in files(folder) if "out" not in path.parts} == before


def test_hostile_names_in_artifacts_and_in_the_registry_reach_no_path_and_no_terminal(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layout = ArtifactLayout(folder / "out")
    names = ("..", "\x1b[31mred", "it's", "a\nb")
    for name in names:
        (layout.root / "bars").mkdir(parents=True, exist_ok=True)
        (layout.root / "bars" / f"{name}.parquet").write_bytes(b"")
    skipped = [{"symbol": name, "reason": f"because of {name}"} for name in ("../x", *names)]
    evaluation = {"model": "adapter", "per_symbol": [], "skipped": skipped, "manifest": {"config": {}}}
    write_json(layout.evaluation, evaluation)
    uri = find_store_uri(None, layout.root)
    store = VersionStore(uri)
    store.set_tag("kronos-AAPL", "tried", "yes")
    with closing(sqlite3.connect(layout.mlflow_database)) as database, database:
        database.executemany("INSERT INTO registered_models (name) VALUES (?)", [(f"kronos-{name}",) for name in names])
    before = {path for path in files(folder) if "out" not in path.parts}
    assert main(["status", "--data-dir", "data", "--output-dir", "out"]) == 0
    assert main(["clean", "--data-dir", "data", "--output-dir", "out", "--days", "1"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert all(line.isprintable() for line in said.out.splitlines())
    assert r"\x1b[31mred" in said.out
    assert store.names() == ["kronos-AAPL"]
    assert {path for path in files(folder) if "out" not in path.parts} == before
    assert {path.stem for path in layout.bars("X").parent.iterdir()} == set(names)
