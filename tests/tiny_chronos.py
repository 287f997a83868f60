"""A Chronos-2 model of a few thousand random parameters, in its own class and files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

LEVELS = [0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99]


def save_tiny_chronos(folder: Path, seed: int = 0) -> Path:
    """Write a tiny Chronos-2 model with a context of 64 bars, made from its configuration."""
    from chronos import Chronos2Model
    from chronos.chronos2.config import Chronos2CoreConfig

    forecasting: dict[str, Any] = {
        "context_length": 64,
        "input_patch_size": 4,
        "input_patch_stride": 4,
        "output_patch_size": 4,
        "max_output_patches": 4,
        "quantiles": LEVELS,
        "use_reg_token": True,
        "use_arcsinh": True,
    }
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    config = Chronos2CoreConfig(**sizes, chronos_config=forecasting, architectures=["Chronos2Model"])
    torch.manual_seed(seed)
    Chronos2Model(config).save_pretrained(folder, safe_serialization=True)
    return folder
