"""The job `clean` and its weekly schedule: `kronos clean`, and Dagster's own old runs."""

# Annotations are not postponed here: Dagster reads the annotation of `context` and refuses a string.
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg

from kronos_pipeline.errors import count, readable_size
from kronos_pipeline.orchestration.automation.jobs import AutomationSettings
from kronos_pipeline.orchestration.failures import as_failure
from kronos_pipeline.orchestration.instance import delete_runs, old_runs
from kronos_pipeline.pipeline.clean import DAYS, KEEP, CleaningRules, carry_out, plan_cleaning, total_size

CLEAN = "clean"


AMOUNTS = {
    "keep": dg.Field(int, default_value=KEEP, description="newest MLflow runs and versions of each ticker that stay"),
    "days": dg.Field(int, default_value=DAYS, description="days after which a run or an unfinished training is old"),
}


def make_cleaning_job() -> dg.JobDefinition:
    """Return the job: its op deletes what the output folder and the instance no longer need."""

    @dg.op(
        name="delete_what_is_no_longer_needed",
        required_resource_keys={"pipeline", "tracking"},
        config_schema=AMOUNTS,
    )
    def delete(context: dg.OpExecutionContext) -> None:
        rules = CleaningRules(**context.op_config)
        layout, now = context.resources.pipeline.layout, datetime.now(UTC)
        with as_failure(CLEAN):
            store = context.resources.tracking.tracker(layout).uri
            plan = plan_cleaning(layout, context.resources.pipeline.data_folder, store, rules, now)
            errors = [*plan.errors, *carry_out(plan, layout)]
        runs = old_runs(context.instance, now - timedelta(days=rules.days))
        delete_runs(context.instance, runs)
        by_rule: dict[str, list[Any]] = {}
        for removal in plan.removals:
            by_rule.setdefault(removal.rule, []).append(removal)
        lines = [f"{rule}: {len(of_rule)}, {readable_size(total_size(of_rule))}" for rule, of_rule in by_rule.items()]
        context.log.info("Deleted: " + "; ".join([*lines, count(len(runs), "old run") + " of Dagster"]))
        for note in plan.notes:
            context.log.info(note)
        if errors:
            raise dg.Failure("\n".join(errors), allow_retries=False)

    @dg.job(
        name=CLEAN,
        description="Delete what is no longer needed: old runs and versions in MLflow, replaced versions, given up "
        "states, old runs of Dagster. Champions, former champions and the ledger stay.",
        executor_def=dg.in_process_executor,
    )
    def clean() -> None:
        delete()

    return clean


def make_cleaning_schedule(settings: AutomationSettings) -> dg.ScheduleDefinition:
    """Return the weekly schedule of the job."""
    return dg.ScheduleDefinition(
        name="clean_weekly",
        job_name=CLEAN,
        cron_schedule=settings.clean_cron,
        execution_timezone=settings.market_time_zone,
        description="Deletes what is no longer needed; `kronos clean --dry-run` shows what.",
    )
