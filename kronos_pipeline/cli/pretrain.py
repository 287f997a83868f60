"""`kronos pretrain`: make a small base model from simulated bars."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from kronos_pipeline.cli.command import Command
from kronos_pipeline.training.pretrain.settings import PretrainSettings


class Pretrain(Command, PretrainSettings):
    """Make a small base model from simulated bars: the tokenizer first, then the predictor.

    It is no forecaster of real markets; kronos-nano was made so.
    """

    output: str = Field("nano", description="folder that gets tokenizer/ and predictor/")

    def run(self) -> int:
        """Make the base model and write it."""
        from kronos_pipeline.training.pretrain.run import pretrain

        pretrain(Path(self.output), PretrainSettings.model_validate(self.model_dump(exclude={"output"})))
        print(f"base model {self.output}: use it as --model-name {self.output}")
        return 0
