"""Cache of packed weights, keyed by model and weight checksum.

Packing the weights of a predictor takes as long as sampling some bars with it. An entry is dropped when its model is
freed or its weights change.
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
from torch.nn import functional as F  # noqa: N812 - its usual name

T = TypeVar("T")

_CAPACITY = 4
"""Largest number of entries; packed weights take as much memory as the predictor."""

_ROW = 2**10
_CHECKSUM_CHUNK = 2**24
"""Largest number of weights that are copied side by side for one checksum."""

_cache: OrderedDict[tuple[Any, ...], tuple[Any, Any, list[Any]]] = OrderedDict()
_lock = threading.Lock()


def cached_weights(make: Callable[..., T], modules: Sequence[Any], *settings: Any) -> T:
    """Return `make(modules, *settings)`, cached as long as the modules do not change.

    The result may hold tensors or submodules of the modules, but not the modules: the cache would keep them alive.
    """
    key = make, *map(id, modules), *settings
    state = weights_state(modules)
    with _lock:
        if key in _cache and _cache[key][0] == state:
            _cache.move_to_end(key)
            cached: T = _cache[key][1]
            return cached
    value = make(modules, *settings)
    references = [weakref.ref(module, lambda _: _cache.pop(key, None)) for module in modules]
    with _lock:
        _cache[key] = state, value, references
        _cache.move_to_end(key)
        while len(_cache) > _CAPACITY:
            _cache.popitem(last=False)
    return value


def release_weights() -> bool:
    """Empty the cache; return whether it held any weights."""
    with _lock:
        had_entries = bool(_cache)
        _cache.clear()
    return had_entries


def weights_state(modules: Sequence[Any]) -> tuple[Any, ...]:
    """Return a value that changes if the weights of the modules, or PEFT's switches in them, change.

    The version of a tensor counts changes in place, except those through `.data`, which PEFT's merging makes. So
    checksums of the weights, sums weighted by position, are part of the state. They cost one read of the weights, as
    one sampled bar does. Memory that several modules share is read once.
    """
    tensors = {id(tensor): tensor for module in modules for tensor in [*module.parameters(), *module.buffers()]}
    memory = {(tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype): tensor for tensor in tensors.values()}
    states = [(tensor.data_ptr(), tensor.device, _version(tensor)) for tensor in tensors.values()]
    switches = [
        (part.merged, part.disable_adapters, tuple(part.active_adapters), tuple(part.scaling.items()))
        for module in modules
        for part in module.modules()
        if hasattr(part, "lora_A")
    ]
    return tuple(states), _weighted_sums(list(memory.values())), tuple(switches)


def _weighted_sums(tensors: Sequence[Tensor]) -> bytes:
    """Sum `_ROW` weights each, weighted by position, with few kernels and one copy to the host."""
    with torch.no_grad():
        sums = []
        for group in _groups(tensors):
            parts = [tensor.detach().flatten() for tensor in group]
            numbers = (torch.cat(parts) if len(parts) > 1 else parts[0]).float()
            if len(numbers) % _ROW:
                numbers = F.pad(numbers, (0, -len(numbers) % _ROW))
            sums.append(numbers.view(-1, _ROW) @ _ramp(numbers.device))
        return torch.cat(sums).cpu().numpy().tobytes() if sums else b""


def _groups(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Group tensors of one precision and device: up to `_CHECKSUM_CHUNK` numbers on a GPU, one tensor on a CPU."""
    groups: list[list[Tensor]] = []
    size: dict[Any, int] = {}
    last: dict[Any, list[Tensor]] = {}
    for tensor in tensors:
        kind = tensor.dtype, tensor.device
        size[kind] = size.get(kind, 0) + tensor.numel()
        if kind not in last or size[kind] > (_CHECKSUM_CHUNK if tensor.is_cuda else 0):
            last[kind], size[kind] = [], tensor.numel()
            groups.append(last[kind])
        last[kind].append(tensor)
    return groups


@lru_cache(maxsize=8)
def _ramp(device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.linspace(1.0, 2.0, _ROW, device=device)


def _version(tensor: Tensor) -> int:
    """Return how often a tensor was changed in place; -1 for inference tensors, which have no counter."""
    return -1 if tensor.is_inference() else tensor._version
