"""Chronos-2 on a CUDA device: the paths of the CPU, up to rounding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from price_walks import FIVE_DAYS, cutoffs, random_walk
from tiny_chronos import save_tiny_chronos

from kronos_pipeline.evaluation.rivals.chronos import load_chronos, sample_chronos

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def test_the_paths_are_those_of_the_cpu(tmp_path: Path) -> None:
    folder, windows = save_tiny_chronos(tmp_path), random_walk(0)
    origins, _ = cutoffs(windows)
    on_cpu, on_cuda = (
        sample_chronos(load_chronos(f"chronos={folder}", torch.device(device)), windows, origins, FIVE_DAYS)
        for device in ("cpu", "cuda")
    )
    np.testing.assert_allclose(on_cuda, on_cpu, rtol=1e-4)
