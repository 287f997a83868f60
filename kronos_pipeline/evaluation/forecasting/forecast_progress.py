"""Progress of the forecasts and scores of many tickers, by sampled bars and by tickers that have ended."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from kronos_pipeline.training.progress import Progress, Say

_TICKER_SECONDS = 2.0
"""Seconds to score and plot a ticker, until the first ticker has ended."""
_UPDATE_SECONDS = 0.1


class ForecastProgress(Progress):
    """Progress of `run_jobs`: the time left is that of the bars to sample and of the tickers to score."""

    def __init__(self, name: str, tickers: int, say: Say = print, *, unit: str = "tickers") -> None:
        super().__init__(name, 1.0, say=say)
        self._unit, self._tickers, self._started, self._ended = unit, tickers, 0, 0
        self._expected = self._sampled = 0
        self._sampling_seconds = self._last_update = 0.0
        self._call_began: float | None = None

    def expect(self, bars: int) -> None:
        """Announce the bars that a ticker needs, at most; tickers without an announcement need as many on average."""
        self._started += 1
        self._expected += bars

    @contextmanager
    def sampling(self, bars: int) -> Iterator[None]:
        """Time a call that samples this number of bars."""
        self._expected, began = max(self._expected, self._sampled + bars), time.monotonic()
        before, self._call_began = self._sampling_seconds, began
        try:
            yield
        finally:
            self._sampling_seconds = before + time.monotonic() - began
            self._call_began = None

    def advance(self, bars: int) -> None:
        """Count sampled bars."""
        self._sampled += bars
        if time.monotonic() - self._last_update >= _UPDATE_SECONDS:
            self._show()

    def end_ticker(self) -> None:
        """Count a ticker that has ended."""
        self._ended += 1
        self._show()

    def _show(self) -> None:
        now = self._last_update = time.monotonic()
        sampling = self._sampling_seconds + (now - self._call_began if self._call_began is not None else 0.0)
        expected = self._expected * self._tickers / self._started if self._started else self._expected
        waiting = self._tickers - self._ended
        bars = max(expected - self._sampled, 0.0) if waiting else 0.0
        per_ticker = (self.seconds - sampling) / self._ended if self._ended else _TICKER_SECONDS
        left = bars * sampling / max(self._sampled, 1) + waiting * per_ticker
        sampled = f"{self._sampled / expected * 100:.0f} % of the paths" if bars and self._sampled else ""
        ended = f"{self._ended}/{self._tickers} {self._unit}" if self._tickers > 1 else ""
        numbers = ", ".join(part for part in (ended, sampled) if part) or "scores and plots"
        self.update(self.seconds, numbers, left=left, total=self.seconds + left)
