"""Measures of the variance of a bar, in squared log price, from the prices of the bars.

    close before |-- overnight --| open |---- within the bar: high, low, close ----|

All are estimates of one number, the variance of the log change from the close before to the close. The squared return
is unbiased and very noisy; range measures use the path within the bar and have a variance several times smaller.
"""

from __future__ import annotations

import numpy as np

from kronos_pipeline.data.bars import FEATURES, FloatArray

_OPEN, _HIGH, _LOW, _CLOSE = (FEATURES.index(price) for price in ("open", "high", "low", "close"))


def log_returns(close: FloatArray) -> FloatArray:
    """Return the log change of each close from the close before, `(bars - 1,)`; item k belongs to bar k + 1."""
    changes: FloatArray = np.log(close[1:] / close[:-1])
    return changes


def squared_returns(close: FloatArray) -> FloatArray:
    """Return the squared log change of each close from the close before, `(bars,)`; NaN for the first bar."""
    return _with_first_bar(log_returns(close) ** 2)


def garman_klass(values: FloatArray) -> FloatArray:
    """Return the variance within each bar, `(bars,)`: 0.5 ln(H/L)^2 - (2 ln 2 - 1) ln(C/O)^2.

    Garman and Klass, On the estimation of security price volatilities from historical data, Journal of Business 53
    (1980): the practical estimator for a diffusion without drift. It is 0 or more, as |ln(C/O)| <= ln(H/L).

    Args:
        values: features of valid bars, `(bars, 6)`.
    """
    high_low = np.log(values[:, _HIGH] / values[:, _LOW])
    open_close = np.log(values[:, _CLOSE] / values[:, _OPEN])
    variance: FloatArray = np.maximum(0.5 * high_low**2 - (2 * np.log(2) - 1) * open_close**2, 0.0)
    return variance


def range_variance(values: FloatArray) -> FloatArray:
    """Return the squared log change from the close before to the open, plus `garman_klass`, `(bars,)`.

    The sum covers the same time as the squared return. NaN for the first bar.

    Args:
        values: features of valid bars, `(bars, 6)`.
    """
    overnight = np.log(values[1:, _OPEN] / values[:-1, _CLOSE]) ** 2
    return _with_first_bar(overnight + garman_klass(values)[1:])


def _with_first_bar(values: FloatArray) -> FloatArray:
    return np.concatenate([[np.nan], values])
