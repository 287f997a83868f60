"""The first page of `kronos`: what the project does, in the order in which people do it."""

from __future__ import annotations

from difflib import get_close_matches

from kronos_pipeline import __version__
from kronos_pipeline.pipeline.ending import kronos_command

SUBCOMMANDS = {
    "doctor": ("doctor", "Doctor", "is a folder of CSVs fit, is it enough, which command suits it"),
    "simulate": ("simulate", "Simulate", "write simulated tickers as CSVs, to try things"),
    "train": ("train", "Train", "fine-tune on a folder of CSVs, and measure on unseen days"),
    "status": ("status", "Status", "what is there, how old it is, what failed, what comes next"),
    "report": ("report", "Report", "all tables, verdicts with reasons, and pictures of the last run"),
    "backtest": ("backtest", "Backtest", "train and score at many past dates: enough for a verdict"),
    "check-blind": ("check_blind", "CheckBlind", "show that no training reads the days that measure it"),
    "forecast": ("forecast", "Forecast", "forecast the next bars, with intervals and a picture"),
    "record": ("record", "Record", "score the forecasts that were issued, as their bars come"),
    "drift": ("drift", "Drift", "does a model err more on new bars than it did when measured?"),
    "promote": ("promote", "Promote", "make a model the champion, which forecasts its ticker"),
    "rollback": ("promote", "Rollback", "restore the previous champion"),
    "clean": ("clean", "Clean", "delete what is no longer needed; never a champion or the ledger"),
    "sync": ("sync", "Sync", "exchange artifacts with the store that machines share"),
    "pretrain": ("pretrain", "Pretrain", "make a small base model from simulated bars"),
}
"""Module, class and help line of each subcommand."""

_SECTIONS = (
    ("Check the data", ("doctor", "simulate"), "doctor --data-dir mydata"),
    ("Train", ("train",), "train --data-dir mydata --adapter lora"),
    ("Look", ("status", "report"), "status"),
    ("Judge", ("backtest", "check-blind"), "backtest --data-dir mydata --adapter lora"),
    ("Use", ("forecast", "record", "drift", "promote", "rollback"), "forecast AAPL"),
    ("Keep it running", ("clean", "sync"), "clean --dry-run"),
    ("Others", ("pretrain",), None),
)


def overview() -> str:
    """Return the first page."""
    lines = [
        "Fine-tune the Kronos candlestick model on your own CSVs, one per ticker, and",
        "measure it on days that it has never seen.",
    ]
    for heading, names, first_try in _SECTIONS:
        lines += ["", heading]
        lines += [f"  {name:<12}{SUBCOMMANDS[name][2]}" for name in names]
        if first_try:
            lines.append(f"    $ kronos {first_try}")
    lines += [
        "",
        "First try, offline, in about a minute:",
        "    $ kronos train --data-dir trainingdata/AAPL --adapter lora \\",
        "          --model-name kronos-nano --stride 8",
        "kronos COMMAND --help lists the flags of a command, kronos --version the version.",
    ]
    if (kronos := kronos_command()) != "kronos":
        lines.append(f"Here kronos is {kronos}: `source env.sh` puts it on the PATH.")
    return "\n".join(lines)


def version_line() -> str:
    """Return the version of the package and of its code."""
    from kronos_pipeline.code_version import code_version

    return f"kronos {__version__} (code {code_version().rpartition('+')[2]})"


def unknown_command(word: str) -> str:
    """Return a sentence on a misspelt subcommand, with the nearest name."""
    nearest = get_close_matches(word, SUBCOMMANDS, n=1)
    remedy = f"did you mean `{kronos_command()} {nearest[0]}`?" if nearest else "there are " + ", ".join(SUBCOMMANDS)
    return f"{word!r} is no command: {remedy}"
