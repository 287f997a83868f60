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
from torch.nn import functional as F  # noqa: N812 - its usual name

Made = TypeVar("Made")

_KEPT = 4
"""What is kept at most; a predictor's packed weights take as much memory as the predictor."""

_ROW = 2**10
_AT_ONCE = 2**24
"""Numbers of weights that are copied side by side to be summed."""

_kept: OrderedDict[tuple[Any, ...], tuple[Any, Any, list[Any]]] = OrderedDict()
_lock = threading.Lock()


def cached_weights(make: Callable[..., Made], modules: Sequence[Any], *settings: Any) -> Made:
    """What `make(modules, *settings)` gives, or gave last time if nothing has changed in the modules since.

    It may hold parts of the modules, not the modules themselves, or they would live as long as it is kept.
    """
    key = make, *map(id, modules), *settings
    now = weights_state(modules)
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


def release() -> bool:
    """Drop all that is kept; whether there was something."""
    with _lock:
        some = bool(_kept)
        _kept.clear()
    return some


def weights_state(modules: Sequence[Any]) -> tuple[Any, ...]:
    """What tells whether some modules' weights, or PEFT's switches in them, have changed.

    A tensor's version counts the changes in place but for those through `.data`, which PEFT's merging makes: so sums of
    the weights, each weighed by its place, take part as well. They cost a reading of the weights, as one sampled bar
    does. Memory that several modules share is read once.
    """
    tensors = {id(tensor): tensor for module in modules for tensor in [*module.parameters(), *module.buffers()]}
    memory = {(tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype): tensor for tensor in tensors.values()}
    places = [(tensor.data_ptr(), tensor.device, _version(tensor)) for tensor in tensors.values()]
    switches = [
        (part.merged, part.disable_adapters, tuple(part.active_adapters), tuple(part.scaling.items()))
        for module in modules
        for part in module.modules()
        if hasattr(part, "lora_A")
    ]
    return tuple(places), _weighted_sums(list(memory.values())), tuple(switches)


def _weighted_sums(tensors: Sequence[Tensor]) -> bytes:
    """Sums of `_ROW` numbers each, weighed by their place; few kernels, and one copy to the host."""
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
    """Tensors of one precision and device, up to `_AT_ONCE` numbers together on a GPU; on a CPU each alone."""
    groups: list[list[Tensor]] = []
    size: dict[Any, int] = {}
    last: dict[Any, list[Tensor]] = {}
    for tensor in tensors:
        kind = tensor.dtype, tensor.device
        size[kind] = size.get(kind, 0) + tensor.numel()
        if kind not in last or size[kind] > (_AT_ONCE if tensor.is_cuda else 0):
            last[kind], size[kind] = [], tensor.numel()
            groups.append(last[kind])
        last[kind].append(tensor)
    return groups


@lru_cache(maxsize=8)
def _ramp(device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.linspace(1.0, 2.0, _ROW, device=device)


def _version(tensor: Tensor) -> int:
    """How often a tensor was changed in place; inference tensors do not count."""
    return -1 if tensor.is_inference() else tensor._version
