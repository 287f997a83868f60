"""Symbols, names of adapters and texts from outside, checked before they are used, printed or stored.

A symbol or the name of an adapter becomes the name of a file, a partition and a registered model. Every option, setting
and cell that holds such a name is checked here; the texts of all settings are checked for marks that a terminal obeys.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, field_validator

from kronos_pipeline.errors import is_plain_text

NAME = re.compile(r"[A-Za-z0-9^=_][A-Za-z0-9.^=_-]{0,63}")
"""Valid symbols and adapter names: as file names and words of commands, without a slash and a leading dot or dash."""
NAME_RULE = "letters, digits and .-_^= only, without a leading dot or dash, 64 at most"


def checked_name(name: str) -> str:
    """Return a symbol or the name of an adapter unchanged.

    Raises:
        ValueError: it is no valid name.
    """
    if not NAME.fullmatch(name):
        raise ValueError(f"use {NAME_RULE}")
    return name


Name = Annotated[str, AfterValidator(checked_name)]
"""A symbol or the name of an adapter, as the type of a setting."""


class PlainTexts(BaseModel):
    """Settings whose texts are single lines without marks that a terminal obeys."""

    @field_validator("*")
    @classmethod
    def _check_texts(cls, value: Any) -> Any:
        for text in value if isinstance(value, list) else (value,):
            if isinstance(text, str) and not is_plain_text(text):
                raise ValueError(
                    f"{text!r} holds a line break or another character that cannot be printed; leave that out"
                )
        return value
