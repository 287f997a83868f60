"""The ledger: every forecast that was issued, kept from before its bars existed. A row per ticker, issue and bar ahead.

    ledger/month=2026-03/20260302T230114000000-1f2e3d4c.parquet     all tickers of one command or one run
    ledger/month=2026-03/20260303T230122000000-5a6b7c8d.parquet

    unique_id  issued            cutoff      ds          step  last   median  lo_80  hi_80 ...  model    version  replay
    AAPL       2026-03-02 23:01  2026-03-02  2026-03-03  1     179.9  180.5   176.0  185.1      adapter  4        False

The ledger is append-only: an issue is a new file, written atomically below a lock, and no file is written again. A
file holds a hash of its rows, so a later change shows. The ledger has forecasts alone; `scoring.track_record` computes
scores from the ledger and the bars.

`issued` is in UTC; the month of a folder is the month of the issue. `cutoff` and `ds` are in the file's local time.
`last` is the close at the cutoff and `recent` the mean of the newest closes up to it (`RECENT_BARS` of them, NaN with
fewer bars): prices that were restated since, for instance after a split, are recognised by both. `recipe` is a hash of
the settings, `bars_hash` the hash of the bars that the forecast was made from.

`replay` is true if the target bar existed when the forecast was issued. Such a row is no forecast and never counts.
A bar existed in any of these cases; in doubt, the rule says that it did:

- The bars of the forecast, the bars in the output folder or the bars that the model has seen reach to it.
- An earlier entry of the ticker has a cutoff at or after it: the forecast was made from a truncated file.
- Its time has passed by the clock. A bar ends one interval after its time, a daily bar a calendar day after its date. A
  file with a zone for times of day has the zone's largest offset from UTC. Otherwise the zone is unknown, and the bar
  ends by the clocks of UTC+14, the earliest of the world. So a daily bar counts as existing from 10:00 UTC of its date
  on, and bars of an hour without a zone from 13 hours before their time on.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from filelock import Timeout

from kronos_pipeline.artifact_store.sharing import shared_ledger
from kronos_pipeline.artifacts import PARQUET_MANIFEST, ArtifactLayout, readable_parquet, write_parquet
from kronos_pipeline.atomic_writes import check_writable
from kronos_pipeline.checksums import open_parquet, parse_json, text_hash
from kronos_pipeline.code_version import code_version
from kronos_pipeline.config import Recipe
from kronos_pipeline.data.bar_schedule import usual_interval
from kronos_pipeline.data.bars import FEATURES, Bars, array_hash
from kronos_pipeline.errors import ArtifactError, count, enumerate_some
from kronos_pipeline.evaluation.predictions import BOUNDS
from kronos_pipeline.locks import exclusive, folder_lock

RECENT_BARS = 20
_PRICES = ("last", "recent", "mean", "median", *BOUNDS)
_TIMES = {"issued": pa.timestamp("us", "UTC"), "cutoff": pa.timestamp("ns"), "ds": pa.timestamp("ns")}
SCHEMA = pa.schema(
    [
        ("unique_id", pa.string()),
        *_TIMES.items(),
        ("step", pa.int32()),
        *((name, pa.float64()) for name in (*_PRICES, "p_up")),
        *((name, pa.string()) for name in ("model", "version", "recipe", "bars_hash")),
        ("replay", pa.bool_()),
    ]
)
COLUMNS = tuple(SCHEMA.names)
ENTRY = ["unique_id", "issued", "cutoff", "model", "version"]
"""Columns that identify an entry: one forecast of one ticker."""

_MONTH = re.compile(r"month=\d{4}-\d{2}")
_FILE = re.compile(r"\d{8}T\d{12}-[0-9a-f]{8}\.parquet")
_LOCK = "ledger/.lock"
_LOCK_SECONDS = 60
_LARGEST_FILE = 256 * 2**20
"""Bytes. An issue of a thousand tickers and a hundred bars takes 20 MB."""
_HASH = "rows_hash"
_EARLIEST_ZONE = pd.Timedelta(hours=14)
_DAY = pd.Timedelta(days=1)
_DAILY = 0.9 * _DAY
_OFFSET = re.compile(r"([+-])(\d{2}):(\d{2})")


@dataclass(frozen=True)
class Ledger:
    """Entries of a ledger.

    Attributes:
        rows: the columns of `COLUMNS`, by ticker, cutoff, issue and step.
        notes: files that were not read and oddities of the entries, a sentence each.
    """

    rows: pd.DataFrame
    notes: tuple[str, ...] = ()


def ledger_rows(
    bars: Bars,
    forecast: pd.DataFrame,
    recipe: Recipe,
    *,
    version: str,
    issued: datetime,
    known_until: Collection[pd.Timestamp] = (),
) -> pd.DataFrame:
    """Return the rows of an issued forecast.

    Args:
        bars: the bars that the forecast was made from.
        forecast: the result of `forecast_ahead` for these bars; `p_up` may be missing.
        recipe: the settings of the forecast.
        version: identifies the model beside its name: the number of its version, or a hash of its weights.
        issued: time of the issue, with a zone.
        known_until: times of the newest bars that are known elsewhere, in the file's local time: those of the output
            folder, those that the model has seen.
    """
    moment = pd.Timestamp(issued).tz_convert("UTC")
    stamps = bars.frame["timestamps"]
    cutoff = pd.Timestamp(forecast["cutoff"].iloc[0])
    closes = bars.values[: int(stamps.searchsorted(cutoff, side="right")), FEATURES.index("close")]
    known = max([pd.Timestamp(stamps.iloc[-1]), *known_until])
    ds = pd.DatetimeIndex(forecast["ds"])
    columns: dict[str, Any] = {
        "issued": moment.as_unit("us"),
        "last": float(closes[-1]),
        "recent": float(closes[-RECENT_BARS:].mean()) if len(closes) >= RECENT_BARS else np.nan,
        "p_up": forecast.get("p_up", np.nan),
        "version": version,
        "recipe": text_hash(recipe.model_dump_json())[:12],
        "bars_hash": bars.content_hash,
        "replay": np.asarray((ds <= known) | (bar_ends(bars, ds) <= moment)),
    }
    return forecast.reset_index(drop=True).assign(**columns)[list(COLUMNS)]


def bar_ends(bars: Bars, ds: pd.DatetimeIndex) -> pd.DatetimeIndex:
    """Return the earliest moments at which bars of a ticker may have ended, in UTC; the module has the rule."""
    interval = pd.Timedelta(usual_interval(bars.frame["timestamps"].to_numpy("datetime64[ns]").astype(np.int64)))
    daily = interval >= _DAILY
    offset = _EARLIEST_ZONE if daily or bars.time_zone is None else _largest_offset(bars.time_zone)
    return pd.DatetimeIndex(ds + max(interval, _DAY if daily else interval) - offset).tz_localize("UTC")


def known_bars_end(layout: ArtifactLayout, ticker: str) -> list[pd.Timestamp]:
    """Return the time of the newest bar in `bars/<T>.parquet`; empty without a readable file."""
    try:
        with readable_parquet(layout.bars(ticker)) as file:
            times = file.read(columns=["timestamps"])["timestamps"]
        return [pd.Timestamp(times[-1].as_py())] if len(times) else []
    except (ArtifactError, KeyError):
        return []


def append(layout: ArtifactLayout, rows: Sequence[pd.DataFrame]) -> tuple[Path | None, list[str]]:
    """Append the forecasts of one command or one run as one new file.

    Rows whose bar an earlier entry of their ticker already knew become replays here, below the lock.

    Args:
        layout: the layout of the artifacts.
        rows: results of `ledger_rows`.

    Returns:
        The file, None without rows; and notes on entries that were issued before an earlier entry of their ticker, as
        after a change of the clock, and on files of the ledger that cannot be read.

    Raises:
        ArtifactError: the ledger cannot be written, or another process does not release it.
    """
    if not rows:
        return None, []
    check_writable(layout.ledger)
    try:
        with exclusive(folder_lock(layout.root, _LOCK), _LOCK_SECONDS), shared_ledger(layout.root):
            return _append_locked(layout, pd.concat(rows, ignore_index=True))
    except Timeout as error:
        raise ArtifactError(
            f"{layout.root / _LOCK} is held by another process for {_LOCK_SECONDS} s; wait for it or end it."
        ) from error


def read(layout: ArtifactLayout, tickers: Collection[str] | None = None) -> Ledger:
    """Read the entries of some tickers, or of all.

    A file that is damaged, was changed after it was written, has other columns or is no file of a ledger is left out,
    with a note. Only files with a name of the ledger are opened, and no folder below those of the months is listed.

    Args:
        layout: the layout of the artifacts.
        tickers: the tickers; all by default.
    """
    files, foreign = _list_files(layout.ledger)
    notes = []
    if foreign:
        notes.append(
            f"{layout.ledger}: {enumerate_some(foreign)} {'is' if len(foreign) == 1 else 'are'} no part of the ledger; "
            "move it elsewhere."
        )
    tables = [SCHEMA.empty_table()]
    wanted = None if tickers is None else pa.array(list(tickers), pa.string())
    for path in files:
        try:
            table = _read_file(path)
        except ArtifactError as error:
            notes.append(str(error))
            continue
        tables.append(table if wanted is None else table.filter(pc.is_in(table["unique_id"], wanted)))
    rows = pa.concat_tables(tables).to_pandas()
    rows = rows.drop_duplicates([*ENTRY, "ds"])
    rows = rows.sort_values(["unique_id", "cutoff", "issued", "step"], ignore_index=True, kind="stable")
    return Ledger(rows, (*notes, *_clock_jumps(rows)))


def _append_locked(layout: ArtifactLayout, rows: pd.DataFrame) -> tuple[Path, list[str]]:
    earlier = read(layout, set(rows["unique_id"]))
    known = pd.to_datetime(rows["unique_id"].map(earlier.rows.groupby("unique_id")["cutoff"].max()))
    rows["replay"] |= (rows["ds"] <= known).to_numpy()
    while rows["issued"].isin(earlier.rows["issued"]).any():  # a clock that stands still: entries differ by their time
        rows["issued"] += pd.Timedelta(1, "us")
    issued = rows["issued"].max()
    newest = earlier.rows.groupby("unique_id")["issued"].max()
    late = newest[newest > rows.groupby("unique_id")["issued"].max().reindex(newest.index)]
    notes = list(earlier.notes)
    if len(late):
        notes.append(
            f"The ledger has entries of {enumerate_some(list(late.index))} that were issued later than now, "
            f"{issued:%Y-%m-%d %H:%M} UTC; check the clock. The new entries keep their time."
        )
    stamp = issued.strftime("%Y%m%dT%H%M%S%f")
    path = layout.ledger / f"month={issued:%Y-%m}" / f"{stamp}-{uuid.uuid4().hex[:8]}.parquet"
    table = pa.Table.from_pandas(rows, schema=SCHEMA, preserve_index=False)
    write_parquet(path, table.to_pandas(), {"code_version": code_version(), _HASH: rows_hash(table)})
    return path, notes


def _list_files(folder: Path) -> tuple[list[Path], list[str]]:
    """Return the files of the ledger, by time of issue, and the names of all other files and folders."""
    files: list[Path] = []
    foreign: list[str] = []
    for month in _entries(folder):
        if not (_MONTH.fullmatch(month.name) and month.is_dir()):
            foreign.append(month.name)
            continue
        for path in _entries(month):
            if _FILE.fullmatch(path.name) and path.is_file():
                files.append(path)
            else:
                foreign.append(f"{month.name}/{path.name}")
    return sorted(files, key=lambda path: path.name), foreign


def _entries(folder: Path) -> list[Path]:
    """List a folder without hidden files: the lock, and temporary files of a writer."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ArtifactError(f"{folder} cannot be listed ({error.strerror}); mend its permissions.") from error


