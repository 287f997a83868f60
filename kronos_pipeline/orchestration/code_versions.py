"""Code versions of assets: a hash of the layers whose sources make one, so that Dagster marks what is outdated."""

from __future__ import annotations

from pathlib import Path

from kronos_pipeline.artifacts import text_hash

_PACKAGE = Path(__file__).resolve().parents[1]


def layers_version(*layers: str) -> str:
    """Twelve hex digits that change with the sources of the named layers, and with nothing else."""
    sources = [source for layer in layers for source in sorted((_PACKAGE / layer).rglob("*.py"))]
    return text_hash(*(source.read_text(encoding="utf-8") for source in sources))[:12]
