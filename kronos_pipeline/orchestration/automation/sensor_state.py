"""What a sensor remembers: a few values in its cursor, or a state by ticker in the instance's key-value store.

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
from typing import Any, TypeVar

import dagster as dg
from pydantic import BaseModel, TypeAdapter, ValidationError

from kronos_pipeline.checksums import text_hash

_SEPARATOR = "\n"
_SHOWN = 60
"""Characters of a cursor that a warning shows."""
Values = TypeVar("Values", bound=BaseModel)
Value = TypeVar("Value")
Parsed = TypeVar("Parsed")


def read_cursor(context: dg.SensorEvaluationContext, kind: type[Values]) -> Values:
    """Return the values in the cursor; their defaults before the first tick and after a reset.

    A person can set any text as cursor in the UI. A text that does not fit gives the defaults, and a warning.
    """
    return _parse(context, TypeAdapter(kind), context.cursor, kind())


def load_state(
    context: dg.SensorEvaluationContext, sensor: str, kind: TypeAdapter[dict[str, Value]]
) -> dict[str, Value]:
    """Return the state that the cursor names; empty after a reset of the sensor, and if the store lost the state."""
    cursor = context.cursor or ""
    if cursor.startswith("{"):  # of an earlier version of the project: the state itself
        return _parse(context, kind, cursor, {})
    _, text = _read_slots(context, sensor).get(cursor, ("", None))
    return _parse(context, kind, text, {})


def _parse(context: dg.SensorEvaluationContext, kind: TypeAdapter[Parsed], text: str | None, first: Parsed) -> Parsed:
    """Parse a text; without a text, and with a warning if the text does not fit, return the first values."""
    if not text:
        return first
    try:
        return kind.validate_json(text)
    except ValidationError:
        context.log.warning(f"The cursor {text[:_SHOWN]!r} is not of this sensor, which begins anew.")
        return first


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
