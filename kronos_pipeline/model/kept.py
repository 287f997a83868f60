"""What was made from a model's weights, kept for the next call as long as the model lives and its weights stay.

Packing the weights of a predictor takes as long as sampling some bars with it.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch import Tensor

Made = TypeVar("Made")

_KEPT = 4
"""What is kept at most; a predictor's packed weights take as much memory as the predictor."""

_kept: OrderedDict[tuple[Any, ...], tuple[Any, Any, list[Any]]] = OrderedDict()
_lock = threading.Lock()


def kept(make: Callable[..., Made], modules: Sequence[Any], *settings: Any) -> Made:
    """What `make(modules, *settings)` gives, or gave last time if nothing has changed in the modules since.

    It may hold parts of the modules, not the modules themselves, or they would live as long as it is kept.
    """
    key = make, *map(id, modules), *settings
    now = state(modules)
    with _lock:
        if key in _kept and _kept[key][0] == now:
            _kept.move_to_end(key)
            found: Made = _kept[key][1]
            return found
    made = make(modules, *settings)
    watches = [weakref.ref(module, lambda _: _kept.pop(key, None)) for module in modules]
    with _lock:
        _kept[key] = now, made, watches
        _kept.move_to_end(key)
        while len(_kept) > _KEPT:
            _kept.popitem(last=False)
    return made


def state(modules: Sequence[Any]) -> tuple[Any, ...]:
    """What tells whether some modules' weights, or PEFT's switches in them, have changed.

    A tensor's version counts the changes in place but for those through `.data`, which PEFT's merging makes: so sums of
    the weights, each weighed by its place, take part as well. They cost a reading of the weights, as one sampled bar
    does.
    """
    tensors = {id(tensor): tensor for module in modules for tensor in [*module.parameters(), *module.buffers()]}
    with torch.no_grad():
        sums = torch.stack([_weighted_sum(tensor.detach()) for tensor in tensors.values()]).cpu().numpy().tobytes()
    places = [(tensor.data_ptr(), tensor.device, _version(tensor)) for tensor in tensors.values()]
    switches = [
        (part.merged, part.disable_adapters, tuple(part.active_adapters), tuple(part.scaling.items()))
        for module in modules
        for part in module.modules()
        if hasattr(part, "lora_A")
    ]
    return tuple(places), sums, tuple(switches)


def _weighted_sum(tensor: Tensor) -> Tensor:
    numbers = tensor.flatten().float()
    return torch.dot(numbers, _ramp(len(numbers), tensor.device))


@lru_cache(maxsize=64)
def _ramp(length: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.linspace(1.0, 2.0, length, device=device)


def _version(tensor: Tensor) -> int:
    """How often a tensor was changed in place; inference tensors do not count."""
    return -1 if tensor.is_inference() else tensor._version
