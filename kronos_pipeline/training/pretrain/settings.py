"""Settings of a pretraining; without torch, so that the command's help loads at once."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class PretrainSettings(BaseModel):
    """Sizes and training of a base model of simulated bars; the defaults make `kronos-nano`."""

    model_config = ConfigDict(extra="forbid")

    lookback: int = Field(64, ge=2, description="bars that normalise a window")
    horizon: int = Field(30, ge=1, description="bars after the lookback in a window")
    context: int = Field(512, ge=4, description="bars that the model is declared to attend to")
    tickers: int = Field(2000, ge=1, description="simulated tickers")
    bars: int = Field(400, ge=8, description="bars per simulated ticker")
    seed: int = Field(0, ge=0, description="seed of the simulated bars, the weights and the order")

    token_bits: int = Field(8, ge=2, le=10, description="bits of each of a bar's two tokens")
    tokenizer_size: int = Field(64, ge=8, multiple_of=8, description="width of the tokenizer")
    tokenizer_layers: int = Field(
        1, ge=1, description="transformer blocks in the tokenizer's encoder, and in its decoder"
    )
    predictor_size: int = Field(96, ge=8, multiple_of=8, description="width of the predictor")
    predictor_layers: int = Field(3, ge=1, description="transformer blocks in the predictor")

    batch_size: int = Field(64, ge=1, description="windows per step")
    tokenizer_steps: int = Field(800, ge=1, description="optimiser steps of the tokenizer")
    predictor_steps: int = Field(1600, ge=1, description="optimiser steps of the predictor")
    learning_rate: float = Field(2e-3, gt=0, description="AdamW's peak learning rate, for both")
