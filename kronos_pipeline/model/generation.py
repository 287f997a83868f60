"""The loop over the bars to come.

For each next bar the predictor gives the coarse token s1 from the bars before, then the fine token s2 from these and
s1 by a cross-attention.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kronos_pipeline.model.blocks import CachedBlocks, CachedCross
from kronos_pipeline.model.cached import Span
from kronos_pipeline.model.network import Network
from kronos_pipeline.model.packed import RowProduct

Tokens = tuple[Tensor, Tensor]
"""Coarse and fine tokens, s1 and s2, of equal shape."""

Choose = Callable[[Tensor, int, int], Tensor]
"""Logits (series, paths, vocabulary) in float32, step, and level (0: s1, 1: s2) -> tokens (series, paths)."""


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
                last = self._begin(drawn, start, steps)
            else:
                last = self._go_on(drawn[-1:], step - 1)
            span = self._span
            s1 = choose(self._logits(self._rows.coarse_head, last), step, 0)
            mixed = self._cross.over_paths(self._rows.coarse(span.group(s1)), last, self._last_step)
            s2 = choose(self._logits(self._rows.fine_head, mixed), step, 1)
            drawn.append((s1, s2))
        s1, s2 = (torch.stack(level, dim=-1) for level in zip(*drawn, strict=True))
        return s1, s2

    def _begin(self, drawn: list[Tokens], start: int, steps: int) -> Tensor:
        """Read all bars from `start` on; the hidden states of each path's last one, as `_go_on` gives them."""
        network, which = self._network, self._rows.which
        self._first = max(0, start - self._known[0].shape[1])
        known, drawn = (self._known[0][:, start:], self._known[1][:, start:]), drawn[self._first :]
        span = Span.of(known[0].shape[1], self._paths, max(1, steps - self._first), self._lengths)
        self._span, self._last_step = span, -1
        self._blocks: CachedBlocks = network.blocks.over(span, which, asked=max(1, len(drawn)))
        self._cross: CachedCross = network.cross.over(span, which, in_place=self._in_place)
        hidden = network.norm(self._blocks.over_context(self._rows.embed(known) + self._past[:, start:]))
        self._cross.read_context(hidden)
        return self._go_on(drawn, 0) if drawn else span.group(hidden[:, -1:].expand(-1, self._paths, -1))

    def _go_on(self, drawn: list[Tokens], first: int) -> Tensor:
        """Read the paths' steps from `first` of this window on.

        Returns:
            The hidden states of the last one, (series * groups, paths of a group, model width).
        """
        steps, span = len(drawn), self._span
        tokens = [torch.cat([span.group(one) for one in level], dim=1) for level in zip(*drawn, strict=True)]
        ahead = self._ahead[:, self._first + first : self._first + first + steps]
        ahead = ahead.repeat_interleave(span.groups, dim=0).repeat_interleave(span.paths, dim=1)
        hidden = self._network.norm(self._blocks.over_paths(self._rows.embed(tokens) + ahead, first))
        self._cross.read_paths(hidden, first)
        self._last_step = first + steps - 1
        return hidden[:, -span.paths :]

    def _logits(self, head: RowProduct, hidden: Tensor) -> Tensor:
        """(series, paths, vocabulary) in float32."""
        return self._span.ungroup(head(hidden.float()), self._paths)
