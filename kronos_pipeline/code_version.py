"""Versions of the code that makes an artifact: hashes of what the code does, not of how it is written down.

A comment, a docstring, an assertion or a line break changes no version. Each kind of artifact follows the layers that
shape it, so that a change to the scoring, say, throws no trained weights away.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import CodeType
from typing import Any

from kronos_pipeline import __version__
from kronos_pipeline.artifacts import text_hash

BARS = ("data",)
"""Layers that shape bars."""
WEIGHTS = ("data", "model", "training")
"""Layers that shape trained weights."""
PREDICTIONS = (*WEIGHTS, "evaluation")
"""Layers that shape the predictions of a backtest."""

_PACKAGE = Path(__file__).parent


def code_version() -> str:
    """Return the project's version and a hash of all of its code, for manifests."""
    return f"{__version__}+{layers_version()}"


@cache
def layers_version(*layers: str, package: Path = _PACKAGE) -> str:
    """Return a hash of the code of some layers, twelve hex digits; of the whole package by default.

    Args:
        layers: folders of the package.
        package: the package's folder.
    """
    folders = [package / layer for layer in layers] or [package]
    sources = [source for folder in folders for source in sorted(folder.rglob("*.py"))]
    # Optimised, compiled code has no docstrings; comments and texts that stand alone it never has.
    compiled = (compile(source.read_bytes(), "", "exec", dont_inherit=True, optimize=2) for source in sources)
    return text_hash(*map(_meaning, compiled))[:12]


def _meaning(code: Any) -> str:
    """Return what compiled code does, as a text: its instructions, names and constants, but not its lines."""
    parts = [code.co_code.hex(), *code.co_names, *code.co_varnames, *code.co_freevars, *code.co_cellvars]
    return text_hash(*parts, *map(_constant, code.co_consts))


def _constant(value: Any) -> str:
    if isinstance(value, CodeType):
        return _meaning(value)
    if isinstance(value, frozenset):  # in an order that differs from process to process
        return repr(sorted(map(repr, value)))
    return repr(value)
