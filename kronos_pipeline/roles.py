"""Roles of settings: the parts of a result that each setting changes."""

from __future__ import annotations

from enum import Flag, auto
from typing import Any

from pydantic import Field


class Role(Flag):
    """The parts of a result that a setting changes; they decide whether an artifact is reused after a change."""

    BARS = auto()
    """The bars that are read from a CSV."""
    MODEL = auto()
    """The base model."""
    WINDOWS = auto()
    """The training windows."""
    HOLDOUT = auto()
    """The holdout days and their cutoffs."""
    TRAINING = auto()
    """The trained weights."""
    ROUNDING = auto()
    """The last digits of the trained weights."""
    NAME = auto()
    """The artifact's name."""
    SAMPLING = auto()
    """The sampling of forecast paths."""
    FORECAST = auto()
    """The times of forecast bars."""
    EVALUATION = auto()
    """The rivals in the table of predictions."""
    DECISION = auto()
    """The evidence and rule of a promotion."""
    RUN = auto()
    """The execution only, and not the result."""


def setting(default: Any, role: Role, **about: Any) -> Any:
    """Return a settings field with its role; `about` are further arguments of pydantic's `Field`."""
    return Field(default, json_schema_extra={"role": role.value}, **about)
