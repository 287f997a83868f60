"""Adapters that train together: from their windows to what each of them publishes.

jobs ---> groups of like length ---> one optimisation per group ---> adapters/<name> of each, as it ends
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import set_seed

from kronos_pipeline.config import Recipe
from kronos_pipeline.errors import KronosError, SettingsError, enumerate_some
from kronos_pipeline.model.devices import explain_out_of_memory, free_memory, is_out_of_memory, shortage
from kronos_pipeline.model.modules import limit_threads, unwrap_peft
from kronos_pipeline.model.multi_lora import MultiLora
from kronos_pipeline.training import preflight as plan
from kronos_pipeline.training.checkpoint import ResumeState, group_state, locked
from kronos_pipeline.training.devices import current_device, processes, repeatable
from kronos_pipeline.training.multi_lora.forward import BatchedForward
from kronos_pipeline.training.multi_lora.loop import MultiLoraLoop
from kronos_pipeline.training.multi_lora.member import Member
from kronos_pipeline.training.publish import (
    TrainingResult,
    load_result,
    publish_adapter,
    training_manifest,
    training_summary,
)
from kronos_pipeline.training.single import MORE_MEMORY, AdapterJob, PreparedTraining, train_single
from kronos_pipeline.training.trainer_state import TrainOutput

if TYPE_CHECKING:
    from kronos_pipeline.training.trainer import KronosTrainer


JobOutcome = TrainingResult | KronosError
"""What became of a training."""

_MEMORY_SHARE = 0.45
"""Share of the device's memory for the activations of a pass. While a pass of another shape runs, a CUDA graph keeps
those of the pass that it replays, so they have to fit twice; the rest is for weights and the allocator."""
_FREE_SHARE = 0.9
"""Share of what is free of the memory that a pass may take, where other processes hold more than half of it."""
_LAYER_WIDTHS, _LAYER_INNER, _LOGITS = 20, 6, 8
"""Numbers kept for the backward pass per bar: of each layer in units of its width and of its feed-forward width, and of
the logits in units of the vocabulary. Measured for targets in every layer, with dropout: up to 0.9 of that sum."""
_BYTES = {"fp32": 4, "bf16": 3}
"""Bytes of such a number, on average: norms and losses stay in float32."""
_COPIES = 9
"""Float32 copies of an adapter: weights, gradients, two moments, average, best, and what a step needs beside them."""
_CPU_BARS = 6000
"""Bars per pass on a CPU. Measured on two cores: more make an adapter's share of a pass slower, as caches overflow."""
_CPU_GROUP, _MOST = 16, 256


def train_jobs(
    trainer: KronosTrainer,
    jobs: Sequence[AdapterJob],
    begin: Callable[[AdapterJob], AdapterJob] | None,
    done: Callable[[AdapterJob, JobOutcome], None] | None,
) -> list[JobOutcome]:
    """See `KronosTrainer.train_adapters`."""
    ended: dict[int, JobOutcome] = {}
    places: dict[Path, tuple[int, AdapterJob]] = {}
    fit: list[PreparedTraining] = []

    def end(number: int, job: AdapterJob, result: JobOutcome) -> None:
        ended[number] = result
        if done is not None:
            done(job, result)

    for number, job in enumerate(jobs):
        try:
            fit.append(trainer.prepare(job))
        except KronosError as error:
            end(number, job, error)
            continue
        if fit[-1].target in places:
            raise SettingsError(f"Two adapters would be {fit[-1].target}; give each a name of its own.")
        places[fit[-1].target] = number, job
    why_alone = separate_reason(trainer.recipe, trainer.precision, processes())
    if why_alone and len(fit) > 1 and trainer.recipe.adapters_together != 1:
        trainer.say(f"{len(fit)} adapters train one by one, as {why_alone}")
    for group in group_by_length(fit, 1 if why_alone or len(fit) == 1 else _most_in_a_group(trainer)):
        begun = []
        for one in group:
            number, job = places[one.target]
            try:
                job = job if begin is None else begin(job)
            except KronosError as error:
                end(number, job, error)
                continue
            places[one.target] = number, job
            begun.append(replace(one, listener=job.listener, mlflow_run=job.mlflow_run))
        for one, result in _train_group(trainer, begun) if len(group) > 1 else _train_alone(trainer, begun):
            end(*places[one.target], result)
    return [ended[number] for number in range(len(jobs))]


