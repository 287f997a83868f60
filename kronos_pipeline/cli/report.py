"""`kronos report`: all tables of the last run, the reasons of the verdicts, and the pictures, from stored artifacts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field
from pydantic_settings import CliPositionalArg

from kronos_pipeline.cli.command import Command
from kronos_pipeline.config import KronosTrainingConfig
from kronos_pipeline.errors import printable_text
from kronos_pipeline.names import Name

if TYPE_CHECKING:
    from kronos_pipeline.artifacts import ArtifactLayout


class Report(Command):
    """Print all tables of the last evaluation and the last backtest, the verdicts with their reasons, and the pictures.

    Of a ticker, print the scores of every model, each comparison, and the decisions on its newest registered version.
    """

    shares: ClassVar[bool] = True
    tickers: CliPositionalArg[list[Name]] = Field([], description="symbols to show in full; by default all, in tables")
    output_dir: str = Field("artifacts", description=KronosTrainingConfig.model_fields["output_dir"].description)

    def groups(self) -> list[str] | None:
        """Return the given symbols; all by default."""
        return [ticker.upper() for ticker in self.tickers] or None

    def run(self) -> int:
        """Print the report."""
        from kronos_pipeline.artifacts import ArtifactLayout
        from kronos_pipeline.errors import ArtifactError
        from kronos_pipeline.evaluation.predictions import ADAPTER, CHECKPOINT

        layout = ArtifactLayout(Path(self.output_dir))
        tickers = list(dict.fromkeys(map(str.upper, self.tickers)))
        names: list[str | None] = [*tickers] or [None]
        found = False
        for ticker in names:
            files = {"Holdout": layout.evaluation if ticker is None else layout.ticker_metrics(ticker)}
            for kind in (ADAPTER, CHECKPOINT):
                report = layout.backtest_evaluation(kind) if ticker is None else layout.backtest_report(kind, ticker)
                files[f"Backtest of the {kind}"] = report
            existing = {what: path for what, path in files.items() if path.is_file()}
            if ticker is not None and not existing:
                raise ArtifactError(
                    f"{ticker} has no evaluation in {layout.root}; `kronos status` shows what is there."
                )
            for what, path in existing.items():
                found = True
                _print_evaluation(what, path, in_full=ticker is not None)
            if ticker is not None:
                _print_lines("Registry", _decisions(layout, ticker))
                _print_lines("Pictures", _pictures(layout, ticker))
        if not found:
            raise ArtifactError(
                f"There is no evaluation in {layout.root} yet; train first, or name another --output-dir."
            )
        if not tickers:
            print(f"\npictures  {layout.plot('X').parent}\nmetrics   {layout.evaluation.parent}")
            print("One ticker in full, with the reasons of its verdicts: kronos report TICKER")
        return 0


def _print_evaluation(what: str, path: Path, in_full: bool) -> None:
    """Print the tables of a stored evaluation; in full, with each comparison."""
    from kronos_pipeline.artifacts import read_json
    from kronos_pipeline.evaluation.reports.tables import evaluation_table, leaderboard_table
    from kronos_pipeline.evaluation.reports.text_table import print_tables
    from kronos_pipeline.evaluation.reports.worth import worth_table

    evaluation = read_json(path)
    tables = [leaderboard_table(evaluation, what), worth_table(evaluation, what)]
    print_tables(*(tables if in_full else [evaluation_table(evaluation, what), *tables]))
    entry = evaluation["per_symbol"][0] if in_full else evaluation["aggregate"]
    of = entry["symbol"] if in_full else "all tickers"
    _print_lines(f"{what}: verdicts on the {evaluation['model']}, {of}", _verdicts(entry, evaluation["model"]))


def _verdicts(entry: Mapping[str, Any], model: str) -> list[str]:
    """Return the verdicts on a model by target; rivals with one verdict and reason share a line."""
    from kronos_pipeline.evaluation.scoring.targets import TARGETS

    lines = []
    for target in TARGETS:
        rivals: dict[str, list[str]] = {}
        for rival, comparison in entry["verdicts"][target].get(model, {}).items():
            rivals.setdefault(f"{comparison['verdict']}, {comparison['reason']}", []).append(rival)
        lines += [f"{target} against {', '.join(names)}: {verdict}" for verdict, names in rivals.items()]
    return lines


def _decisions(layout: ArtifactLayout, ticker: str) -> list[str]:
    """Return the champions of a ticker's model, and the gate's decisions on its newest version."""
    from kronos_pipeline.evaluation.scoring.targets import TARGETS
    from kronos_pipeline.tracking.store import find_store_uri
    from kronos_pipeline.tracking.stored_registry import fetch_registered_models, read_registered_models
    from kronos_pipeline.tracking.version_page import gate_reason
    from kronos_pipeline.tracking.version_store import registered_name

    uri = find_store_uri(None, layout.root)
    models = read_registered_models(uri)
    model = (fetch_registered_models(uri) if models is None else models).get(registered_name(ticker))
    if model is None:
        return [f"no version of {ticker} is registered"]
    newest = model.versions[-1]
    champions = [f"champion of {target}: version {number}" for target, number in model.champions.numbers.items()]
    decided = [(target, gate_reason(newest, target)) for target in TARGETS]
    facts = [newest.tags[key] for key in ("recipes_tried", "as_served", "contamination") if newest.tags.get(key)]
    return [*champions, *(f"{newest}, {target}: {reason}" for target, reason in decided if reason), *facts]


def _pictures(layout: ArtifactLayout, ticker: str) -> Sequence[str]:
    pictures = [layout.plot(ticker), *sorted(layout.picture(ticker, "x").parent.glob("*.png"))]
    return [str(path) for path in pictures if path.is_file()]


def _print_lines(heading: str, lines: Sequence[str]) -> None:
    if lines:
        print("\n".join(["", *map(printable_text, (heading, *(f"  {line}" for line in lines)))]))
