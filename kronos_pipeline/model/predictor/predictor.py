"""`KronosPredictor`: a faster replacement of upstream's class of that name, with the same results.

    from kronos_pipeline import KronosPredictor      # in place of upstream's

Constructor, `predict` and `predict_batch` have upstream's arguments and give the results of upstream's class with its
model in eval mode; after the same `torch.manual_seed` also the same sampled numbers, to float tolerance. So decoding
differs from training in the same way as upstream's: a fine token is predicted as if all bars stood at the first
position, and a history longer than the context is normalised before it is cut. `sample` and `sample_batch` return
every path.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from kronos_pipeline.base_models import find_base_model
from kronos_pipeline.data.bars import FEATURES, PRICES
from kronos_pipeline.model.decode.decoder import PRECISIONS
from kronos_pipeline.model.decode.memory import DeviceMover
from kronos_pipeline.model.decode.sample import ModelSet
from kronos_pipeline.model.loading import load_base
from kronos_pipeline.model.predictor.adapters import load_adapters
from kronos_pipeline.model.predictor.dataframes import (
    TIME_FIELDS,
    InputError,
    Series,
    as_integer,
    as_number,
    complete_times,
    paths_to_dataframe,
    read_batch,
    read_series,
    to_dataframe,
    to_units,
)
from kronos_pipeline.model.predictor.parity import check_parity, check_vocabularies
from kronos_pipeline.model.predictor.sampling import SamplingSettings, sample_series


class KronosPredictor:
    """Forecasts DataFrames of bars.

    Examples:
        >>> import pandas as pd
        >>> from kronos_pipeline import KronosPredictor
        >>> predictor = KronosPredictor.from_pretrained("kronos-nano", device="cpu")
        >>> bars = pd.read_csv("trainingdata/AAPL/AAPL.csv").tail(64)
        >>> predictor.predict(bars, horizon=5, sample_count=8, seed=0, verbose=False).shape
        (5, 6)

        With adapters by name, which share the model:

        >>> predictor = KronosPredictor.from_pretrained(  # doctest: +SKIP
        ...     "NeoQuasar/Kronos-small", adapters={"AAPL": "artifacts/adapters/AAPL"}
        ... )
        >>> predictor.predict(bars, horizon=5, adapter="AAPL")  # doctest: +SKIP

    Attributes:
        model: the predictor, on `device`; its mode, train or eval, has no effect and does not change.
        tokenizer: the tokenizer, on `device`.
        device: the given device; by default the first available one of cuda:0, mps and cpu.
        max_context: bars that the predictor attends to.
        clip: the largest size of a normalised value.
        precision: precision of the predictor's blocks, "fp32" or "bf16".
        adapters: predictors by name.
    """

    def __init__(  # noqa: PLR0913  the arguments are upstream's
        self,
        model: Any,
        tokenizer: Any,
        device: Any = None,
        max_context: int = 512,
        clip: float = 5,
        *,
        precision: str = "fp32",
        adapters: Mapping[str, Any] | None = None,
    ) -> None:
        """Move a model to a device and check that the decoder gives its numbers.

        Args:
            model: upstream's predictor, a PEFT model around one, or any object with the same submodules; it is moved to
                the device, and not changed otherwise.
            tokenizer: upstream's tokenizer, or one with the same submodules.
            device: a name, a number or a `torch.device`; by default the first available one of cuda:0, mps and cpu.
            max_context: bars that the predictor attends to, 512 by default; 2048 for Kronos-mini.
            clip: the largest size of a normalised value, 5 by default.
            precision: "fp32" by default; "bf16" is faster on hardware that supports it, and gives other numbers.
            adapters: predictors for single series, by name: PEFT models, or folders of adapters that were trained on
                `model`. Plain LoRA adapters on the same weights are decoded together.

        Raises:
            InputError: the device or the precision does not exist, another argument is of no use, or tokenizer and
                model do not belong together.
            ModelError: the model does not compute as upstream's does, an adapter is damaged or belongs to another
                model, or the device has too little memory.
        """
        self.device = _first_device() if device is None else device
        target_device = _checked_device(self.device)
        check_vocabularies(model, tokenizer)
        if precision not in PRECISIONS:
            raise InputError(f"precision must be {' or '.join(PRECISIONS)}, not {precision!r}.")
        if as_integer("max_context", max_context) < 1:
            raise InputError(f"max_context must be 1 bar or more, not {max_context}.")
        if not as_number("clip", clip) > 0:
            raise InputError(f"clip must be above 0, not {clip}.")
        move = DeviceMover(target_device)
        self.model, self.tokenizer = move(model, "The model"), move(tokenizer, "The tokenizer")
        check_parity(self.model, self.tokenizer, precision)
        self.max_context, self.clip, self.precision = max_context, clip, precision
        self.price_cols, self.vol_col, self.amt_vol = list(PRICES), *FEATURES[4:]
        self.time_cols = list(TIME_FIELDS)
        self.adapters = load_adapters(adapters or {}, self.model, self.tokenizer, move)

    @classmethod
    def from_pretrained(
        cls,
        model_name: str,
        tokenizer_name: str | None = None,
        *,
        device: Any = None,
        precision: str = "fp32",
        adapters: Mapping[str, Any] | None = None,
    ) -> KronosPredictor:
        """Load a base model with its tokenizer, from the Hub at a pinned commit or from local folders.

        Args:
            model_name: `kronos-nano`, a published name such as `NeoQuasar/Kronos-small`, owner/name@commit, or a
                folder.
            tokenizer_name: the same kinds of names; by default the base model's own tokenizer.
            device: as in the constructor.
            precision: as in the constructor.
            adapters: as in the constructor.

        Raises:
            ModelError: the name is unknown, or a file is missing, damaged or cannot be fetched.
            InputError: see the constructor.
        """
        source = find_base_model(str(model_name), tokenizer_name)
        device = _first_device() if device is None else device
        base = load_base(source, _checked_device(device))
        return cls(base.predictor, base.tokenizer, device, source.context, precision=precision, adapters=adapters)

    def predict(  # noqa: PLR0913  the arguments are upstream's
        self,
        df: pd.DataFrame,
        x_timestamp: Any = None,
        y_timestamp: Any = None,
        pred_len: int | None = None,
        T: float = 1.0,  # noqa: N803 - upstream's name
        top_k: int = 0,
        top_p: float = 0.9,
        sample_count: int = 1,
        verbose: bool = True,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        adapter: str | None = None,
        horizon: int | None = None,
    ) -> pd.DataFrame:
        """Forecast one series by the mean of sampled paths.

        Args:
            df: bars, oldest first, with columns open, high, low, close and, optionally, volume and amount. Without
                a volume both are 0; without an amount it is the volume times the mean price.
            x_timestamp: times of the bars: a Series, a DatetimeIndex, an array or a list; by default the
                DatetimeIndex of `df`, or its only column of times.
            y_timestamp: times of the bars to forecast; by default those that follow the weekly schedule of the bars.
            pred_len: number of bars to forecast, at most `max_context`.
            T: temperature, above 0; values below 1 sharpen the distributions, values above 1 flatten them.
            top_k: each token is drawn from this number of the likeliest tokens; 0, the default, is no limit. If it is
                given, `top_p` has no effect.
            top_p: each token is drawn from the likeliest tokens that together have this probability.
            sample_count: number of paths.
            verbose: show the progress on stderr.
            seed: seed of the draws; as after `torch.manual_seed(seed)`, but the global generator does not change.
            generator: generator of the draws, on the model's device; by default the global one.
            adapter: name of the adapter that forecasts; by default `model` forecasts.
            horizon: this project's word for `pred_len`; give one of the two.

        Returns:
            Open, high, low, close, volume and amount, float32, at the times of `y_timestamp`.

        Raises:
            InputError: an argument cannot be forecast from; a ValueError.
            ModelError: the model gives numbers that are not finite.
        """
        pred_len = _bars_ahead(pred_len, horizon)
        sampling = SamplingSettings(pred_len, T, top_k, top_p, sample_count, verbose, seed, generator)
        times = complete_times(df, x_timestamp, y_timestamp, sampling.horizon)
        series = [read_series(df, *times, sampling.horizon, self.clip)]
        return self._means(series, self._sample(series, [adapter], sampling))[0]

    def predict_batch(  # noqa: PLR0913  the arguments are upstream's
        self,
        df_list: Sequence[pd.DataFrame],
        x_timestamp_list: Sequence[Any],
        y_timestamp_list: Sequence[Any],
        pred_len: int,
        T: float = 1.0,  # noqa: N803
        top_k: int = 0,
        top_p: float = 0.9,
        sample_count: int = 1,
        verbose: bool = True,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        adapters: Sequence[str | None] | None = None,
    ) -> list[pd.DataFrame]:
        """Forecast several series of equal or unequal length at once, in parts if the memory is too small.

        The arguments are lists of the arguments of `predict`; `adapters` has a name for each series, or None for the
        model. Up to 4,096 paths in all are drawn as by one call of upstream's class, more as by several calls in turn.
        """
        sampling = SamplingSettings(pred_len, T, top_k, top_p, sample_count, verbose, seed, generator)
        series = read_batch(df_list, x_timestamp_list, y_timestamp_list, sampling.horizon, self.clip)
        return self._means(series, self._sample(series, adapters, sampling))

    def sample(  # noqa: PLR0913  the arguments are upstream's
        self,
        df: pd.DataFrame,
        x_timestamp: Any = None,
        y_timestamp: Any = None,
        pred_len: int | None = None,
        T: float = 1.0,  # noqa: N803
        top_k: int = 0,
        top_p: float = 0.9,
        sample_count: int = 30,
        verbose: bool = True,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        adapter: str | None = None,
        horizon: int | None = None,
    ) -> pd.DataFrame:
        """Sample the paths that `predict` averages, by path and time: `sample(...).loc[3]` is one path."""
        pred_len = _bars_ahead(pred_len, horizon)
        sampling = SamplingSettings(pred_len, T, top_k, top_p, sample_count, verbose, seed, generator)
        times = complete_times(df, x_timestamp, y_timestamp, sampling.horizon)
        series = [read_series(df, *times, sampling.horizon, self.clip)]
        (values,) = self._sample(series, [adapter], sampling)
        return paths_to_dataframe(to_units(values, series[0]), series[0])

    def sample_batch(  # noqa: PLR0913  the arguments are upstream's
        self,
        df_list: Sequence[pd.DataFrame],
        x_timestamp_list: Sequence[Any],
        y_timestamp_list: Sequence[Any],
        pred_len: int,
        T: float = 1.0,  # noqa: N803
        top_k: int = 0,
        top_p: float = 0.9,
        sample_count: int = 30,
        verbose: bool = True,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        adapters: Sequence[str | None] | None = None,
    ) -> list[pd.DataFrame]:
        """Sample the paths that `predict_batch` averages; see `sample`."""
        sampling = SamplingSettings(pred_len, T, top_k, top_p, sample_count, verbose, seed, generator)
        series = read_batch(df_list, x_timestamp_list, y_timestamp_list, sampling.horizon, self.clip)
        values = self._sample(series, adapters, sampling)
        return [paths_to_dataframe(to_units(paths, entry), entry) for paths, entry in zip(values, series, strict=True)]

    def _sample(
        self, series: Sequence[Series], adapters: Sequence[str | None] | None, sampling: SamplingSettings
    ) -> NDArray[np.float32]:
        """Sample normalised bars, (series, paths, horizon, 6)."""
        adapters = [None] * len(series) if adapters is None else adapters
        if isinstance(adapters, str) or len(adapters) != len(series):
            raise InputError(f"adapters must have a name, or None, for each of the {len(series)} series.")
        indices = {None: 0} | {name: index for index, name in enumerate(self.adapters, 1)}
        if unknown := [name for name in adapters if not (name is None or isinstance(name, str)) or name not in indices]:
            known = ", ".join(map(str, self.adapters)) or "none"
            raise InputError(f"There is no adapter {unknown[0]!r}; the predictor was made with {known}.")
        predictors = [self.model, *self.adapters.values()]
        models = ModelSet(predictors, self.tokenizer, self.max_context, self.precision, s2_position="first")
        return sample_series(models, series, np.array([indices[name] for name in adapters], np.intp), sampling)

    @staticmethod
    def _means(series: Sequence[Series], values: NDArray[np.float32]) -> list[pd.DataFrame]:
        means = np.mean(values, axis=1)
        return [to_dataframe(to_units(mean, entry), entry) for mean, entry in zip(means, series, strict=True)]


def _bars_ahead(pred_len: int | None, horizon: int | None) -> int:
    """Return the number of bars to forecast, by either of its names."""
    if pred_len is not None and horizon is not None and pred_len != horizon:
        raise InputError(f"pred_len={pred_len} and horizon={horizon} are the same setting; give one of them.")
    bars = horizon if pred_len is None else pred_len
    if bars is None:
        raise InputError("Give the number of bars to forecast: predict(df, horizon=30).")
    return bars


def _first_device() -> str:
    """Return the default device, chosen as upstream does."""
    if torch.cuda.is_available():
        return "cuda:0"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _checked_device(value: Any) -> torch.device:
    """Return the device of that name; a GPU gets an index."""
    try:
        device = torch.device(value)
    except (RuntimeError, TypeError) as error:
        raise InputError(f"device={value!r} is no device; give cpu, cuda:0 or mps.") from error
    available = {"cuda": (device.index or 0) < torch.cuda.device_count(), "mps": torch.backends.mps.is_available()}
    if not available.get(device.type, True):
        raise InputError(f"device={value!r}: torch finds no such device here; give cpu, or leave it out.")
    return torch.device("cuda", torch.cuda.current_device()) if str(device) == "cuda" else device