def _most_in_a_group(trainer: KronosTrainer) -> int:
    with explain_out_of_memory("A training of adapters", trainer.device, MORE_MEMORY):
        width = sum(p.numel() for p in trainer.trainable(lora=True).parameters() if p.requires_grad)
    per_pass = adapters_per_pass(trainer.base.predictor, width, trainer.recipe, trainer.precision, trainer.device)
    return group_size(trainer.recipe, per_pass, trainer.device)


def _train_alone(
    trainer: KronosTrainer, group: Sequence[PreparedTraining]
) -> Iterator[tuple[PreparedTraining, JobOutcome]]:
    for one in group:
        try:
            result: JobOutcome = train_single(trainer, one, lora=True)
        except KronosError as error:
            if processes() > 1:
                raise  # the other processes have ended with it
            result = error
        yield one, result


def _train_group(
    trainer: KronosTrainer, group: Sequence[PreparedTraining]
) -> Iterator[tuple[PreparedTraining, JobOutcome]]:
    """Train some adapters together, and give what became of each as it ends."""
    left = {one.target: one for one in group}
    if not left:
        return
    device = trainer.device
    with (
        current_device(device),
        repeatable(trainer.recipe.deterministic),
        locked([one.state for one in group], device, trainer.say),
    ):
        try:
            for one in group:
                if kept := trainer.kept(one):
                    yield left.pop(one.target), kept
            if not left:
                return
            state = group_state(trainer.layout, [one.state for one in group], trainer.say)
            saved = state.load()
            for one in _not_in(saved, left.values()):
                if published := load_result(one.target, one.state.key):
                    yield left.pop(one.target), published
            if _not_in(saved, left.values()):
                saved = None  # what one of them had made is gone, and with it the state that it was trained from
            for one in left.values():
                one.state.begin(trainer.say)
            for one, result in _optimise(trainer, list(left.values()), state, saved) if left else ():
                yield left.pop(one.target), result
            state.finish(keep_mark=False)
        except KronosError as error:
            for one in left.values():
                yield one, error
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            for one in left.values():
                yield one, shortage(f"The training of {one.state.artifact}", device, MORE_MEMORY)


def _not_in(saved: dict[str, Any] | None, members: Iterable[PreparedTraining]) -> list[PreparedTraining]:
    """Those that had ended when the state was saved."""
    return [] if saved is None else [one for one in members if one.state.key not in saved["members"]]


def _optimise(
    trainer: KronosTrainer, group: Sequence[PreparedTraining], state: ResumeState, saved: dict[str, Any] | None
) -> Iterator[tuple[PreparedTraining, JobOutcome]]:
    recipe, base, device = trainer.recipe, trainer.base, trainer.device
    set_seed(recipe.seed)
    adapted = trainer.trainable(lora=True)
    products = torch.bfloat16 if trainer.precision == "bf16" else torch.float32
    stacked = MultiLora(
        base.predictor, adapted, recipe.adapter_alpha / recipe.adapter_r, recipe.adapter_dropout, products=products
    )
    start = stacked.pack(dict(adapted.named_parameters()))
    with limit_threads(stacked.predictor):
        windows = [one for prepared in group for one in prepared.windows]
        train, selection = trainer.datasets(windows, state.folder)
        members = [
            Member(one.state.key, of_train, of_selection, one.listener)
            for one, of_train, of_selection in zip(
                group, _ranges(group, "train"), _ranges(group, "selection"), strict=True
            )
        ]
        at_once = adapters_per_pass(base.predictor, stacked.width, recipe, trainer.precision, device, shared=True)
        passes = BatchedForward(stacked, device, trainer.precision, min(at_once, len(group)), trainer.say)
        optimisation = MultiLoraLoop(passes, start, members, train, selection, recipe, trainer.say)
        disk = len(group) * plan.needed_bytes(adapted)
        plan.check_disk(trainer.layout.root, disk)
        seconds = passes.expected_seconds(start, train, selection, recipe)
        what = _names(group)
        described = plan.describe(
            len(train), len(selection), optimisation.steps, seconds, disk, base.source.name, device
        )
        trainer.say(f"{what}: {len(group)} adapters together, {described}")
        set_seed(recipe.seed)
        if saved is not None:
            optimisation.restore(saved)
            step = max(position["step"] for position, *_ in saved["courses"])
            trainer.say(f"{what}: resuming from step {step}")
        for number, outcome in optimisation.run(what, state.save):
            yield group[number], _published(trainer, group, group[number], adapted, outcome)


