"""Versions of the code that makes an artifact: hashes of the compiled code, and not of the source text.

A comment, a docstring, an assertion or a line break changes no version. Each kind of artifact depends on the layers
that shape it, so that a change to the scoring, for example, invalidates no trained weights.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import CodeType
from typing import Any

from kronos_pipeline import __version__
from kronos_pipeline.checksums import text_hash

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
    return text_hash(*map(_file_hash, sources))[:12]


@cache
def _file_hash(source: Path) -> str:
    # Code compiled with optimize=2 has no docstrings; compiled code has no comments or other bare strings.
    return _code_hash(compile(source.read_bytes(), "", "exec", dont_inherit=True, optimize=2))


def _code_hash(code: Any) -> str:
    """Return a hash of compiled code: its instructions, names and constants, without line numbers."""
    parts = [code.co_code.hex(), *code.co_names, *code.co_varnames, *code.co_freevars, *code.co_cellvars]
    return text_hash(*parts, *map(_constant, code.co_consts))


def _constant(value: Any) -> str:
    if isinstance(value, CodeType):
        return _code_hash(value)
    if isinstance(value, frozenset):  # the order differs between processes
        return repr(sorted(map(repr, value)))
    return repr(value)
