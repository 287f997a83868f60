"""The first page of `kronos`, its version, misspelt commands, and the flags in `--help`."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable

import pytest

from kronos_pipeline import __version__, cli
from kronos_pipeline.cli.app import main
from kronos_pipeline.cli.overview import SUBCOMMANDS
from kronos_pipeline.run_training import main as run_training


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_the_first_page_names_every_command_in_eighty_columns(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert main(arguments) == 0
    page = capsys.readouterr().out
    assert [name for name in re.findall(r"^  ([a-z-]+) ", page, re.M) if name in SUBCOMMANDS] == list(SUBCOMMANDS)
    assert max(map(len, page.splitlines())) <= 81
    assert "$ kronos train" in page


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert re.fullmatch(rf"kronos {re.escape(__version__)} \(code [0-9a-f]{{12}}\)\n", capsys.readouterr().out)


def test_a_misspelt_command_gets_the_nearest_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["forcast", "AAPL"]) == 2
    assert re.fullmatch(
        r"error: 'forcast' is no command: did you mean `\S*kronos forecast`\?\n", capsys.readouterr().err
    )
    assert main(["xyz"]) == 2
    assert "doctor" in capsys.readouterr().err


def test_the_help_of_a_training_starts_with_the_flags_that_are_used_most(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run_training(["--help"]) == 0
    text = capsys.readouterr().out
    sections = re.findall(r"^([a-zA-Z ]+):$", text, re.M)
    assert sections[:4] == ["most used", "reading of CSVs", "windows and holdout", "training"]
    assert text.index("--data-dir") < text.index("--epochs") < text.index("--drop-bad-rows") < text.index("--gate")
    assert max(map(len, text.splitlines())) <= 80


def test_the_doctor_shows_the_flags_that_matter_to_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--help"]) == 0
    text = capsys.readouterr().out
    assert "--drop-bad-rows" in text
    assert "--validation-days" in text
    assert not {"--adapter-r", "--gate", "--weight-decay", "--save-steps"} & set(text.split())


def test_the_help_shows_the_default_that_the_environment_sets(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KRONOS_BASE_MODEL", "kronos-nano")
    assert main(["train", "--help"]) == 0
    assert "(default: kronos-nano, from KRONOS_BASE_MODEL)" in " ".join(capsys.readouterr().out.split())
    monkeypatch.delenv("KRONOS_BASE_MODEL")
    assert main(["train", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "[environment: KRONOS_BASE_MODEL] (default: NeoQuasar/Kronos-small)" in text


@pytest.mark.parametrize("entry", [cli.main, run_training], ids=["kronos", "run_training"])
def test_an_interrupt_while_packages_load_ends_without_a_traceback(
    entry: Callable[[list[str]], int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    # A shell that starts the tests in the background lets them ignore SIGINT, and what is ignored stays ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))

    def interrupted(_module: str) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("importlib.import_module", interrupted)
    assert entry(["doctor"]) == 130
    assert capsys.readouterr().err.startswith("interrupted: ")
