"""Decoding: from known bars to sampled tokens and back to bars, for many series, paths and adapters at once.

For each next bar the predictor gives the coarse token s1 from the bars before, then the fine token s2 from these and
s1 by a cross-attention. Upstream runs the whole context again for every bar and path; here it is run once per series.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from kronos_pipeline.errors import SettingsError
from kronos_pipeline.model.blocks import CachedBlocks, CachedCross
from kronos_pipeline.model.cached import Span
from kronos_pipeline.model.kept import kept
from kronos_pipeline.model.modules import evaluating, fitting_threads, prepare_rotary
from kronos_pipeline.model.network import Bars, Network

Tokens = tuple[Tensor, Tensor]
"""Coarse and fine tokens, s1 and s2, of equal shape."""

Choose = Callable[[Tensor, int, int], Tensor]
"""Logits (series, paths, vocabulary) in float32, step, and level (0: s1, 1: s2) -> tokens (series, paths)."""

S2_POSITIONS = ("true", "first")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Decoder:
    """A base predictor, or several adapters on it, and their tokenizer, made ready to decode.

    Their modules stay as they are. Weights that change later are not seen; make another decoder then.
    """

    def __init__(self, predictors: Any | Sequence[Any], tokenizer: Any, *, precision: str = "fp32") -> None:
        """Read the weights.

        Args:
            predictors: upstream's predictor or a PEFT model around one; or several that share the base's weights.
            tokenizer: upstream's tokenizer.
            precision: "fp32" or "bf16", of the predictor's blocks. Logits and the tokenizer are always in fp32.

        Raises:
            SettingsError: there is no such precision.
            ModelError: several predictors do not share their weights.
        """
        if precision not in PRECISIONS:
            raise SettingsError(f"Decoding is done in {' or '.join(PRECISIONS)}, not in {precision}; choose one.")
        several: list[Any] = list(predictors) if isinstance(predictors, list | tuple) else [predictors]
        self._network = kept(Network, several, PRECISIONS[precision])
        self._bars = kept(Bars, [tokenizer])
        self._tokenizer, self._threads_for, self.device = tokenizer, several[0], self._network.device

    def encode(self, bars: Tensor, lengths: Tensor | None = None) -> Tokens:
        """Tokens of normalised bars, as upstream's tokenizer gives them.

        Args:
            bars: (series, bars, 6).
            lengths: bars of each series that are there, (series,), the last ones; all by default.

        Returns:
            s1 and s2, (series, bars) each; anything where there is no bar.
        """
        tokenizer, bars = self._tokenizer, bars.to(self.device)
        with torch.no_grad(), evaluating(tokenizer), fitting_threads(tokenizer):
            prepare_rotary(tokenizer, bars.shape[1])
            if lengths is None:
                s1, s2 = tokenizer.encode(bars, half=True)
                return s1, s2
            # The encoder is causal, so what stands behind the bars does not matter: each series begins at place 0.
            place = torch.arange(bars.shape[1], device=self.device)
            missing = bars.shape[1] - lengths.to(self.device)[:, None]
            begun = bars.gather(1, ((place + missing) % len(place))[..., None].expand_as(bars))
            back = (place - missing) % len(place)
            s1, s2 = (level.gather(1, back) for level in tokenizer.encode(begun, half=True))
            return s1, s2

    def generate(
        self,
        known: Tokens,
        past: Tensor,
        ahead: Tensor,
        choose: Choose,
        *,
        paths: int,
        context: int,
        lengths: Tensor | None = None,
        which: Tensor | None = None,
        s2_position: str = "true",
    ) -> Tokens:
        """Continue every series by several paths, bar by bar.

        Args:
            known: s1 and s2 of the bars that are known, (series, bars).
            past: their minute, hour, weekday, day and month, (series, bars, 5).
            ahead: the same of the bars to come, (series, horizon, 5).
            choose: what picks tokens; called for s1 and then for s2 of each step.
            paths: how many futures per series.
            context: bars that the predictor attends to. Where there are more, it sees the last ones, at positions
                from 0 on, as upstream does; every bar is then computed again at each step.
            lengths: bars of each series that are there, (series,), the last ones; all by default.
            which: place of each series' predictor among those that the decoder was made of, (series,); all the first
                by default.
            s2_position: "true": the fine token is asked for at the bar's own position, as in training; "first": as
                upstream's decoding does, with itself and all bars before it at the first position.

        Returns:
            s1 and s2, (series, paths, horizon) each.

        Raises:
            SettingsError: there is no such position.
        """
        if s2_position not in S2_POSITIONS:
            raise SettingsError(f"--s2-position must be true or first, not {s2_position}.")
        with torch.inference_mode(), fitting_threads(self._threads_for):
            run = _Run(self, known, past, ahead, paths, context, lengths, which, s2_position == "true")
            s1, s2 = run.sample(choose)
        return s1.clone(), s2.clone()

    def decode(self, known: Tokens, drawn: Tokens, *, context: int, lengths: Tensor | None = None) -> Tensor:
        """Normalised bars of the futures, by the tokenizer's decoder over the last `context` tokens.

        Args:
            known: s1 and s2 of the bars that are known, (series, bars).
            drawn: s1 and s2 of the futures, (series, paths, horizon).
            context: tokens that the decoder attends to.
            lengths: bars of each series that are there, (series,), the last ones; all by default.

        Returns:
            (series, paths, horizon, 6) in float32.

        Raises:
            SettingsError: the horizon exceeds the context.
        """
        horizon = drawn[0].shape[2]
        if horizon > context:
            raise SettingsError(f"{horizon} bars of horizon exceed the context, {context} bars; lower the horizon.")
        with torch.inference_mode(), fitting_threads(self._threads_for):
            values = self._decode(known, drawn, context, lengths)
        return values.clone()

    def _decode(self, known: Tokens, drawn: Tokens, context: int, lengths: Tensor | None) -> Tensor:
        series, paths, horizon = drawn[0].shape
        start = max(0, known[0].shape[1] + horizon - context)
        known = known[0][:, start:], known[1][:, start:]
        span = _span(known, paths, horizon, lengths)
        blocks = self._bars.blocks.over(span, asked=horizon)
        blocks.over_context(self._bars.embed(self._tokenizer.indices_to_bits(known, half=True)))
        steps = [level.transpose(1, 2).flatten(1) for level in drawn]  # (series, steps * paths)
        hidden = blocks.over_paths(self._bars.embed(self._tokenizer.indices_to_bits(steps, half=True)), 0)
        return self._bars.values(hidden).view(series, horizon, paths, -1).transpose(1, 2)


class _Run:
    """One call of `generate`."""

    def __init__(
        self,
        decoder: Decoder,
        known: Tokens,
        past: Tensor,
        ahead: Tensor,
        paths: int,
        context: int,
        lengths: Tensor | None,
        which: Tensor | None,
        in_place: bool,
    ) -> None:
        self._network, device = decoder._network, decoder.device
        self._paths, self._context, self._in_place = paths, context, in_place
        self._known = known[0].to(device), known[1].to(device)
        self._lengths = None if lengths is None else lengths.to(device)
        self._rows = self._network.rows(None if which is None else which.to(device), len(known[0]))
        self._past, self._ahead = (self._rows.stamps(part.to(device)) for part in (past, ahead))

    def sample(self, choose: Choose) -> Tokens:
        """s1 and s2, (series, paths, horizon)."""
        horizon, bars = self._ahead.shape[1], self._known[0].shape[1]
        drawn: list[Tokens] = []
        for step in range(horizon):
            start = max(0, bars + step - self._context)
            if start or not step:
                steps = step if start else min(horizon - 1, self._context - bars)
                last = self._begin(drawn, start, steps)
            else:
                last = self._go_on(drawn[-1:], step - 1)
            s1 = choose(self._rows.coarse_head(last.float()), step, 0)
            mixed = self._cross.over_paths(self._rows.coarse(s1), last, self._last_step)
            drawn.append((s1, choose(self._rows.fine_head(mixed.float()), step, 1)))
        s1, s2 = (torch.stack(level, dim=-1) for level in zip(*drawn, strict=True))
        return s1, s2

    def _begin(self, drawn: list[Tokens], start: int, steps: int) -> Tensor:
        """Read all bars from `start` on; the hidden states of the last one, (series, paths, model width)."""
        network, which = self._network, self._rows.which
        self._first = max(0, start - self._known[0].shape[1])
        known, drawn = (self._known[0][:, start:], self._known[1][:, start:]), drawn[self._first :]
        span = _span(known, self._paths, max(1, steps - self._first), self._lengths)
        self._blocks: CachedBlocks = network.blocks.over(span, which, asked=max(1, len(drawn)))
        self._cross: CachedCross = network.cross.over(span, which, in_place=self._in_place)
        hidden = network.norm(self._blocks.over_context(self._rows.embed(known) + self._past[:, start:]))
        self._cross.read_context(hidden)
        self._last_step = -1
        return self._go_on(drawn, 0) if drawn else hidden[:, -1:].expand(-1, self._paths, -1)

    def _go_on(self, drawn: list[Tokens], first: int) -> Tensor:
        """Read the paths' steps from `first` of this window on; the hidden states of the last one."""
        steps, paths = len(drawn), self._paths
        tokens = tuple(torch.cat(level, dim=1) for level in zip(*drawn, strict=True))  # (series, steps * paths)
        ahead = self._ahead[:, self._first + first : self._first + first + steps].repeat_interleave(paths, dim=1)
        hidden = self._network.norm(self._blocks.over_paths(self._rows.embed(tokens) + ahead, first))
        self._cross.read_paths(hidden, first)
        self._last_step = first + steps - 1
        return hidden[:, -paths:]


def _span(known: Tokens, paths: int, steps: int, lengths: Tensor | None) -> Span:
    bars = known[0].shape[1]
    if lengths is not None:
        lengths = lengths.to(known[0].device).clamp(max=bars)
        lengths = None if bool((lengths == bars).all()) else lengths
    return Span(bars, paths, steps, lengths)
