"""Progress of waits: bars on a terminal, sparse lines elsewhere, and nothing left behind."""

from __future__ import annotations

import io

import pytest

from kronos_pipeline.evaluation.forecasting.forecast_progress import ForecastProgress
from kronos_pipeline.training import progress
from kronos_pipeline.training.progress import Progress, TrainingProgress, say_nothing, status, step, without_lines


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def attach_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Make stderr a terminal; in the test itself, as pytest sets stderr anew after the fixtures."""
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    return screen


def test_without_a_terminal_a_long_work_gives_lines_with_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(progress, "_LINE_SECONDS", 0.0)
    with Progress("backtest", 4, say=lines.append) as shown:
        shown.update(1, "1/4 trainings", left=75)
    assert lines == ["backtest: 1/4 trainings  75 s left"]


def test_without_a_terminal_a_short_work_gives_no_line_and_a_training_its_last() -> None:
    lines: list[str] = []
    with Progress("backtest", 4, say=lines.append) as shown:
        shown.update(4, "4/4 trainings")
    with TrainingProgress("adapters/AAPL", 2, say=lines.append) as training:
        for number in (1, 2):
            training.update_step(number, loss=1.5, learning_rate=1e-4, windows_per_second=20)
    assert lines == ["adapters/AAPL: step 2/2  loss 1.5000  lr 1.00e-04  20 windows/s  0 s left"]


def test_an_evaluation_counts_tickers_and_sampled_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(progress, "_LINE_SECONDS", 0.0)
    with ForecastProgress("backtest", 2, lines.append, unit="forecasts") as shown:
        shown.expect(100)
        shown.expect(100)
        with shown.sampling(200):
            shown.advance(50)
        shown.advance(150)
        shown.end_ticker()
        shown.end_ticker()
    assert lines[0].startswith("backtest: 0/2 forecasts, 25 % of the paths  ")
    assert [line.partition("  ")[0] for line in lines[-2:]] == ["backtest: 1/2 forecasts", "backtest: 2/2 forecasts"]
    assert lines[-1].endswith(" 0 s left")


def test_a_terminal_shows_the_step_of_a_command_and_the_bar_of_its_work(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = attach_terminal(monkeypatch)
    with status():
        step("loading PyTorch")
        with Progress("evaluation", 4) as shown:
            shown.update(1, "1/4 tickers", left=30)
            bars = progress._display._bars
            assert bars is not None
            bars.refresh()
    text = terminal.getvalue()
    assert all(part in text for part in ("loading PyTorch", "evaluation", "1/4 tickers", "30 s left"))
    assert progress._display._bars is None  # nothing is left on the terminal


def test_lines_reach_a_pipe_while_a_terminal_shows_a_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = attach_terminal(monkeypatch)
    with Progress("evaluation", 4):
        print("AAPL: a result")
    assert capsys.readouterr().out == "AAPL: a result\n"
    assert "AAPL" not in terminal.getvalue()


@pytest.mark.parametrize(("say", "shown"), [(print, True), (say_nothing, True), (lambda _: None, False)])
def test_work_that_reports_to_a_log_shows_no_bar(
    monkeypatch: pytest.MonkeyPatch, say: progress.Say, shown: bool
) -> None:
    terminal = attach_terminal(monkeypatch)
    with Progress("evaluation", 4, say=without_lines(say)):
        pass
    assert ("evaluation" in terminal.getvalue()) is shown


def test_a_step_without_a_command_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = attach_terminal(monkeypatch)
    step("loading PyTorch")
    assert terminal.getvalue() == ""
