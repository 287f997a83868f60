"""The loop over the bars to come.

For each next bar the predictor gives the coarse token s1 from the bars before, then the fine token s2 from these and
s1 by a cross-attention.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kronos_pipeline.model.cached import Lengths, Span, Steps
from kronos_pipeline.model.network import CachedNetwork, Network
from kronos_pipeline.model.replayed import Replayed, keep, take

Tokens = tuple[Tensor, Tensor]
"""Coarse and fine tokens, s1 and s2, of equal shape."""

Choose = Callable[[Tensor, int, int], Tensor]
"""Logits (series, paths, vocabulary) in float32, step, and level (0: s1, 1: s2) -> tokens (series, paths)."""

Fine = Callable[[Tensor], Tensor]
"""Coarse tokens, (series, paths) -> logits of their fine tokens, (series * groups, paths of a group, vocabulary)."""

REPLAYED = ("cuda",)
"""Kinds of devices on which the step from one bar to the next is recorded once and replayed."""


class Run:
    """One call of `Decoder.generate`, whose arguments it takes; `lengths` and `which` are on the host."""

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
        device, (series, bars), horizon = network.device, known[0].shape, ahead.shape[1]
        self._known, self._lengths = (known[0].to(device), known[1].to(device)), Lengths.of(lengths, device)
        self._paths, self._context, self._in_place = paths, context, in_place
        self._steps = min(horizon - 1, context - bars)  # of each path that the context has room for
        self._packed, self._replayed = network, None
        self._replays = device.type in REPLAYED and self._steps > 1
        unequal = self._lengths is not None and self._lengths.shortest < bars
        self._shape = series, paths, bars, horizon, self._steps, in_place, unequal
        places = None if which is None else which.tolist()
        if self._replays and (replayed := take(network, self._shape)) is not None:
            self._replayed, self._rows = replayed, replayed.network.rows
            self._rows.choose(places, series)
        else:
            self._rows = network.rows(places, series)
        self._past, self._ahead = (self._rows.stamps(part.to(device)) for part in (past, ahead))

    def sample(self, choose: Choose) -> Tokens:
        """s1 and s2, (series, paths, horizon)."""
        horizon, bars = self._ahead.shape[1], self._known[0].shape[1]
        drawn: list[Tokens] = []
        for step in range(horizon):
            start = max(0, bars + step - self._context)
            if start or not step:
                coarse, fine = self._begin(drawn, start)
            elif self._replayed is not None:
                coarse, fine = self._replayed.next_coarse(*drawn[-1], step - 1), self._replayed.next_fine
            else:
                at = self._network.span.at(step - 1, 1, self._mask)
                coarse, fine = self._go_on(drawn[-1:], step - 1, at, at)
            s1 = choose(self._network.span.ungroup(coarse, self._paths), step, 0)
            s2 = choose(self._network.span.ungroup(fine(s1), self._paths), step, 1)
            drawn.append((s1, s2))
        if self._replayed is not None:
            keep(self._packed, self._shape, self._replayed)
        s1, s2 = (torch.stack(level, dim=-1) for level in zip(*drawn, strict=True))
        return s1, s2

    def _begin(self, drawn: list[Tokens], start: int) -> tuple[Tensor, Fine]:
        """Read all bars from `start` on, those of the paths included; see `_go_on`."""
        known = self._known[0][:, start:], self._known[1][:, start:]
        first = max(0, start - self._known[0].shape[1])
        drawn, steps = drawn[first:], len(drawn) if start else self._steps
        span = Span.of(known[0].shape[1], self._paths, max(1, steps - first), self._lengths)
        if self._replayed is not None and not start:
            self._network = self._replayed.network
            self._network.begin(span)
            self._replayed.begin(self._ahead)
        else:
            self._network = CachedNetwork(self._rows, span, in_place=self._in_place)
            if self._replays and not start:
                self._replayed = Replayed(self._network, self._ahead)
        network, dtype, device = self._network, self._packed.dtype, self._packed.device
        hidden = network.over_context(known, self._past[:, start:])
        self._mask = span.paths_mask(1, dtype, device)
        at = span.at(len(drawn) - 1, 1, self._mask)
        if drawn:
            whole = span.at(0, len(drawn), span.paths_mask(len(drawn), dtype, device))
            return self._go_on(drawn, first, whole, at)
        last = span.group(hidden[:, -1:].expand(-1, self._paths, -1))
        return self._rows.coarse_head(last.float()), lambda s1: network.fine_logits(span.group(s1), last, at)

    def _go_on(self, drawn: Sequence[Tokens], first: int, whole: Steps, at: Steps) -> tuple[Tensor, Fine]:
        """Read some steps of the paths, `whole`, of which `at` is the last.

        Args:
            drawn: their tokens.
            first: the number of the first one among the bars to come.

        Returns:
            The logits of the next coarse tokens, and the function from these to the logits of their fine tokens.
        """
        network, span = self._network, self._network.span
        s1, s2 = (torch.cat([span.group(one) for one in level], dim=1) for level in zip(*drawn, strict=True))
        ahead = self._ahead[:, first : first + len(drawn)].repeat_interleave(span.groups, dim=0)
        last, coarse = network.over_paths(s1, s2, ahead.repeat_interleave(span.paths, dim=1), whole)
        return coarse, lambda s1: network.fine_logits(span.group(s1), last, at)
