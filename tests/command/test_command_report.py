"""`kronos report`: the tables, the reasons of the verdicts and the pictures, from stored artifacts."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_evaluations import manifest_of, predictions_of, windows_of

from kronos_pipeline.artifacts import ArtifactLayout
from kronos_pipeline.cli.app import main
from kronos_pipeline.evaluation.scoring.report import save_evaluation, save_ticker_evaluation

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The evaluation of two tickers, with a picture of one."""
    layout = ArtifactLayout(tmp_path_factory.mktemp("report") / "out")
    windows = [windows_of("AAPL"), windows_of("MSFT")]
    save_evaluation(layout, predictions_of(windows), "adapter", [], manifest_of(windows))
    save_ticker_evaluation(layout, predictions_of(windows[:1]), "adapter", manifest_of(windows[:1]))
    layout.plot("AAPL").parent.mkdir()
    layout.plot("AAPL").touch()
    return layout.root


def test_the_report_has_every_table_and_the_reasons(capsys: pytest.CaptureFixture[str], output: Path) -> None:
    assert main(["report", "--output-dir", str(output)]) == 0
    text = capsys.readouterr().out
    for part in ("Holdout: adapter on base model", "mean over 2 symbols", "is the adapter worth using?", "QLIKE"):
        assert part in text
    assert (
        "mean against naive, drift, seasonal_naive, base: too little evidence, 3 cutoffs, and a verdict needs 8" in text
    )


def test_a_ticker_is_shown_in_full_with_its_pictures(capsys: pytest.CaptureFixture[str], output: Path) -> None:
    assert main(["report", "aapl", "--output-dir", str(output)]) == 0
    text = capsys.readouterr().out
    assert "verdicts on the adapter, AAPL" in text
    assert "MSFT" not in text
    assert str(output / "plots/AAPL.png") in text
    assert "no version of AAPL is registered" in text


def test_nothing_to_report_is_told(capsys: pytest.CaptureFixture[str], tmp_path: Path, output: Path) -> None:
    assert main(["report", "--output-dir", str(tmp_path / "none")]) == 2
    assert "There is no evaluation in" in capsys.readouterr().err
    assert main(["report", "XYZ", "--output-dir", str(output)]) == 2
    assert "XYZ has no evaluation" in capsys.readouterr().err
