"""Tokens are drawn as upstream draws them, in batches of any size."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sktime.libs.kronos import sample_from_logits

from kronos_pipeline.errors import ModelError
from kronos_pipeline.model.decode.memory import Part
from kronos_pipeline.model.predictor.sampling import (
    MultinomialPicker,
    Progress,
    SamplingSettings,
    filtered_probabilities,
    generator_for,
)

CPU = torch.device("cpu")
SAMPLING = SamplingSettings(horizon=3, temperature=1.0, top_k=0, top_p=0.9, paths=3)


def logits_of(seed: int, rows: int, vocabulary: int, spread: float = 2.0) -> torch.Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * spread


def drawn(draws: MultinomialPicker, steps: list[torch.Tensor], part: Part) -> torch.Tensor:
    """Return the tokens of a part over all steps and levels, (series, paths, draws)."""
    choose = draws.for_part(part)
    members, paths = part
    tokens = [
        choose(logits[members, paths.start : paths.stop], *divmod(number, 2)) for number, logits in enumerate(steps)
    ]
    return torch.stack(tokens, dim=-1)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    rows=st.integers(1, 40),
    vocabulary=st.sampled_from([2, 3, 16, 1024]),
    spread=st.sampled_from([0.1, 2.0, 20.0]),
    temperature=st.floats(0.05, 5.0),
    top_k=st.integers(-1, 1100),
    top_p=st.one_of(st.floats(0, 1.1), st.just(1.0)),
)
def test_the_tokens_and_the_generators_state_are_upstreams(
    seed: int, rows: int, vocabulary: int, spread: float, temperature: float, top_k: int, top_p: float
) -> None:
    logits = logits_of(seed, rows, vocabulary, spread)
    torch.manual_seed(seed)
    expected = sample_from_logits(logits.clone(), temperature, top_k, top_p)[:, 0]
    after = torch.get_rng_state()

    torch.manual_seed(seed)
    sampling = SamplingSettings(1, temperature, top_k, top_p, 1)
    with generator_for(sampling, CPU) as generator:
        choose = MultinomialPicker(rows, sampling, generator).for_part(([*range(rows)], range(1)))
        tokens = choose(logits[:, None], 0, 0)
    assert torch.equal(tokens[:, 0], expected)
    assert torch.equal(torch.get_rng_state(), after)


@settings(max_examples=40)
@given(data=st.data(), series=st.integers(1, 6), paths=st.integers(1, 4), seed=st.integers(0, 1000))
def test_rows_that_are_sampled_apart_draw_what_they_draw_together(
    data: st.DataObject, series: int, paths: int, seed: int
) -> None:
    steps = [logits_of(seed + number, series * paths, 16).view(series, paths, 16) for number in range(4)]
    generator = torch.Generator().manual_seed(seed)
    draws = MultinomialPicker(series, replace(SAMPLING, paths=paths), generator)
    joint = drawn(draws, steps, ([*range(series)], range(paths)))
    after = generator.get_state()

    owner = torch.tensor(data.draw(st.lists(st.integers(0, 2), min_size=series, max_size=series)))
    cut = data.draw(st.integers(0, paths))
    for part in range(3):
        for path_range in (range(cut), range(cut, paths)):
            members = (owner == part).nonzero().flatten().tolist()
            if members and path_range:
                expected = joint[members, path_range.start : path_range.stop]
                assert torch.equal(drawn(draws, steps, (members, path_range)), expected)
                assert torch.equal(generator.get_state(), after)


def test_what_is_as_likely_as_the_last_token_kept_is_kept_too() -> None:
    logits = torch.tensor([[3.0, 1.0, 1.0, 1.0, -9.0]])
    for top_k, top_p in ((2, 1.0), (0, 0.85)):
        mask = filtered_probabilities(logits, 1.0, top_k, top_p) > 0
        assert mask.tolist() == [[True, True, True, True, False]]


def test_top_k_and_a_tiny_temperature_are_greedy() -> None:
    logits = logits_of(0, 50, 64)
    likeliest = logits.argmax(dim=-1)
    for greedy in ((1.0, 1, 1.0), (1e-4, 0, 1.0), (1.0, 0, 0.0), (1.0, 0, 1e-9)):
        assert torch.equal(filtered_probabilities(logits, *greedy).argmax(dim=-1), likeliest)
        assert (filtered_probabilities(logits, *greedy).max(dim=-1).values > 0.99).all()


def test_logits_that_are_not_finite_are_told() -> None:
    choose = MultinomialPicker(1, SAMPLING, torch.Generator()).for_part(([0], range(1)))
    with pytest.raises(ModelError, match="not finite"):
        choose(torch.full((1, 1, 8), np.nan), 0, 0)


def test_each_bar_that_is_drawn_is_counted_once() -> None:
    counted: list[int] = []

    class Counting(Progress):
        def advance(self, rows: int) -> None:
            counted.append(rows)

    draws = MultinomialPicker(2, SAMPLING, torch.Generator(), Counting(2, SAMPLING))
    choose = draws.for_part(([0, 1], range(3)))
    counted.clear()
    for step in range(3):
        for level in (0, 1):
            choose(torch.zeros(2, 3, 8), step, level)
    assert counted == [6, 6, 6]
