"""The state of the generators that a training draws from, to be saved with it."""

from __future__ import annotations

import torch


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """The states of PyTorch's generators: the processor's, and the device's own."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    if device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def restore_random_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    """Put those states back."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
    if "mps" in state:
        torch.mps.set_rng_state(state["mps"])
