"""Fixtures of the tests of models."""

from __future__ import annotations

from typing import Any

import pytest

from kronos_pipeline.model.decode.decoder import Decoder


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Series and paths of each batch that is decoded."""
    seen: list[tuple[int, int]] = []
    generate = Decoder.generate

    def watched(self: Decoder, known: Any, *given: Any, paths: int, **settings: Any) -> Any:
        seen.append((len(known[0]), paths))
        return generate(self, known, *given, paths=paths, **settings)

    monkeypatch.setattr(Decoder, "generate", watched)
    return seen