def _published(
    trainer: KronosTrainer,
    group: Sequence[PreparedTraining],
    one: PreparedTraining,
    adapted: Any,
    outcome: TrainOutput | KronosError,
) -> JobOutcome:
    if isinstance(outcome, KronosError):
        return outcome
    summary = training_summary(outcome, adapted, one.windows, trainer.device, trainer.precision, together=len(group))
    result = TrainingResult(one.target, outcome.history, summary)
    manifest = training_manifest(
        one.state.artifact,
        one.state.key,
        one.windows,
        trainer.recipe,
        trainer.base,
        trainer.device,
        one.mlflow_run,
        together=sorted({other.target.name for other in group} - {one.target.name}),
    )
    try:
        publish_adapter(result, adapted.eval(), outcome.best, trainer.base, manifest, with_base=False)
        trainer.finish(one)
    except KronosError as error:
        return error
    return result


def _ranges(group: Sequence[PreparedTraining], split: str) -> list[range]:
    """The numbers of each one's windows in the data of all."""
    ends = accumulate((one.count(split) for one in group), initial=0)
    return [range(*pair) for pair in pairwise(ends)]


def _names(group: Sequence[PreparedTraining]) -> str:
    names = [one.target.name for one in group]
    return f"adapters/{enumerate_some(names, 3)}"


def adapters_per_pass(
    predictor: Any, width: int, recipe: Recipe, precision: str, device: torch.device, *, shared: bool = False
) -> int:
    """Adapters whose batches the device can take through the predictor at once, at least one.

    Args:
        predictor: the base's.
        width: numbers of one adapter.
        recipe: the settings.
        precision: "fp32" or "bf16".
        device: where they are to train.
        shared: whether to heed what other processes hold of a GPU just now.
    """
    bars = recipe.batch_size * (recipe.used_lookback + recipe.horizon)
    if device.type != "cuda":
        return max(1, _CPU_BARS // bars)
    core = unwrap_peft(predictor)
    per_bar = core.n_layers * (_LAYER_WIDTHS * core.d_model + _LAYER_INNER * core.ff_dim)
    per_bar += _LOGITS * (2**core.s1_bits + 2**core.s2_bits)
    needed = bars * per_bar * _BYTES[precision] + 4 * _COPIES * width
    memory = _MEMORY_SHARE * torch.cuda.get_device_properties(device).total_memory
    if shared:
        memory = min(memory, _FREE_SHARE * free_memory(device))
    return max(1, int(memory / needed))


def separate_reason(recipe: Recipe, precision: str, processes: int) -> str | None:
    """Why adapters cannot train together, or None where they can."""
    reasons = {
        "float16 scales the loss of all by one number": precision == "fp16",
        "the model is compiled": recipe.torch_compile,
        "several processes share each": processes > 1,
        "the base is trained with each": not recipe.freeze_backbone,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def group_size(recipe: Recipe, per_pass: int, device: torch.device) -> int:
    """Adapters of one training, where they can train together."""
    by_memory = min(per_pass, _MOST) if device.type == "cuda" else _CPU_GROUP
    return recipe.adapters_together or by_memory


def group_by_length(trainings: Sequence[PreparedTraining], most: int) -> list[list[PreparedTraining]]:
    """Trainings in groups: those of like length together, for one that ends early leaves the others alone.

    Args:
        trainings: what to group.
        most: trainings of one group, at most.
    """
    if most == 1:
        return [[one] for one in trainings]
    alike: dict[tuple[int, int], list[PreparedTraining]] = {}
    for one in sorted(trainings, key=lambda one: one.count("train")):
        alike.setdefault((one.windows[0].lookback, one.windows[0].horizon), []).append(one)
    return [some[first : first + most] for some in alike.values() for first in range(0, len(some), most)]
