"""`kronos status`: what is there, how old it is, what failed, and the next command."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field
from pydantic_settings import CliPositionalArg

from kronos_pipeline.cli.ages import age_of
from kronos_pipeline.cli.command import Command
from kronos_pipeline.config import KronosTrainingConfig
from kronos_pipeline.names import Name

if TYPE_CHECKING:
    from kronos_pipeline.pipeline.status import FolderStatus, TickerStatus

_SHOWN = 15
"""Largest number of tickers with a line each; more tickers are grouped by their state."""


class Status(Command):
    """Show what is there: last bars, trainings, verdicts, champions; what is stale, what failed, and what comes next.

    Nothing is trained.
    """

    shares: ClassVar[bool] = True
    tickers: CliPositionalArg[list[Name]] = Field([], description="symbols; by default all")
    data_dir: str = Field("trainingdata", description=KronosTrainingConfig.model_fields["data_dir"].description)
    output_dir: str = Field("artifacts", description=KronosTrainingConfig.model_fields["output_dir"].description)
    json_output: bool = Field(False, alias="json", description="print JSON, for scripts")

    def groups(self) -> list[str] | None:
        """Return the given symbols; all by default."""
        return [ticker.upper() for ticker in self.tickers] or None

    def run(self) -> int:
        """Print the state of the tickers."""
        from kronos_pipeline.artifacts import ArtifactLayout
        from kronos_pipeline.errors import DataError, Problem, enumerate_some, printable_text
        from kronos_pipeline.pipeline.status import read_status

        now = datetime.now(UTC)
        status = read_status(Path(self.data_dir), ArtifactLayout(Path(self.output_dir)), now)
        wanted = [ticker.upper() for ticker in self.tickers]
        known = {ticker.ticker: ticker for ticker in status.tickers}
        if missing := [ticker for ticker in wanted if ticker not in known]:
            rule = f"no such ticker here; there are: {enumerate_some(list(known), 10) or 'none'}"
            raise DataError([Problem(ticker, rule) for ticker in missing])
        shown = [known[ticker] for ticker in dict.fromkeys(wanted)] or list(status.tickers)
        if self.json_output:
            print(json.dumps({"tickers": [vars(ticker) for ticker in shown], "notes": status.notes}, indent=2))
            return 0
        print("\n".join(map(printable_text, [*self._lines(shown, now), *status.notes, *self._next(status, shown)])))
        return 0

    def _lines(self, tickers: Sequence[TickerStatus], now: datetime) -> list[str]:
        from kronos_pipeline.errors import count, group_messages

        trained = sum(bool(ticker.trained) for ticker in tickers)
        lines = [f"{self.data_dir} -> {self.output_dir}: {count(len(tickers), 'ticker')}, {trained} trained", ""]
        rows = [("ticker", "last bar, age", "trained", "verdict", "champion of")]
        groups: dict[tuple[str, str, str, str, str], list[str]] = {}
        for ticker in tickers:
            cells = _cells(ticker, now)
            alike = "" if len(tickers) > _SHOWN else ticker.ticker
            groups.setdefault((*cells, alike), []).append(ticker.ticker)
        for (bar, training, verdict, champion, _), names in groups.items():
            name = names[0] if len(names) == 1 else f"{len(names)} tickers"
            rows.append((name, bar, training, verdict, champion))
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        for row in rows if tickers else []:
            lines.append("  ".join(f"{cell:<{width}}" for cell, width in zip(row, [*widths, 0], strict=True)).rstrip())
        for heading, messages in (
            ("Stale", [(ticker.ticker, text) for ticker in tickers for text in ticker.stale]),
            ("Failed in the last run", [(ticker.ticker, ticker.failed) for ticker in tickers if ticker.failed]),
        ):
            if messages:
                lines += ["", heading, *(f"  {line}" for line in group_messages(messages))]
        return lines

    def _next(self, status: FolderStatus, tickers: Sequence[TickerStatus]) -> list[str]:
        """Return the next command and its reason."""
        from kronos_pipeline.evaluation.scoring.verdicts import TOO_LITTLE
        from kronos_pipeline.pipeline.ending import backtest_command, flag_unless_default, kronos_command

        data = flag_unless_default("data_dir", self.data_dir)
        folders = f"{data}{flag_unless_default('output_dir', self.output_dir)}"
        evaluated = [ticker for ticker in tickers if ticker.evaluated]
        config = KronosTrainingConfig.model_validate(
            {
                **{key: value for key, value in status.settings.items() if key in KronosTrainingConfig.model_fields},
                "data_dir": self.data_dir,
                "output_dir": self.output_dir,
            }
        )
        if not any(ticker.csv for ticker in tickers):
            why, command = "no CSV is found: name the folder that has them", f"{kronos_command()} doctor --data-dir DIR"
        elif not evaluated:
            why, command = "nothing is trained yet; check the data first", f"{kronos_command()} doctor{data}"
        elif any(ticker.stale for ticker in tickers):
            from kronos_pipeline.data.proposal import flags_of

            why = "train again on the data as it is now"
            command = f"{kronos_command()} train{folders} {flags_of(config.recipe)}".rstrip()
        elif all(set(ticker.evaluated["verdicts"].values()) == {TOO_LITTLE} for ticker in evaluated):
            why, command = "more evidence, for a verdict", backtest_command(config, Path(self.output_dir))
        else:
            why, command = "forecast the next bars", f"{kronos_command()} forecast {evaluated[0].ticker}{folders}"
        return ["", f"Next: {why}", f"  {command}"]


def _cells(ticker: TickerStatus, now: datetime) -> tuple[str, str, str, str]:
    """Return last bar, training, verdict and champion in a few words."""
    from kronos_pipeline.evaluation.scoring.targets import TARGETS
    from kronos_pipeline.evaluation.scoring.verdicts import BETTER, TOO_LITTLE

    bar = "not read yet"
    if ticker.last_bar:
        bar = f"{ticker.last_bar[:10]}, {age_of(ticker.last_bar, now)}"
    trained = next((f"{kind} {age_of(time, now)} ago" for kind, time in ticker.trained.items()), "-")
    verdicts: dict[str, Any] = ticker.evaluated.get("verdicts", {})
    better = [target for target, verdict in verdicts.items() if verdict == BETTER]
    if ticker.failed:
        return bar, trained, "failed", "-"
    verdict = f"better: {', '.join(better)}" if better else "no better" if verdicts else "-"
    if verdicts and set(verdicts.values()) == {TOO_LITTLE}:
        verdict = "little evidence"
    champion = "all" if len(ticker.champions) == len(TARGETS) else ", ".join(ticker.champions) or "-"
    return bar, trained, verdict, champion
