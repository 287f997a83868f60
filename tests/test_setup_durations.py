"""The `slow` marks, which `make check` goes by, rest on the recorded durations."""

from __future__ import annotations

import pytest
from recorded_durations import SLOW, function_of, is_defined, load_durations


def test_a_test_that_was_recorded_as_slow_is_marked_so(request: pytest.FixtureRequest) -> None:
    durations = load_durations()
    fast = {function_of(item.nodeid) for item in request.session.items if item.get_closest_marker("slow") is None}
    unmarked = {name: durations[name] for name in fast if durations.get(name, 0.0) > SLOW}
    assert not unmarked, "mark these tests slow, or make them faster and run `make durations`"


def test_a_recorded_test_exists() -> None:
    missing = [name for name in load_durations() if not is_defined(name)]
    assert not missing, "run `make durations`"
