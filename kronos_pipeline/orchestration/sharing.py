"""The exchange of a run's artifacts with the store of other machines: fetched before its steps, delivered after each.

A run fetches the tickers that it works on, so a run on a machine with an empty output folder finds what runs on other
machines made. A ticker whose artifacts are damaged in the store fails by name, unless the run makes them anew by a
training; the other tickers go on.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

import dagster as dg

from kronos_pipeline.artifact_store.sharing import deliver, shared_artifacts, shared_folder
from kronos_pipeline.artifacts import ArtifactLayout
from kronos_pipeline.errors import KronosError
from kronos_pipeline.orchestration.failures import as_failure, make_failure
from kronos_pipeline.orchestration.run_tickers import planned_tickers

_MAKE_ANEW = ("raw_bars", "windows", "adapter")
"""Assets that need nothing of the store."""
_errors: dict[str, dict[str, KronosError]] = {}
"""By run of this process: the errors of the tickers that could not be fetched."""


@contextmanager
def share_run(layout: ArtifactLayout, instance: dg.DagsterInstance, run: dg.DagsterRun) -> Iterator[None]:
    """Fetch the artifacts of a run's tickers before the block, and deliver what is left after it."""
    if shared_folder(layout.root) is None:
        yield
        return
    log = dg.get_dagster_logger()

    def say(line: str) -> None:
        (log.info if line.startswith("artifact store:") else log.warning)(line)

    with (
        as_failure("artifact store"),
        shared_artifacts(layout.root, planned_tickers(instance, run), say, refuse=False) as sharing,
    ):
        _errors[run.run_id] = dict(sharing.errors)
        try:
            yield
        finally:
            del _errors[run.run_id]


def refused_tickers(run_id: str, asset: str) -> Mapping[str, KronosError]:
    """Return the errors of the tickers that an asset cannot be made for, as the run could not fetch their artifacts."""
    return {} if asset in _MAKE_ANEW else _errors.get(run_id, {})


def deliver_artifacts(asset: str, layout: ArtifactLayout, tickers: Collection[str]) -> None:
    """Deliver what a step made of some tickers, and of the artifacts that belong to no ticker.

    Raises:
        dagster.Failure: an artifact is damaged, or another machine has published a model of the ticker meanwhile.
        StoreError: the store refuses.
    """
    folder = shared_folder(layout.root)
    if folder is None:
        return
    if errors := deliver(folder, tickers, dg.get_dagster_logger().info).errors:
        raise make_failure(asset, errors)
    if asset == "adapter":
        for refused in _errors.values():
            for ticker in tickers:
                refused.pop(ticker, None)
