"""How many adapters train together, and which.

Groups follow from a device's whole memory, never from what happens to be free, so that the same tickers are grouped in
the same way each time. A pass of a group may be smaller where other processes hold most of the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from kronos_pipeline.config import Recipe
from kronos_pipeline.model.devices import free_memory
from kronos_pipeline.model.modules import inner
from kronos_pipeline.training.adapters import Prepared

_MEMORY_SHARE = 0.45
"""Share of the device's memory for the activations of a pass. While a pass of another shape runs, a CUDA graph keeps
those of the pass that it replays, so they have to fit twice; the rest is for weights and the allocator."""
_FREE_SHARE = 0.9
"""Share of what is free of the memory that a pass may take, where other processes hold more than half of it."""
_LAYER_WIDTHS, _LAYER_INNER, _LOGITS = 20, 6, 8
"""Numbers kept for the backward pass per bar: of each layer in units of its width and of its feed-forward width, and of
the logits in units of the vocabulary. Measured for targets in every layer, with dropout: up to 0.9 of that sum."""
_BYTES = {"fp32": 4, "bf16": 3}
"""Bytes of such a number, on average: norms and losses stay in float32."""
_COPIES = 9
"""Float32 copies of an adapter: weights, gradients, two moments, average, best, and what a step needs beside them."""
_CPU_BARS = 6000
"""Bars per pass on a CPU. Measured on two cores: more make an adapter's share of a pass slower, as caches overflow."""
_CPU_GROUP, _MOST = 16, 256


def adapters_per_pass(
    predictor: Any, width: int, recipe: Recipe, precision: str, device: torch.device, *, shared: bool = False
) -> int:
    """Adapters whose batches the device can take through the predictor at once, at least one.

    Args:
        predictor: the base's.
        width: numbers of one adapter.
        recipe: the settings.
        precision: "fp32" or "bf16".
        device: where they are to train.
        shared: whether to heed what other processes hold of a GPU just now.
    """
    bars = recipe.batch_size * (recipe.used_lookback + recipe.horizon)
    if device.type != "cuda":
        return max(1, _CPU_BARS // bars)
    core = inner(predictor)
    per_bar = core.n_layers * (_LAYER_WIDTHS * core.d_model + _LAYER_INNER * core.ff_dim)
    per_bar += _LOGITS * (2**core.s1_bits + 2**core.s2_bits)
    needed = bars * per_bar * _BYTES[precision] + 4 * _COPIES * width
    memory = _MEMORY_SHARE * torch.cuda.get_device_properties(device).total_memory
    if shared:
        memory = min(memory, _FREE_SHARE * free_memory(device))
    return max(1, int(memory / needed))


def one_by_one(recipe: Recipe, precision: str, processes: int) -> str | None:
    """Why adapters cannot train together, or None where they can."""
    reasons = {
        "float16 scales the loss of all by one number": precision == "fp16",
        "the model is compiled": recipe.torch_compile,
        "several processes share each": processes > 1,
        "the base is trained with each": not recipe.freeze_backbone,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def adapters_together(recipe: Recipe, per_pass: int, device: torch.device) -> int:
    """Adapters of one training, where they can train together."""
    by_memory = min(per_pass, _MOST) if device.type == "cuda" else _CPU_GROUP
    return recipe.adapters_together or by_memory


def groups_of(trainings: Sequence[Prepared], most: int) -> list[list[Prepared]]:
    """Trainings in groups: those of like length together, for one that ends early leaves the others alone.

    Args:
        trainings: what to group.
        most: trainings of one group, at most.
    """
    if most == 1:
        return [[one] for one in trainings]
    alike: dict[tuple[int, int], list[Prepared]] = {}
    for one in sorted(trainings, key=lambda one: one.count("train")):
        alike.setdefault((one.windows[0].lookback, one.windows[0].horizon), []).append(one)
    return [some[first : first + most] for some in alike.values() for first in range(0, len(some), most)]
