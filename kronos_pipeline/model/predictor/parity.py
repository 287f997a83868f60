"""Checks that a decoder gives the same numbers as the model: it reads weights and does not call the model's modules."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kronos_pipeline.errors import ModelError
from kronos_pipeline.model.decode.decoder import Decoder
from kronos_pipeline.model.decode.generate import Prompts
from kronos_pipeline.model.modules import eval_mode, unwrap_peft
from kronos_pipeline.model.predictor.dataframes import InputError

_BARS = 4
_EXACT, _ROUGH = 1e-3, 0.2
"""Tolerances of logits, in standard deviations: in float32, and if one side is in half precision."""

_EXPECTED_MODULES = "Give upstream's predictor, or one of the same modules, and then its tokenizer"


def check_vocabularies(model: Any, tokenizer: Any) -> None:
    """Check that a predictor and a tokenizer have tokens of the same size.

    Raises:
        InputError: the sizes differ, or an object is no predictor or no tokenizer.
    """
    try:
        sizes = [(part.s1_bits, part.s2_bits) for part in (unwrap_peft(model), tokenizer)]
    except AttributeError as error:
        raise InputError(f"{_EXPECTED_MODULES}: {error}.") from error
    if sizes[0] != sizes[1]:
        raise InputError(f"The model's tokens have {sizes[0]} bits, the tokenizer's {sizes[1]}; give its own one.")


def check_parity(model: nn.Module, tokenizer: nn.Module, precision: str) -> None:
    """Decode one bar after a few random bars, and compare the logits with those of the model's own methods.

    Raises:
        InputError: model and tokenizer do not consist of upstream's modules.
        ModelError: the logits differ.
    """
    try:
        with torch.autocast(next(model.parameters()).device.type, enabled=False):
            pairs = _logits(model, Decoder(model, tokenizer, precision=precision))
    except (AttributeError, TypeError) as error:
        raise InputError(f"{_EXPECTED_MODULES}: {error}.") from error
    weight = next(model.parameters())
    rounded = weight.device.type == "cuda" and torch.backends.cuda.matmul.allow_tf32
    exact = precision == "fp32" and weight.dtype in (torch.float32, torch.float64) and not rounded
    for actual, expected in pairs:
        if bool(((actual - expected).abs() > (_EXACT if exact else _ROUGH) * expected.std()).any()):
            raise ModelError(
                "The model's results do not follow from its weights: it has hooks, or layers of another kind than "
                "upstream's. Take them out, or forecast with upstream's own class."
            )


def _logits(model: Any, decoder: Decoder) -> list[tuple[Tensor, Tensor]]:
    """Return the decoder's and the model's logits of one bar, coarse and fine."""
    core, generator = unwrap_peft(model), torch.Generator().manual_seed(0)
    s1, s2 = (torch.randint(0, 2**bits, (1, _BARS), generator=generator) for bits in (core.s1_bits, core.s2_bits))
    past = torch.ones(1, _BARS, 5, dtype=torch.long)
    actual: list[Tensor] = []

    def pick(logits: Tensor, *_: int) -> Tensor:
        actual.append(logits[0, 0])
        return logits.argmax(dim=-1)

    decoder.generate(Prompts((s1, s2), past, past[:, :1]), pick, paths=1, context=_BARS, s2_position="first")
    with torch.inference_mode(False), torch.no_grad(), eval_mode(model):
        coarse, hidden = model.decode_s1(*(part.to(decoder.device) for part in (s1, s2, past)))
        fine = model.decode_s2(hidden, actual[0].argmax()[None, None].clone())
    return [(actual[0], coarse[0, -1].to(actual[0])), (actual[1], fine[0, -1].to(actual[1]))]
