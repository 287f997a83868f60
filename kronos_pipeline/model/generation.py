"""The loop over the bars to come.

For each next bar the predictor gives the coarse token s1 from the bars before, then the fine token s2 from these and
s1 by a cross-attention.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kronos_pipeline.model.blocks import CachedBlocks, CachedCross
from kronos_pipeline.model.cached import Span, Steps
from kronos_pipeline.model.network import Network
from kronos_pipeline.model.replayed import Moving, Replays, plainly

Tokens = tuple[Tensor, Tensor]
"""Coarse and fine tokens, s1 and s2, of equal shape."""

Choose = Callable[[Tensor, int, int], Tensor]
"""Logits (series, paths, vocabulary) in float32, step, and level (0: s1, 1: s2) -> tokens (series, paths)."""

REPLAYED = ("cuda",)
"""Kinds of devices on which the step from one bar to the next is recorded once and replayed."""


class Run:
    """One call of `Decoder.generate`, whose arguments it takes."""

    def __init__(
        self,
        network: Network,
        known: Tokens,
        past: Tensor,
        ahead: Tensor,
        paths: int,
        context: int,
        lengths: Tensor | None,
        which: Tensor | None,
        in_place: bool,
    ) -> None:
        self._network, device = network, network.device
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
                at, last, coarse = self._begin(drawn, start, steps)
            else:
                at = self._place(step - 1)
                last, coarse = self._call(self._go_on, *self._grouped(drawn[-1:], step - 1), at)
            s1 = choose(self._span.ungroup(coarse, self._paths), step, 0)
            fine = self._call(self._ask, self._span.group(s1), last, at)
            s2 = choose(self._span.ungroup(fine, self._paths), step, 1)
            drawn.append((s1, s2))
        s1, s2 = (torch.stack(level, dim=-1) for level in zip(*drawn, strict=True))
        return s1, s2

    def _begin(self, drawn: list[Tokens], start: int, steps: int) -> tuple[Steps, Tensor, Tensor]:
        """Read all bars from `start` on; where each path's last one stands, and of it what `_go_on` gives."""
        network, which, context = self._network, self._rows.which, (level[:, start:] for level in self._known)
        known = next(context), next(context)
        first = max(0, start - self._known[0].shape[1])
        drawn, self._span = drawn[first:], Span.of(known[0].shape[1], self._paths, max(1, steps - first), self._lengths)
        span, mask = self._span, self._span.paths_mask(1, network.dtype, network.device)
        self._blocks: CachedBlocks = network.blocks.over(span, which)
        self._cross: CachedCross = network.cross.over(span, which, in_place=self._in_place)
        hidden = network.norm(self._blocks.over_context(self._rows.embed(known) + self._past[:, start:]))
        self._cross.read_context(hidden)
        unmoved = network.device.type not in REPLAYED or start or steps < 2
        self._place = (lambda step: span.at(step, 1, mask)) if unmoved else Moving(span, mask).to
        self._call = plainly if unmoved else Replays()
        at = span.at(len(drawn) - 1, 1, mask)
        if drawn:
            whole = span.at(0, len(drawn), span.paths_mask(len(drawn), network.dtype, network.device))
            return at, *self._go_on(*self._grouped(drawn, first), whole)
        last = span.group(hidden[:, -1:].expand(-1, self._paths, -1))
        return at, last, self._rows.coarse_head(last.float())

    def _grouped(self, drawn: Sequence[Tokens], first: int) -> tuple[Tensor, Tensor, Tensor]:
        """s1, s2 and stamps of some steps from `first` on, (series * groups, steps * paths, ...)."""
        span = self._span
        s1, s2 = (torch.cat([span.group(one) for one in level], dim=1) for level in zip(*drawn, strict=True))
        ahead = self._ahead[:, first : first + len(drawn)].repeat_interleave(span.groups, dim=0)
        return s1, s2, ahead.repeat_interleave(span.paths, dim=1)

    def _go_on(self, s1: Tensor, s2: Tensor, ahead: Tensor, steps: Steps) -> tuple[Tensor, Tensor]:
        """Read some steps of the paths.

        Returns:
            The hidden states of the last one, (series * groups, paths of a group, model width), and the logits of what
            comes after it, (series * groups, paths of a group, vocabulary).
        """
        hidden = self._network.norm(self._blocks.over_paths(self._rows.embed((s1, s2)) + ahead, steps))
        self._cross.read_paths(hidden, steps)
        last = hidden[:, -self._span.paths :]
        return last, self._rows.coarse_head(last.float())

    def _ask(self, s1: Tensor, last: Tensor, step: Steps) -> Tensor:
        """The logits of the fine token that goes with s1, (series * groups, paths of a group, vocabulary)."""
        return self._rows.fine_head(self._cross.over_paths(self._rows.coarse(s1), last, step).float())
