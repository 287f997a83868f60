"""Is everything that training makes blind to the holdout? Tried, not argued: train again on a holdout of noise.

    real     |---- train ----|- selection -|--- holdout ---|  ->  weights, sampling
    noise    |---- train ----|- selection -|~~~~ noise ~~~~|  ->  weights, sampling      the same seed, the same bytes?

The noise is valid bars at the holdout's own times, all else of them drawn at random. Where a byte differs, something
has read the holdout, and no number measured on it can be believed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kronos_pipeline.artifacts import MANIFEST, ArtifactLayout, file_hash
from kronos_pipeline.config import KronosTrainingConfig
from kronos_pipeline.data.bars import FEATURES, Bars, make_bars
from kronos_pipeline.data.windows import WindowSet, build_windows
from kronos_pipeline.errors import SettingsError
from kronos_pipeline.evaluation.forecasting.batching import ForecastJob, gather_jobs, run_jobs, unwrap
from kronos_pipeline.evaluation.forecasting.candidates import Loader, find_sampling_job, load_candidates, loader
from kronos_pipeline.training.progress import Say

if TYPE_CHECKING:
    from kronos_pipeline.evaluation.forecasting.sampling import Sampling
    from kronos_pipeline.training.trainer import KronosTrainer

_TOLD_OF_THE_DATA = {MANIFEST, "history.csv"}
"""Files beside the weights that no forecast reads, and that are never the same twice: hashes of the data, speeds."""


@dataclass(frozen=True)
class LeakageResult:
    """What two trainings that differ in the holdout alone have made.

    Attributes:
        files: what was compared, by its path below an output folder.
        differing: those of them that are not the same, or that one training alone has made.
        repeatable: whether a training on the same data gives the same bytes here; it is tried where some differ.
    """

    files: tuple[str, ...]
    differing: tuple[str, ...]
    repeatable: bool = True

    @property
    def blind(self) -> bool:
        return not self.differing


def check_leakage(
    windows: Sequence[WindowSet], config: KronosTrainingConfig, folder: Path, *, say: Say
) -> LeakageResult:
    """Train on windows, train on the same with noise in place of each holdout, and compare what came of it.

    Args:
        windows: the tickers', cut with the recipe of `config`.
        config: the settings of the training.
        folder: where the trainings write; what they leave there is the caller's to remove.
        say: takes lines for the person who runs the pipeline.

    Raises:
        SettingsError: this is one of several processes, or see the message.
        DataError, ModelError, ArtifactError: as training and evaluation raise them.
    """
    from kronos_pipeline.training.devices import processes  # imports torch
    from kronos_pipeline.training.trainer import KronosTrainer

    if processes() > 1:
        raise SettingsError("check-blind compares the trainings of one process; start it without torchrun.")
    base = KronosTrainer(config.recipe, folder).base

    def made(name: str, of: Sequence[WindowSet]) -> dict[str, str]:
        trainer = KronosTrainer(config.recipe, folder / name, base=base, say=lambda line: say(f"{name}: {line}"))
        _train(trainer, of, config)
        return _hashes(trainer.layout)

    real = made("real holdout", windows)
    noisy = [build_windows(with_noise(one.bars, one.holdout_start, config.seed), config.recipe) for one in windows]
    noise = made("noise as holdout", noisy)
    differing = _differing(real, noise)
    repeatable = not differing or not _differing(real, made("real holdout again", windows))
    return LeakageResult(tuple(sorted({*real, *noise})), differing, repeatable)


def with_noise(bars: Bars, first: int, seed: int) -> Bars:
    """The same bars up to number `first`, and from there on valid bars of noise at the same times.

    Prices and volumes are independent from bar to bar and as wild as e to the power of a standard normal number, around
    the mean of the bars before.
    """
    rng = np.random.default_rng(seed)
    count = len(bars) - first
    before = dict(zip(FEATURES, bars.values[:first].mean(axis=0), strict=True))
    opened, closed = before["close"] * np.exp(rng.standard_normal((2, count)))
    up, down = np.exp(np.abs(rng.standard_normal((2, count))))
    noise = {"open": opened, "high": np.maximum(opened, closed) * up, "low": np.minimum(opened, closed) / down}
    noise |= {"close": closed, "volume": (before["volume"] or 1.0) * np.exp(rng.standard_normal(count))}
    noise["amount"] = noise["volume"] * sum(noise[name] for name in ("open", "high", "low", "close")) / 4
    frame = bars.frame.copy()
    for name, values in noise.items():
        frame.loc[frame.index[first:], name] = values
    return make_bars(bars.ticker, frame, source=bars.source, time_zone=bars.time_zone, notes=bars.notes)


def _train(trainer: KronosTrainer, windows: Sequence[WindowSet], config: KronosTrainingConfig) -> None:
    """Train what the settings ask for, and fit how each ticker's models are sampled, as the pipeline itself does."""
    from kronos_pipeline.training.single import AdapterJob  # imports torch

    if config.adapter == "none":
        trainer.train_checkpoint(windows)
    elif config.adapter_name is not None:
        trainer.train_adapter(windows, config.adapter_name)
    else:
        for result in trainer.train_adapters([AdapterJob(one.ticker, [one]) for one in windows]):
            unwrap(result)
    load = loader(trainer.base)
    for _, found in run_jobs({one.ticker: _fitting(trainer, one, config, load) for one in windows}):
        unwrap(found)


def _fitting(
    trainer: KronosTrainer, windows: WindowSet, config: KronosTrainingConfig, load: Loader
) -> ForecastJob[Mapping[str, Sampling]]:
    name = config.adapter_name or windows.ticker
    candidates, _ = load_candidates(trainer.layout, trainer.base, windows, name, load)
    fits = {model: find_sampling_job(one, windows, config.recipe) for model, one in candidates.items()}
    return (yield from gather_jobs(fits))


def _hashes(layout: ArtifactLayout) -> dict[str, str]:
    """The hash of every file that a training has made and that a forecast depends on, by its path."""
    hashes = {}
    for link in (*layout.root.glob("adapters/[!.]*"), *layout.root.glob("checkpoints/[!.]*"), layout.base):
        version = link.resolve()  # which has a name of its own at each attempt
        for file in version.rglob("*"):
            if file.is_file() and file.name not in _TOLD_OF_THE_DATA:
                hashes[(link.relative_to(layout.root) / file.relative_to(version)).as_posix()] = file_hash(file)
    return hashes


def _differing(one: Mapping[str, str], other: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(sorted(name for name in {*one, *other} if one.get(name) != other.get(name)))