def _read_file(path: Path) -> pa.Table:
    """Read one file.

    Raises:
        ArtifactError: the file is damaged, too large, of another schema, or was changed.
    """
    remedy = "its forecasts do not count; move the file elsewhere, or restore it from a copy."
    try:
        if (size := path.stat().st_size) > _LARGEST_FILE:
            raise ArtifactError(f"{path} is too large for a file of the ledger ({size:,} bytes), so {remedy}")
        with open_parquet(path) as file:
            schema = file.schema_arrow
            if not schema.equals(SCHEMA):
                odd = sorted({*schema.names} ^ {*SCHEMA.names}) or ["types or order"]
                raise ArtifactError(f"{path} has other columns than the ledger ({enumerate_some(odd)}), so {remedy}")
            table = file.read().replace_schema_metadata(None)
        manifest = parse_json((schema.metadata or {}).get(PARQUET_MANIFEST, b"{}"))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ArtifactError(f"{path} is damaged ({error}), so {remedy}") from error
    if manifest.get(_HASH) != rows_hash(table):
        raise ArtifactError(f"{path} was changed after it was written, so {remedy}")
    return table


def rows_hash(table: pa.Table) -> str:
    """Return the SHA-256 of the values of a file's rows, in hex; Arrow's own bytes may change with its version."""
    parts = []
    for name, kind in zip(SCHEMA.names, SCHEMA.types, strict=True):
        column = table[name].combine_chunks()
        if pa.types.is_string(kind):
            parts.append(text_hash(*map(str, column.to_pylist())))
        else:
            number = pa.float64() if pa.types.is_floating(kind) else pa.int64()
            parts.append(array_hash(column.cast(number).to_numpy(zero_copy_only=False)))
    return text_hash(*parts)


def _clock_jumps(rows: pd.DataFrame) -> list[str]:
    """Return a note on cutoffs that were first forecast before an older cutoff was, empty without any."""
    first = rows.groupby(["unique_id", "cutoff"])["issued"].min().sort_index()
    odd = first[first < first.groupby(level="unique_id").cummax()]
    if odd.empty:
        return []
    tickers = odd.index.unique(level="unique_id")
    return [
        f"{count(len(odd), 'forecast')} of {enumerate_some(list(tickers))} issued before a forecast from an older "
        "cutoff: the clock was changed, or an older file was forecast. The times of issue are kept."
    ]


def _largest_offset(zone: str) -> pd.Timedelta:
    """Return the largest offset from UTC of a zone such as "UTC-05:00/-04:00", see `Bars.time_zone`."""
    offsets = [
        pd.Timedelta(hours=int(hours), minutes=int(minutes)) * (-1 if sign == "-" else 1)
        for sign, hours, minutes in _OFFSET.findall(zone)
    ]
    if offsets:
        return max(offsets)
    return pd.Timedelta(0) if zone == "UTC" else _EARLIEST_ZONE


def now() -> datetime:
    """Return the time of an issue that is made now."""
    return datetime.now(UTC)
