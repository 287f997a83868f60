"""A training on a GPU equals a training on the CPU, with graphs and without, and continues if memory runs out."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from functools import partial
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from killed_trainings import KillAtStep, Killed
from small_trainings import simulated_windows, small_recipe
from tiny_models import save_tiny_base
from torch import Tensor

from kronos_pipeline import KronosTrainer
from kronos_pipeline.base_models import find_base_model
from kronos_pipeline.errors import KronosError, ModelError
from kronos_pipeline.model.decode.decoder import Decoder
from kronos_pipeline.model.decode.memory import release_weights
from kronos_pipeline.model.loading import load_base
from kronos_pipeline.training.callback import Callback
from kronos_pipeline.training.plan import TrainingJob
from kronos_pipeline.training.publish import TrainingResult

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

TICKERS = ("AAPL", "MSFT", "XOM")
WAYS = ("checkpoint", "alone", "together", "whole base")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a base model without dropout, because devices draw different masks."""
    return save_tiny_base(tmp_path_factory.mktemp("base"), dropout=False)


class Trainings:
    """Train three tickers in one of several ways, each in a folder of its own."""

    def __init__(self, base: Path, folder: Path) -> None:
        self._base, self._folder, self.said = base, folder, list[str]()

    def __call__(self, kind: str, device: str, *, listener: Any = None, folder: str = "", **changes: Any) -> Any:
        """Return the trained tensors of all tickers, and the first result."""
        settings = {"adapter_dropout": 0.0, "freeze_backbone": kind != "whole base", "device": device, **changes}
        recipe = small_recipe(self._base, **settings)
        windows = simulated_windows(recipe, TICKERS)
        root = self._folder / (folder or f"{kind}-{device}-{len(list(self._folder.iterdir()))}")
        trainer = KronosTrainer(recipe, root, say=self.said.append)
        ended: list[TrainingResult | KronosError]
        if kind == "checkpoint":
            ended = [trainer.train_checkpoint(windows, listener=listener)]
        elif kind == "together":
            jobs = [TrainingJob(ticker.ticker, [ticker], listener=listener) for ticker in windows]
            ended = list(trainer.train_adapters(jobs))
        else:
            ended = [trainer.train_adapter(windows[:1], "AAPL", listener=listener)]
        for result in ended:
            if isinstance(result, KronosError):
                raise result
        return tensors_of(ended), ended[0]


class OnLog(Callback):
    """Callback that calls a function with the step whenever losses are read."""

    def __init__(self, function: Callable[[int], object]) -> None:
        self._function = function

    def on_log(self, step: int, values: Mapping[str, float]) -> None:  # noqa: ARG002
        self._function(step)


def once(function: Callable[[], object]) -> OnLog:
    """Return a callback that calls a function the first time."""
    waiting = [function]
    return OnLog(lambda _: waiting and waiting.pop()())


def tensors_of(results: list[Any]) -> dict[str, Tensor]:
    return {
        f"{result.folder.name}/{file.name}/{name}": tensor
        for result in results
        for file in sorted(result.folder.rglob("*model.safetensors"))
        for name, tensor in safetensors.torch.load_file(file).items()
    }


def assert_close(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], atol: float = 1e-4) -> None:
    assert weights.keys() == expected.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, expected[name], atol=atol, rtol=0, msg=partial(add, name))


@pytest.fixture
def train(base: Path, tmp_path: Path) -> Trainings:
    return Trainings(base, tmp_path)


@pytest.mark.parametrize("changes", [{}, {"average_decay": 0.9, "grad_accum_steps": 2, "batch_size": 8}], ids=str)
@pytest.mark.parametrize("kind", WAYS)
def test_a_training_gives_what_it_gives_on_the_cpu(train: Trainings, kind: str, changes: dict[str, Any]) -> None:
    weights, result = train(kind, "cuda", **changes, precision="fp32")
    expected, on_cpu = train(kind, "cpu", **changes, precision="fp32")
    assert_close(weights, expected)
    assert result.summary["device"].startswith("cuda:")
    for column in ("step", "train_loss", "selection_loss", "learning_rate"):
        np.testing.assert_allclose(result.history[column], on_cpu.history[column], atol=1e-4)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("kind", WAYS)
def test_a_training_in_16_bits_stays_near(train: Trainings, kind: str, precision: str) -> None:
    weights, result = train(kind, "cuda", precision=precision)
    expected, _ = train(kind, "cuda", precision="fp32")
    assert_close(weights, expected, atol=3e-3)
    assert result.summary["precision"] == precision


@pytest.mark.parametrize("kind", WAYS)
def test_graphs_give_what_plain_calls_give(train: Trainings, kind: str) -> None:
    weights, _ = train(kind, "cuda", epochs=4, precision="fp32")
    plain, _ = train(kind, "cuda", epochs=4, precision="fp32", cuda_graphs=False)
    assert_close(weights, plain, atol=1e-5)


@pytest.mark.parametrize("kind", ["checkpoint", "together"])
def test_most_steps_are_replayed_and_none_where_graphs_are_refused(train: Trainings, kind: str) -> None:
    simcuda = pytest.importorskip("simcuda")
    with simcuda.watching() as watch:
        weights, result = train(kind, "cuda", epochs=4, precision="fp32")
    assert 1 <= watch.counts["captures"] <= 2  # of full batches, and of the batches that end an epoch
    assert watch.counts["replays"] >= result.summary["steps"] / 2
    with simcuda.refuse_capture():
        refused, _ = train(kind, "cuda", epochs=4, precision="fp32")
    assert_close(refused, weights, atol=1e-5)
    with simcuda.watching() as watch:
        train(kind, "cuda", epochs=4, precision="fp32", cuda_graphs=False)
    assert watch.counts["captures"] == 0


