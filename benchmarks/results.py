"""Run the whole evaluation of the embedded demo model, on five real stocks and on the simulated tickers.

    python benchmarks/results.py                     # writes the figures of docs/results.md
    python benchmarks/results.py --only simulated    # prints the figures of one set

`kronos train` trains and backtests each set twice: a checkpoint over all tickers, and an adapter per ticker. The stocks
are from bokeh-sampledata: AAPL, FB, GOOG, IBM and MSFT, daily, 2000 to 2013.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from kronos_pipeline import run_training
from kronos_pipeline.artifacts import ArtifactLayout, package_versions, read_json
from kronos_pipeline.atomic_writes import write_file
from kronos_pipeline.evaluation.reports.tables import evaluation_table, leaderboard_table
from kronos_pipeline.evaluation.reports.worth import worth_table

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "results.md"
MARK = "<!-- The figures below are written by benchmarks/results.py. -->"
ORIGINS, REFIT_EVERY = 16, 4
COMMON = {
    "model_name": "kronos-nano",
    "backtest_origins": ORIGINS,
    "backtest_refit_every": REFIT_EVERY,
    "device": "cpu",
}
KINDS = {
    "checkpoint": {"adapter": "none", "learning_rate": 1e-4, "epochs": 1, "stride": 8},
    "adapter": {
        "adapter": "lora",
        "adapter_targets": "month_embed,day_embed",
        "learning_rate": 1e-2,
        "average_decay": 0.95,
        "epochs": 2,
        "stride": 2,
    },
}
"""The settings of `make demo` (docs/does-training-work.md); the checkpoint with the former default learning rate."""
SETS = {"stocks": "Five real stocks", "simulated": "Twelve simulated tickers"}


def main() -> None:
    """Evaluate both sets, and write or print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(SETS), help="print the figures of one set of tickers")
    parser.add_argument("--output-dir", type=Path, help="folder for artifacts; by default a temporary folder")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        root = options.output_dir or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        parts = [section(name, root) for name in SETS if options.only in (None, name)]
    versions = ", ".join(f"{name} {version}" for name, version in package_versions().items())
    figures = "\n\n".join([*parts, f"Made with {versions}, on a CPU."])
    if options.only:
        print(figures)
        return
    page = PAGE.read_text(encoding="utf-8").split(MARK)[0] if PAGE.is_file() else ""
    text = f"{page}{MARK}\n\n{figures}\n"
    write_file(PAGE, lambda handle: handle.write(text.encode()))


def section(name: str, root: Path) -> str:
    """Train and backtest one set both ways, and return its figures as Markdown."""
    data = ROOT / "trainingdata" if name == "simulated" else stock_csvs(root / "stocks-data")
    lines = [f"## {SETS[name]}"]
    for kind, settings in KINDS.items():
        layout = ArtifactLayout(root / name / kind)
        flags = [*flags_of(COMMON | settings), "--data-dir", str(data), "--output-dir", str(layout.root)]
        with told_on_stderr():
            code = run_training.main(flags)
        if not layout.backtest_evaluation(kind).is_file():
            raise SystemExit(code)  # a ticker too short for a backtest is no reason: it is listed below the table
        flags_text = " ".join(flags_of(COMMON | settings))
        lines += [
            f"### One {kind} {'over all tickers' if kind == 'checkpoint' else 'per ticker'}",
            f"`kronos train {flags_text}`",
            *figures_of(read_json(layout.backtest_evaluation(kind)), "Backtest"),
            *figures_of(read_json(layout.evaluation), "Holdout"),
        ]
    return "\n\n".join(lines).replace(f"{data}/", "")


def figures_of(evaluation: dict[str, Any], title: str) -> list[str]:
    """Return the leaderboard, the errors by symbol, and what the model is good for by symbol and over all symbols."""
    span = evaluation["holdout"]
    return [
        leaderboard_table(evaluation, title).markdown(),
        evaluation_table(evaluation, title).markdown(),
        worth_table(evaluation, title).markdown(),
        f"{span['first'][:10]} to {span['last'][:10]}, {evaluation['samples']} paths, seed {evaluation['seed']}.",
    ]


def stock_csvs(folder: Path) -> Path:
    """Write the five stocks as CSVs: open, high, low and close as traded, unadjusted for splits and dividends."""
    from bokeh_sampledata import stocks

    folder.mkdir(parents=True, exist_ok=True)
    for ticker in ("AAPL", "FB", "GOOG", "IBM", "MSFT"):
        frame = pd.DataFrame(getattr(stocks, ticker)).drop(columns="adj_close")
        frame.to_csv(folder / f"{ticker}.csv", index=False)
    return folder


def flags_of(settings: dict[str, Any]) -> list[str]:
    """Return settings as flags of the command line."""
    return [argument for name, value in settings.items() for argument in (f"--{name.replace('_', '-')}", str(value))]


@contextlib.contextmanager
def told_on_stderr() -> Iterator[None]:
    """Redirect the command's output to stderr, so that stdout has the figures alone."""
    with contextlib.redirect_stdout(
        io.TextIOWrapper(sys.stderr.buffer, line_buffering=True, write_through=True)
    ) as out:
        yield
        out.detach()


if __name__ == "__main__":
    main()
