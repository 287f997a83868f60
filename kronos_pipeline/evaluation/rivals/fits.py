"""Fits of volatility models by `arch`: conditions, limits and failures."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from threadpoolctl import ThreadpoolController

from kronos_pipeline.data.bars import FloatArray
from kronos_pipeline.errors import count

if TYPE_CHECKING:
    from arch.univariate.base import ARCHModel

MIN_RETURNS = 200
"""Minimum number of returns of a fit. Below it, the parameters of a GARCH are mostly noise."""
MIN_VALUES = 10
"""Minimum number of distinct moves among the fitted returns."""
MAX_STILL = 0.5
"""Largest share of fitted bars whose close is that of the bar before."""
MAX_ITERATIONS = 200
"""Maximum number of iterations of an optimisation; on 2,000 bars they take less than a second."""
MAX_PERSISTENCE = 1 + 1e-6
"""Largest persistence. At 1, where many fits end, the variance follows a random walk, as that of `ewma`; above 1 it
explodes."""


class FitError(Exception):
    """A model that cannot be fitted or used; its text is a reason that follows a colon."""


def check_returns(returns: FloatArray) -> None:
    """Check that returns can be fitted.

    Args:
        returns: the fitted log returns.

    Raises:
        FitError: there are too few returns, or they take too few values.
    """
    if len(returns) < MIN_RETURNS:
        raise FitError(f"a fit needs {MIN_RETURNS} returns, and there are {len(returns)}")
    moves = np.unique(np.abs(returns[returns != 0]))
    if not len(moves):
        raise FitError(f"the close does not move in {count(len(returns), 'bar')}")
    if len(moves) < MIN_VALUES:
        raise FitError(f"the close moves by only {count(len(moves), 'distinct amount')}")
    if (still := int((returns == 0).sum())) > MAX_STILL * len(returns):
        raise FitError(f"the close does not move in {still:,} of {len(returns):,} bars")


def fit_parameters(model: ARCHModel) -> dict[str, float]:
    """Fit a model of `arch` and return its parameters by name, without a word on the terminal.

    Raises:
        FitError: the optimisation does not converge, fails, or gives a number that is not finite.
    """
    with _quiet_single_thread():
        try:
            result = model.fit(disp="off", show_warning=False, options={"maxiter": MAX_ITERATIONS})
        except (ArithmeticError, ValueError, np.linalg.LinAlgError) as error:
            raise FitError(f"the fit failed ({error})") from error
    if result.convergence_flag:
        raise FitError("the fit did not converge")
    parameters = {str(name): float(value) for name, value in result.params.items()}
    if not np.isfinite(list(parameters.values())).all():
        raise FitError("the fit gave numbers that are not finite")
    return parameters


@contextmanager
def _quiet_single_thread() -> Iterator[None]:
    """Drop warnings of Python and NumPy, and let BLAS use one thread: the sum of several depends on their number.

    `arch` adds filters of warnings of its own, which end with the block.
    """
    with warnings.catch_warnings(), np.errstate(all="ignore"), _thread_pools().limit(limits=1, user_api="blas"):
        warnings.simplefilter("ignore")
        yield


@cache
def _thread_pools() -> ThreadpoolController:
    """Return the controller of the libraries that are loaded when the first model is fitted."""
    return ThreadpoolController()
