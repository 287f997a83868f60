"""Leakage test: train again with noise in place of the holdout, and compare weights and sampling byte by byte.

    real     |---- train ----|- selection -|--- holdout ---|  ->  weights, sampling
    noise    |---- train ----|- selection -|~~~~ noise ~~~~|  ->  weights, sampling      the same seed, the same bytes?

The noise is random valid bars at the holdout's times. If a byte differs, the training has read the holdout, and no
score on the holdout is valid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kronos_pipeline.artifacts import MANIFEST, ArtifactLayout
from kronos_pipeline.checksums import file_hash
from kronos_pipeline.config import KronosTrainingConfig
from kronos_pipeline.data.bars import FEATURES, Bars, make_bars
from kronos_pipeline.data.windows import WindowSet, build_windows
from kronos_pipeline.errors import SettingsError
from kronos_pipeline.evaluation.forecasting.batching import ForecastJob, gather_jobs, run_jobs, unwrap
from kronos_pipeline.evaluation.forecasting.candidates import TrainedModels, find_sampling_job, load_candidates
from kronos_pipeline.training.plan import plan_trainings
from kronos_pipeline.training.progress import Say

if TYPE_CHECKING:
    from kronos_pipeline.evaluation.forecasting.sampling import Sampling
    from kronos_pipeline.training.trainer import KronosTrainer

_TOLD_OF_THE_DATA = {MANIFEST, "history.csv"}
"""Files beside the weights that no forecast reads and that differ between runs: hashes of the data, speeds."""


@dataclass(frozen=True)
class LeakageResult:
    """Comparison of the files of two trainings that differ only in the holdout.

    Attributes:
        files: the compared files, by path below an output folder.
        differing: the files that differ or that only one training has written.
        repeatable: True if a training on the same data gives the same bytes here; tested if some files differ.
    """

    files: tuple[str, ...]
    differing: tuple[str, ...]
    repeatable: bool = True

    @property
    def blind(self) -> bool:
        """True if no file depends on the holdout."""
        return not self.differing


def check_leakage(
    windows: Sequence[WindowSet], config: KronosTrainingConfig, folder: Path, *, say: Say
) -> LeakageResult:
    """Train on windows, train on the same windows with noise in place of each holdout, and compare the files.

    Args:
        windows: the tickers' windows, cut with the recipe of `config`.
        config: the settings of the training.
        folder: output folder of the trainings; the caller removes it.
        say: prints progress lines.

    Raises:
        SettingsError: this is one of several processes, or see the message.
        DataError, ModelError, ArtifactError: as training and evaluation raise them.
    """
    from kronos_pipeline.training.devices import processes  # imports torch
    from kronos_pipeline.training.trainer import KronosTrainer

    if processes() > 1:
        raise SettingsError("check-blind compares the trainings of one process; start it without torchrun.")
    base = KronosTrainer(config.recipe, folder).base

    def train(name: str, windows: Sequence[WindowSet]) -> dict[str, str]:
        trainer = KronosTrainer(config.recipe, folder / name, base=base, say=lambda line: say(f"{name}: {line}"))
        _train(trainer, windows, config)
        return _hashes(trainer.layout)

    real = train("real holdout", windows)
    noisy = [
        build_windows(with_noise(ticker_windows.bars, ticker_windows.holdout_start, config.seed), config.recipe)
        for ticker_windows in windows
    ]
    noise = train("noise as holdout", noisy)
    differing = _differing(real, noise)
    repeatable = not differing or not _differing(real, train("real holdout again", windows))
    return LeakageResult(tuple(sorted({*real, *noise})), differing, repeatable)


def with_noise(bars: Bars, first: int, seed: int) -> Bars:
    """Replace the bars from number `first` on by random valid bars at the same times.

    Prices and volumes are independent from bar to bar, and log-normal with deviation 1 around the mean of the bars
    before.
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
    """Train the models of the settings and fit the sampling of each ticker's models, as the pipeline does."""
    for result in trainer.train(plan_trainings(config, windows)):
        unwrap(result)
    models = TrainedModels(trainer.layout, trainer.base)
    jobs = {ticker_windows.ticker: _fit_samplings_job(models, ticker_windows, config) for ticker_windows in windows}
    for _, samplings in run_jobs(jobs):
        unwrap(samplings)


def _fit_samplings_job(
    models: TrainedModels, windows: WindowSet, config: KronosTrainingConfig
) -> ForecastJob[Mapping[str, Sampling]]:
    name = config.adapter_name or windows.ticker
    candidates, _ = load_candidates(models, windows, name)
    fits = {model: find_sampling_job(candidate, windows, config.recipe) for model, candidate in candidates.items()}
    return (yield from gather_jobs(fits))


def _hashes(layout: ArtifactLayout) -> dict[str, str]:
    """Return the hash of every file of a training that a forecast depends on, by path."""
    hashes = {}
    for link in (*layout.root.glob("adapters/[!.]*"), *layout.root.glob("checkpoints/[!.]*"), layout.base):
        version = link.resolve()  # its name differs between runs
        for file in version.rglob("*"):
            if file.is_file() and file.name not in _TOLD_OF_THE_DATA:
                hashes[(link.relative_to(layout.root) / file.relative_to(version)).as_posix()] = file_hash(file)
    return hashes


def _differing(hashes: Mapping[str, str], others: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(sorted(name for name in {*hashes, *others} if hashes.get(name) != others.get(name)))
