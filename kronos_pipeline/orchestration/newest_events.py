"""The newest events of an asset by ticker: a query for each page of a thousand tickers, and none for a ticker alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import dagster as dg
from dagster._core.storage.event_log.base import AssetEventSummaryRecord

_MATERIALISED: Any = dg.DagsterEventType.ASSET_MATERIALIZATION
_PAGE = 1000

Item = TypeVar("Item")


def newest_materialisations(
    instance: dg.DagsterInstance, asset: dg.AssetKey, tickers: Iterable[str]
) -> dict[str, dg.EventLogRecord]:
    """Return the newest materialisation of an asset by ticker, with its metadata; tickers without any are left out."""
    return {
        str(record.partition_key): record
        for record in read_materialisations(instance, asset, newest_ids(instance, asset, tickers).values())
    }


def newest_summaries(
    instance: dg.DagsterInstance, asset: dg.AssetKey, tickers: Iterable[str]
) -> dict[str, AssetEventSummaryRecord]:
    """Return run, id and time of the newest materialisation of an asset by ticker, without its metadata.

    The metadata of an evaluation holds pictures: those of hundreds of tickers take seconds to read.
    """
    newest = list(newest_ids(instance, asset, tickers).values())
    return {
        str(summary.partition): summary
        for page in pages(newest)
        for summary in instance.get_asset_event_summary_records(_MATERIALISED, asset, storage_ids=page)
    }


def newest_ids(
    instance: dg.DagsterInstance,
    asset: dg.AssetKey,
    tickers: Iterable[str],
    kind: dg.DagsterEventType = dg.DagsterEventType.ASSET_MATERIALIZATION,
) -> dict[str, int]:
    """Return the id of the newest event of a kind of an asset by ticker; tickers without any are left out."""
    found: dict[str, int] = {}
    for page in pages(sorted(set(tickers))):
        found |= instance.get_latest_storage_id_by_partition(asset, kind, set(page))
    return found


def read_materialisations(
    instance: dg.DagsterInstance, asset: dg.AssetKey, ids: Iterable[int]
) -> Iterator[dg.EventLogRecord]:
    """Yield materialisations of an asset with their metadata, a query for each page."""
    for page in pages(sorted(ids)):
        wanted = dg.AssetRecordsFilter(asset_key=asset, storage_ids=page)
        yield from instance.fetch_materializations(wanted, limit=len(page)).records


def pages(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    """Yield items in parts that a query can name; databases limit its parameters, and its answer is held in memory."""
    for start in range(0, len(items), _PAGE):
        yield items[start : start + _PAGE]
