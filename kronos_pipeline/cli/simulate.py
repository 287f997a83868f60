"""`kronos simulate`: write simulated tickers as CSVs."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

from pydantic import Field

from kronos_pipeline.cli.command import Command
from kronos_pipeline.names import Name


class Simulate(Command):
    """Write simulated tickers as CSVs, `<data-dir>/<TICKER>/<TICKER>.csv`; the same flags write the same bytes."""

    data_dir: str = Field("simulated", description="folder for the CSVs [environment: KRONOS_DATA_DIR]")
    tickers: Optional[list[Name]] = Field(
        None, min_length=1, description="symbols (comma-separated); by default the symbols of trainingdata/"
    )
    bars: int = Field(1000, ge=2, description="bars per ticker")
    seed: int = Field(2026, ge=0, description="seed of the bars; a ticker's bars depend on it and on the symbol alone")

    def run(self) -> int:
        """Write the CSVs, and print their paths."""
        from kronos_pipeline.data.simulate import SHIPPED_TICKERS, write_simulated

        tickers = self.tickers or SHIPPED_TICKERS
        paths = write_simulated(Path(self.data_dir), tickers=tickers, bars=self.bars, seed=self.seed)
        print(f"{len(paths)} simulated tickers in {self.data_dir}; they are no market data")
        return 0
