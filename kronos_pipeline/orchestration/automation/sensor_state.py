"""What a sensor remembers by ticker: kept in the instance's key-value store, and named by the cursor of its ticks.

Dagster copies the cursor of a sensor into each of its ticks and keeps these for days. With thousands of tickers a
cursor that holds the state itself has megabytes, and the ticks of a day have gigabytes. So the cursor is a digest:

    cursor of the last tick     4f1c...                                      64 characters, for any number of tickers
    key-value store             slot 0: 4f1c... {"AAPL": ...}                the state that the cursor names
                                slot 1: 90ab... {"AAPL": ...}                the state of the tick before, or after

A tick writes its state into the slot that the cursor does not name, before Dagster stores the new cursor. If a tick
fails after that, the next tick finds the state of the old cursor. A sensor that a person resets begins anew.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import dagster as dg

from kronos_pipeline.checksums import parse_json, text_hash

_SEPARATOR = "\n"


def load_state(context: dg.SensorEvaluationContext, sensor: str) -> dict[str, Any]:
    """Return the state that the cursor names; empty after a reset of the sensor, and if the store lost the state."""
    cursor = context.cursor or ""
    if cursor.startswith("{"):  # of an earlier version of the project: the state itself
        state: dict[str, Any] = parse_json(cursor)
        return state
    found = _read_slots(context, sensor).get(cursor)
    return parse_json(found[1]) if found else {}


def save_state(context: dg.SensorEvaluationContext, sensor: str, state: Mapping[str, Any]) -> str:
    """Store a state, unless the cursor names it already, and return the cursor that names it."""
    text = json.dumps(state)
    digest, slots = text_hash(text), _read_slots(context, sensor)
    if digest not in slots:
        taken = slots.get(context.cursor or "")
        free = next(key for key in _keys(context, sensor) if taken is None or key != taken[0])
        context.instance.daemon_cursor_storage.set_cursor_values({free: f"{digest}{_SEPARATOR}{text}"})
    return digest


def _read_slots(context: dg.SensorEvaluationContext, sensor: str) -> dict[str, tuple[str, str]]:
    """Return the key and the text of each stored state by its digest."""
    stored = context.instance.daemon_cursor_storage.get_cursor_values(set(_keys(context, sensor)))
    parts = {key: value.partition(_SEPARATOR) for key, value in stored.items()}
    return {digest: (key, text) for key, (digest, _, text) in parts.items()}


def _keys(context: dg.SensorEvaluationContext, sensor: str) -> tuple[str, str]:
    """Return the keys of the two slots; two code locations of an instance have sensors of the same names."""
    origin = context.code_location_origin
    name = f"kronos/{origin.location_name if origin else ''}/{sensor}"
    return f"{name}/0", f"{name}/1"
