"""Copies of many tensors from a GPU to the host in a few transfers, as each transfer waits for the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_BYTES = 64 * 2**20
"""Bytes of one transfer, approximately; the device needs as many to gather them."""


def to_host(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copy tensors to the host; tensors on the host stay as they are.

    Args:
        tensors: any shapes, types and devices.

    Returns:
        The copies, in the same order; neighbours may share memory.
    """
    copies = list(tensors)
    kinds: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for index, tensor in enumerate(tensors):
        if tensor.device.type == "cuda":
            kinds.setdefault((tensor.device, tensor.dtype), []).append(index)
    for indices in kinds.values():
        for block in _blocks(tensors, indices):
            for index, copy in zip(block, _copy_block([tensors[index].detach() for index in block]), strict=True):
                copies[index] = copy
    return copies


def _copy_block(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copy tensors of one device and type in one transfer; one by one if the device has no room to gather them."""
    try:
        joined = torch.cat([tensor.reshape(-1) for tensor in tensors]).cpu()
    except torch.OutOfMemoryError:
        return [tensor.cpu() for tensor in tensors]
    parts = torch.split(joined, [tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def state_to_host(state: dict[str, Any]) -> dict[str, Any]:
    """Copy a state to the host: dictionaries, lists and tuples of tensors and plain values."""
    tensors: list[Tensor] = []
    _walk(state, tensors.append)
    copies = iter(to_host(tensors))
    copied: dict[str, Any] = _walk(state, lambda _: next(copies))
    return copied


def _walk(value: Any, take: Any) -> Any:
    """Rebuild a state, with `take` of each tensor in its place, in a fixed order."""
    if isinstance(value, Tensor):
        return take(value)
    if isinstance(value, dict):
        return {key: _walk(part, take) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_walk(part, take) for part in value)
    return value


def _blocks(tensors: Sequence[Tensor], indices: Sequence[int]) -> list[list[int]]:
    """Split places of tensors into groups of about `_BYTES`."""
    blocks: list[list[int]] = [[]]
    size = 0
    for index in indices:
        nbytes = tensors[index].numel() * tensors[index].element_size()
        if blocks[-1] and size + nbytes > _BYTES:
            blocks.append([])
            size = 0
        blocks[-1].append(index)
        size += nbytes
    return blocks
