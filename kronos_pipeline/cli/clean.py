"""`kronos clean`: delete what an output folder no longer needs."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from pydantic import Field

from kronos_pipeline.cli.command import FAILED, Command, verbose_flag
from kronos_pipeline.config import KronosTrainingConfig
from kronos_pipeline.errors import ArtifactError, count, readable_size
from kronos_pipeline.pipeline.clean import DAYS, KEEP, CleaningRules, carry_out, plan_cleaning, total_size
from kronos_pipeline.pipeline.dagster_process import DagsterError, answer_of, ask_dagster
from kronos_pipeline.removal import Removal
from kronos_pipeline.training.progress import step


class Clean(Command):
    """Delete what an output folder no longer needs.

    Deleted are replaced versions of published folders, temporary files of killed processes, states of given up
    trainings, damaged files that were set aside, stored bars without a CSV, and MLflow's runs and registered versions
    beyond the newest of each ticker; and old runs of the Dagster instance of DAGSTER_HOME.

    These stay: champions and former champions, versions that a person decided on or gave an alias, the ledger, current
    artifacts, and everything that a process holds. Trainings and forecasts may run meanwhile.
    """

    output_dir: str = Field("artifacts", description=KronosTrainingConfig.model_fields["output_dir"].description)
    data_dir: str = Field("trainingdata", description=KronosTrainingConfig.model_fields["data_dir"].description)
    keep: int = Field(
        KEEP, ge=1, description="newest MLflow runs and registered versions that stay of each ticker and kind"
    )
    days: int = Field(
        DAYS, ge=1, description="days after which an unfinished training or a damaged file counts as given up"
    )
    dry_run: bool = Field(False, description="print what would be deleted, and delete nothing")
    verbose: bool = verbose_flag("name everything that is deleted")

    def run(self) -> int:
        """Delete, and print what went and how many bytes; return 2 if something could not be deleted."""
        from kronos_pipeline.artifacts import ArtifactLayout
        from kronos_pipeline.tracking.store import find_store_uri

        layout = ArtifactLayout(Path(self.output_dir).absolute())
        if not layout.root.is_dir():
            raise ArtifactError(f"There is no folder {self.output_dir}; name the output folder by --output-dir.")
        step("looking for what is no longer needed")
        store, rules = find_store_uri(None, layout.root), CleaningRules(self.keep, self.days)
        plan = plan_cleaning(layout, Path(self.data_dir), store, rules, datetime.now(UTC))
        step("deleting")
        errors = [*plan.errors, *([] if self.dry_run else carry_out(plan, layout))]
        print("\n".join([*self._lines(plan.removals), *plan.notes]))
        if of_dagster := ask_dagster("old-runs", "--days", str(self.days), *([] if self.dry_run else ["--delete"])):
            step("Dagster's old runs")
            try:
                runs = answer_of(of_dagster)["runs"]
                print(f"{os.environ['DAGSTER_HOME']}: {count(runs, 'old run')} of Dagster {self._done}")
            except DagsterError as error:
                errors.append(f"Dagster's old runs stay: {error}.")
        for message in errors:
            print(f"error: {message}", file=sys.stderr)
        return FAILED if errors else 0

    @property
    def _done(self) -> str:
        return "would be deleted" if self.dry_run else "deleted"

    def _lines(self, removals: Sequence[Removal]) -> list[str]:
        """Return a line for each rule with its number and bytes, and each name if wanted."""
        if not removals:
            return [f"{self.output_dir}: nothing to delete"]
        lines = [f"{self.output_dir}: {readable_size(total_size(removals))} {self._done}"]
        for rule in dict.fromkeys(removal.rule for removal in removals):
            of_rule = [removal for removal in removals if removal.rule == rule]
            lines.append(f"  {rule:<20} {len(of_rule):>7,} {readable_size(total_size(of_rule)):>10}")
            if self.verbose:
                lines += [f"    {removal.name} {readable_size(removal.size)}" for removal in of_rule]
        return lines
