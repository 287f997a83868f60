"""Minimum of arithmetic and memory traffic of a task by formula, and its shortest time at a machine's limits.

**A row through a stack of blocks.** A linear map of `in` to `out` multiplies each of its in x out weights once per row.
With width d, feed-forward width f and L blocks, a block has four maps d x d (query, key, value, output) and three of
d x f, so L (4 d^2 + 3 d f) weights. Around the predictor's blocks there are the fusion of the two token halves (2 d^2),
the cross-attention of the s2 head (4 d^2) and the two heads (d V each, V = 2^bits). A multiply-add counts as two
operations, so a row costs two operations per weight. Norms, softmax, rotary embeddings and the drawing of tokens are
left out: they are a few operations per number.

**Attention.** A query against n keys of width d takes n d multiply-adds for the scores and n d for the mixture: 4 n d
operations. A causal context of C bars attends to (C + 1) / 2 keys on average.

**Traffic.** A step reads each weight once, whatever the number of rows. It also reads the cached keys and values: 2 d
numbers per bar and block, once for all paths that share a context. Activations stay in the processor's cache and are
left out. A model that fits into that cache with all its weights can beat this floor.

**The floor.** A program needs at least the time of its bytes at the memory's speed, and the time of its operations at
the processor's speed. The phases of a sampling cannot overlap, because each bar needs the bar before, so its floor is
the sum over the phases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from speed.machine import Machine
from speed.models import Pair, Size
from speed.sheets import peaks
from speed.table import number, percent

_FEATURES = 6
_BYTES = {"fp32": 4, "bf16": 2}


@dataclass(frozen=True)
class Work:
    """Minimum of floating-point operations and of bytes read in one phase."""

    flop: float
    bytes: float

    def seconds(self, machine: Machine, precision: str) -> float:
        """Return the shortest time of the phase on a machine, in seconds."""
        return max(self.flop / machine.flops[precision], self.bytes / machine.bandwidth)


def floor(phases: Sequence[Work], machine: Machine, precision: str) -> float:
    """Return the shortest time of consecutive phases, in seconds."""
    return sum(phase.seconds(machine, precision) for phase in phases)


def total(phases: Sequence[Work]) -> Work:
    """Sum phases."""
    return Work(sum(phase.flop for phase in phases), sum(phase.bytes for phase in phases))


REACHED = ("GFLOP/s", "of the products", "GB/s", "of the memory")
"""Columns of `reached`."""


def reached(work: Work, seconds: float, machine: Machine, precision: str) -> list[str]:
    """Return the cells of `REACHED`: the rates of a work in a time, and their shares of the machine's limits.

    A share is of the measured limit, and of the data sheet's peak if the card and the number format are known.
    """
    flops, bandwidth, sheet = work.flop / seconds, work.bytes / seconds, peaks(machine.name)

    def share(rate: float, measured: float, promised: float | None) -> str:
        text = percent(rate / measured)
        return text if promised is None else f"{text}, sheet {percent(rate / promised)}"

    return [
        number(flops / 1e9),
        share(flops, machine.flops[precision], None if sheet is None else sheet.flops.get(precision)),
        number(bandwidth / 1e9),
        share(bandwidth, machine.bandwidth, None if sheet is None else sheet.bandwidth),
    ]


def block_weights(size: Size) -> int:
    """Count the weights of the linear maps of all blocks: L (4 d^2 + 3 d f)."""
    return size.layers * (4 * size.width**2 + 3 * size.width * size.feed_forward)


def cached_sampling(
    pair: Pair, series: int, paths: int, bars: int, horizon: int, precision: str = "fp32"
) -> list[Work]:
    """Return the phases of a sampling that reads the context once: encode, context, each step, decode.

    The heads run at the last bar alone; the s2 head's keys and values are computed for every bar of the context.
    """
    predictor, element = pair.predictor, _BYTES[precision]
    width, rows = predictor.width, series * paths
    heads = 2 * 2**predictor.bits * width
    # The fusion (2 d^2) and the cross-attention's keys and values (2 d^2) of each bar; its query and output per draw.
    per_bar, per_draw = block_weights(predictor) + 4 * width**2, 2 * width**2 + heads
    cached = 2 * width * (predictor.layers + 1)  # keys and values of a bar, the cross-attention's included
    attended = 4 * width * predictor.layers
    context = Work(
        series * bars * (2 * per_bar + attended * (bars + 1) / 2) + rows * (2 * per_draw + 4 * width * bars),
        element * (per_bar + per_draw),
    )
    steps = [
        Work(
            rows * (2 * (per_bar + per_draw) + (attended + 4 * width) * (bars + step)),
            element * (per_bar + per_draw + series * cached * (bars + paths * step)),
        )
        for step in range(1, horizon)
    ]
    return [*_encode(pair, series, bars), context, *steps, _decode(pair, series, bars, rows, horizon)]


def repeated_sampling(pair: Pair, series: int, paths: int, bars: int, horizon: int) -> list[Work]:
    """Return the phases of upstream's sampling.

    Upstream encodes every path. Every step reads its whole context and runs both heads at every bar of it; the s2
    head's query is one row.
    """
    predictor = pair.predictor
    width, rows = predictor.width, series * paths
    head = 2**predictor.bits * width
    per_bar = block_weights(predictor) + 4 * width**2 + head
    per_row = 2 * width**2
    steps = []
    for known in range(bars, bars + horizon):
        attended = 4 * width * (predictor.layers * (known + 1) / 2 + 1)
        # s2: the norm's input is every bar plus the attention output of one row, so its head runs at every bar as well.
        flop = rows * (known * (2 * (per_bar + head) + attended) + 2 * per_row)
        steps.append(Work(flop, 4 * (per_bar + head + per_row)))
    return [*_encode(pair, rows, bars), *steps, _decode(pair, rows, bars, 0, horizon, repeated=True)]


def training(pair: Pair, windows: int, bars: int, targets: int, *, frozen: bool = False) -> Work:
    """Return the work of a training step: a forward pass and a backward pass.

    The backward pass computes gradients of the inputs and, unless the weights are frozen, of the weights (Kaplan et
    al., 2020, arXiv 2001.08361, section 2.1). LoRA matrices add a few percent, which are left out.

    Args:
        pair: the sizes.
        windows: windows per batch.
        bars: bars of a window that the model reads.
        targets: bars of a window that both heads predict.
        frozen: the weights are frozen, as in the training of an adapter; attention has no weights, so it counts three
            passes in either case.
    """
    predictor = pair.predictor
    width = predictor.width
    blocks = block_weights(predictor) + 4 * width**2  # fusion, and the cross-attention's keys and values
    heads = 2 * width**2 + 2 * 2**predictor.bits * width
    attended = 4 * width * (predictor.layers + 1) * (bars + 1) / 2
    passes = 2 if frozen else 3
    products = windows * 2 * (bars * blocks + targets * heads)
    return Work(passes * products + 3 * windows * bars * attended, 4 * passes * (blocks + heads))


def _encode(pair: Pair, series: int, bars: int) -> list[Work]:
    size = _coder(pair)
    weights = block_weights(size) + size.width * (_FEATURES + 2 * size.bits)
    return [Work(series * bars * (2 * weights + _attended(size, bars)), 4 * weights)]


def _decode(pair: Pair, series: int, bars: int, rows: int, horizon: int, *, repeated: bool = False) -> Work:
    """Return the work of decoding the context once per series and the steps per path; if `repeated`, both per path."""
    size = _coder(pair)
    weights = block_weights(size) + size.width * (_FEATURES + 2 * size.bits)
    length = bars + horizon
    if repeated:
        return Work(series * length * (2 * weights + _attended(size, length)), 4 * weights)
    context = series * bars * (2 * weights + _attended(size, bars))
    ahead = rows * horizon * (2 * weights + 4 * size.width * size.layers * (bars + (horizon + 1) / 2))
    return Work(context + ahead, 4 * weights)


def _coder(pair: Pair) -> Size:
    """Return the size of the tokenizer's encoder or decoder: upstream builds one block fewer than its settings say."""
    size = pair.tokenizer
    return Size(size.layers - 1, size.width, size.heads, size.feed_forward, size.bits)


def _attended(size: Size, bars: int) -> float:
    return 4 * size.width * size.layers * (bars + 1) / 2