@pytest.mark.parametrize("kind", ["checkpoint", "together"])
def test_no_step_waits_for_the_device(train: Trainings, kind: str) -> None:
    simcuda = pytest.importorskip("simcuda")

    def waits(batch_size: int) -> tuple[int, int]:
        with simcuda.watching() as watch:
            _, result = train(kind, "cuda", epochs=1, evaluations_per_epoch=1, batch_size=batch_size, precision="fp32")
        return result.summary["steps"], sum(watch.syncs.values())

    (steps_of_large, waits_of_large), (steps_of_small, waits_of_small) = waits(32), waits(4)
    assert steps_of_small >= steps_of_large + 15
    assert waits_of_small - waits_of_large <= steps_of_small // 10 + 2  # the losses are read every tenth step


@pytest.mark.parametrize(("kind", "limit", "plain"), [("checkpoint", 180, 770), ("together", 40, 770)])
def test_a_step_launches_little_where_it_is_replayed(train: Trainings, kind: str, limit: int, plain: int) -> None:
    simcuda = pytest.importorskip("simcuda")

    def launches(**changes: Any) -> float:
        counts: dict[int, int] = {}

        def note(step: int) -> None:
            counts.setdefault(step, simcuda.counts()["kernels"])

        settings = {"epochs": 1, "evaluations_per_epoch": 1, "batch_size": 3, "precision": "bf16", **changes}
        train(kind, "cuda", listener=OnLog(note), **settings)
        return (counts[20] - counts[10]) / 10

    # The simulated device counts an operation on many tensors, such as clipping, once for each of them.
    assert launches() <= limit
    assert launches(cuda_graphs=False) <= plain


@pytest.mark.parametrize("kind", ["checkpoint", "together"])
def test_a_training_that_died_goes_on_where_it_was(train: Trainings, kind: str) -> None:
    settings: dict[str, Any] = {"precision": "fp32", "save_steps": 3, "folder": "killed"}
    expected, _ = train(kind, "cuda", precision="fp32", save_steps=3)
    with pytest.raises(Killed):
        train(kind, "cuda", listener=KillAtStep(5), **settings)
    resumed, result = train(kind, "cuda", **settings)
    assert result.summary["resumed_from_step"] >= 3
    assert_close(resumed, expected, atol=1e-5)


@pytest.mark.parametrize(("graphs", "after"), [(True, 0), (False, 0), (False, 40), (False, 150)])
@pytest.mark.parametrize("kind", ["checkpoint", "alone", "together"])
def test_a_batch_that_does_not_fit_is_divided_and_the_numbers_stay(
    train: Trainings, kind: str, graphs: bool, after: int
) -> None:
    simcuda = pytest.importorskip("simcuda")
    settings: dict[str, Any] = {"precision": "fp32", "cuda_graphs": graphs, "epochs": 2, "batch_size": 8}
    settings["evaluations_per_epoch"] = 1
    expected, _ = train(kind, "cuda", **settings)
    train.said.clear()
    weights, _ = train(kind, "cuda", listener=once(lambda: simcuda.inject_oom(after)), **settings)
    assert_close(weights, expected)
    divided = [line for line in train.said if "out of memory" in line]
    assert divided if not graphs else len(divided) <= 1


def test_caches_of_decoding_go_before_a_batch_is_divided(train: Trainings, base: Path) -> None:
    simcuda = pytest.importorskip("simcuda")
    model = load_base(find_base_model(str(base)), torch.device("cuda:0"))
    Decoder(model.predictor, model.tokenizer)
    train("checkpoint", "cuda", listener=once(lambda: simcuda.inject_oom(40)), precision="fp32", cuda_graphs=False)
    assert not any("out of memory" in line for line in train.said)
    assert not release_weights(model.device)


def test_data_stays_on_the_host_where_others_hold_the_device(train: Trainings) -> None:
    simcuda = pytest.importorskip("simcuda")
    expected, _ = train("checkpoint", "cuda", precision="fp32", batch_size=64)
    gc.collect()
    free, total = torch.cuda.mem_get_info()
    with simcuda.occupy((free - 2 * 10**6) / 2**30), simcuda.watching() as watch:
        weights, _ = train("checkpoint", "cuda", precision="fp32", batch_size=64)
    assert_close(weights, expected)
    assert max(watch.peak) < total - free + 2 * 10**6


@pytest.mark.parametrize("kind", ["checkpoint", "together"])
def test_where_not_even_one_window_fits_a_message_says_what_helps(train: Trainings, kind: str) -> None:
    simcuda = pytest.importorskip("simcuda")
    total = torch.cuda.mem_get_info()[1] / 2**30
    name = "adapters/AAPL" if kind == "together" else "checkpoints/best_model"
    try:
        with pytest.raises(ModelError, match=f"The training of {name} needs more memory than cuda:0 has free: "):
            train(kind, "cuda", listener=once(lambda: simcuda.occupy(total)), precision="fp32")
        with pytest.raises(ModelError, match=r"Loading .*predictor needs more memory than cuda:0 has free: "):
            train(kind, "cuda", precision="fp32")
    finally:
        simcuda.occupy(0)


def test_a_training_repeats_itself_where_it_is_asked_to(train: Trainings) -> None:
    first, _ = train("together", "cuda", deterministic=True, adapter_dropout=0.1)
    second, _ = train("together", "cuda", deterministic=True, adapter_dropout=0.1)
    assert_close(first, second, atol=0)
    assert not torch.are_deterministic_algorithms_enabled()


def test_an_adapter_is_kept_whatever_the_process_thinks_of_float32_products(train: Trainings) -> None:
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        _, result = train("alone", "cuda", precision="fp32")
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    assert (result.folder / "adapter_model.safetensors").is_file()
