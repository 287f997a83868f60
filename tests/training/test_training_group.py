"""What becomes of adapters that train together where something is amiss."""

from contextlib import nullcontext
from types import SimpleNamespace

import torch

from kronos_pipeline.artifacts import ArtifactLayout
from kronos_pipeline.training import passes
from kronos_pipeline.training.state import TrainingState, group_state


def test_a_timing_that_runs_out_of_memory_is_tried_with_half_the_adapters(monkeypatch):
    tried = []

    def seconds(*_, batch_size, **__):
        tried.append(batch_size)
        if batch_size > 16:
            raise torch.OutOfMemoryError("no room")
        return 7.0

    monkeypatch.setattr(passes.plan, "expected_seconds", seconds)
    stacked = SimpleNamespace(serving=lambda *_, **__: nullcontext(), predictor=None)
    recipe, said = SimpleNamespace(batch_size=8, epochs=1, evaluations_per_epoch=1), []
    some = passes.Passes(stacked, torch.device("cpu"), "fp32", 8, said.append)
    assert some.expected_seconds(torch.zeros(3), range(5000), range(10), recipe) == 7.0
    assert tried == [64, 32, 16]
    assert len(said) == 2


def test_a_group_with_other_members_says_who_came_and_who_went(tmp_path):
    layout, said = ArtifactLayout(tmp_path), []
    one, two, three = (TrainingState(layout, f"adapters/{name}", {"rows": name}) for name in ("AA", "BB", "CC"))
    group_state(layout, [one, two], said.append).save({"members": []})
    group_state(layout, [one, three], said.append)
    assert said == ["starting anew: the adapters that train together have changed: CC came, BB went"]
