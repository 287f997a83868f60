"""The settings that take a text, and the place of a hostile text in each."""

from __future__ import annotations

import typing

TEXTS_OF_SETTINGS = {
    "adapter_targets": "{}",
    "calendars": "{}=XNYS",
    "columns": "close={}",
    "data_dir": "{}",
    "device": "{}",
    "drop_bad_rows": "{}",
    "from_date": "{}=2001-01-01",
    "model_name": "{}",
    "output_dir": "{}",
    "rivals": "chronos={}",
    "tokenizer_name": "{}",
}
"""Settings of commands and of runs that are texts, but names; each with the place of a free text in it."""


def takes_text(annotation: object) -> bool:
    """Return whether a type of a setting has a text in it."""
    if typing.get_origin(annotation) is typing.Literal:
        return False
    return annotation is str or any(map(takes_text, typing.get_args(annotation)))
