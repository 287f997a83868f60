"""Functions of the project that record their calls and do their work as before."""

from __future__ import annotations

from typing import Any

import pytest


def record_calls(monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> list[tuple[Any, ...]]:
    """Record the positional arguments of each call of a function, in a list that grows with the calls."""
    function, calls = getattr(owner, name), list[tuple[Any, ...]]()

    def recorded(*arguments: Any, **settings: Any) -> Any:
        calls.append(arguments)
        return function(*arguments, **settings)

    monkeypatch.setattr(owner, name, recorded)
    return calls
