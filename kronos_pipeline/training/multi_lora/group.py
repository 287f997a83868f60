"""Joint training of adapters, from their windows to the published folder of each.

jobs ---> groups of similar length ---> one joint loop per group ---> adapters/<name> of each, as it ends

The size of a group follows from the settings and the whole memory of the device, never from the memory that is free, so
that the same tickers form the same groups each time. A pass of a group may be smaller if other processes hold most of
the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed

from kronos_pipeline.artifacts import mlflow_run_of
from kronos_pipeline.config import Recipe
from kronos_pipeline.errors import KronosError, SettingsError, enumerate_some
from kronos_pipeline.locks import fence
from kronos_pipeline.model.devices import explain_out_of_memory, free_memory, is_out_of_memory, shortage
from kronos_pipeline.model.modules import limit_threads, unwrap_peft
from kronos_pipeline.model.multi_lora import MultiLora
from kronos_pipeline.training import preflight
from kronos_pipeline.training.checkpoint import ResumeState, group_state, locked
from kronos_pipeline.training.devices import current_device, processes, repeatable
from kronos_pipeline.training.multi_lora.forward import BatchedForward
from kronos_pipeline.training.multi_lora.loop import MultiLoraLoop
from kronos_pipeline.training.multi_lora.member import Member
from kronos_pipeline.training.plan import TrainingJob
from kronos_pipeline.training.publish import (
    TrainingResult,
    load_result,
    publish_adapter,
    training_manifest,
    training_summary,
)
from kronos_pipeline.training.single import MORE_MEMORY, PreparedTraining, TrainingContext, train_single
from kronos_pipeline.training.trainer_state import TrainOutput

JobResult = TrainingResult | KronosError
"""Result of a training, or the error that ended it."""

_MEMORY_SHARE = 0.45
"""Share of the device's memory for the activations of a pass. While a pass of another shape runs, a CUDA graph keeps
the activations of the pass that it replays, so they have to fit twice; the rest is for weights and the allocator."""
_FREE_SHARE = 0.9
"""Share of the free memory that a pass may take if other processes hold more than half of the device's memory."""
_LAYER_WIDTHS, _LAYER_INNER, _LOGITS = 20, 6, 8
"""Numbers kept for the backward pass per bar: of each layer in units of its width and of its feed-forward width, and of
the logits in units of the vocabulary. Measured for targets in every layer, with dropout: up to 0.9 of that sum."""
_BYTES = {"fp32": 4, "bf16": 3}
"""Bytes of such a number, on average: norms and losses stay in float32."""
_COPIES = 9
"""Float32 copies of an adapter: weights, gradients, two moments, average, best, and the temporaries of a step."""
_CPU_BARS = 6000
"""Bars per pass on a CPU. Measured on two cores: with more, caches overflow and each adapter takes longer."""
_CPU_GROUP, _MOST = 16, 256
"""Adapters of a group on a CPU, and the most on a GPU."""


def train_jobs(
    context: TrainingContext,
    jobs: Sequence[TrainingJob],
    on_start: Callable[[TrainingJob], TrainingJob] | None,
    on_end: Callable[[TrainingJob, JobResult], None] | None,
) -> list[JobResult]:
    """Train adapters in groups, or one by one if they cannot train jointly; see `KronosTrainer.train`."""
    results: dict[int, JobResult] = {}
    job_by_target: dict[Path, tuple[int, TrainingJob]] = {}
    prepared: list[PreparedTraining] = []

    def end(number: int, job: TrainingJob, result: JobResult) -> None:
        results[number] = result
        if on_end is not None:
            on_end(job, result)

    for number, job in enumerate(jobs):
        try:
            prepared.append(context.prepare(job))
        except KronosError as error:
            end(number, job, error)
            continue
        if prepared[-1].target in job_by_target:
            raise SettingsError(f"Two adapters would be {prepared[-1].target}; give each a name of its own.")
        job_by_target[prepared[-1].target] = number, job
    for group in _groups(context, prepared):
        started = []
        for training in group:
            number, job = job_by_target[training.target]
            if kept := _kept_result(context, training):
                end(number, job, kept)
                continue
            try:
                job = job if on_start is None else on_start(replace(job, state=training.state.folder))
            except KronosError as error:
                if processes() > 1:
                    raise  # the other processes would train without this one
                end(number, job, error)
                continue
            job_by_target[training.target] = number, job
            started.append(replace(training, listener=job.listener, mlflow_run=job.mlflow_run))
        train = _train_group if len(group) > 1 else _train_separately
        for training, result in train(context, started):
            end(*job_by_target[training.target], result)
    return [results[number] for number in range(len(jobs))]


def _kept_result(context: TrainingContext, training: PreparedTraining) -> TrainingResult | None:
    """Return the result of another run that ended this training since it was asked for, with an MLflow run of its own.

    A training of this very run starts again, as its MLflow run may be open; several processes decide together, later.
    """
    if processes() > 1 or training.state.finished:
        return None
    kept = context.kept_result(training)
    return kept if kept and mlflow_run_of(kept.folder) else None


def _groups(context: TrainingContext, trainings: Sequence[PreparedTraining]) -> list[list[PreparedTraining]]:
    """Group the adapters that can train jointly; a checkpoint trains by itself."""
    checkpoints = [[training] for training in trainings if not training.lora]
    adapters = [training for training in trainings if training.lora]
    reason = separate_reason(context.recipe, context.precision, processes())
    if reason and len(adapters) > 1 and context.recipe.adapters_together != 1:
        context.say(f"{len(adapters)} adapters train one by one, as {reason}")
    limit = 1 if reason or len(adapters) <= 1 else _largest_group(context)
    return checkpoints + group_by_length(adapters, limit)


def _largest_group(context: TrainingContext) -> int:
    with explain_out_of_memory("A training of adapters", context.device, MORE_MEMORY):
        width = sum(p.numel() for p in context.trainable(lora=True).parameters() if p.requires_grad)
    per_pass = adapters_per_pass(context.base.predictor, width, context.recipe, context.precision, context.device)
    return group_size(context.recipe, per_pass, context.device)


def _train_separately(
    context: TrainingContext, trainings: Sequence[PreparedTraining]
) -> Iterator[tuple[PreparedTraining, JobResult]]:
    for training in trainings:
        try:
            result: JobResult = train_single(context, training)
        except KronosError as error:
            if processes() > 1:
                raise  # the other processes have ended with it
            result = error
        yield training, result


def _train_group(
    context: TrainingContext, group: Sequence[PreparedTraining]
) -> Iterator[tuple[PreparedTraining, JobResult]]:
    """Train the adapters of a group jointly, and yield the result of each as it ends."""
    remaining = {training.target: training for training in group}
    if not remaining:
        return
    device = context.device
    with (
        current_device(device),
        repeatable(context.recipe.deterministic),
        locked([training.state for training in group], device, context.say),
    ):
        try:
            for training in group:
                if finished := context.finished_result(training):
                    yield remaining.pop(training.target), finished
            if not remaining:
                return
            state = group_state(context.layout, [training.state for training in group], context.say)
            saved = state.load(context.say)
            for training in _missing_in(saved, remaining.values()):
                if published := load_result(training.target, training.state.key):
                    yield remaining.pop(training.target), published
            if _missing_in(saved, remaining.values()):
                saved = None  # a published adapter is gone, and with it the state that its training resumed from
            for training in remaining.values():
                training.state.begin(context.say)
            for training, result in _optimise(context, list(remaining.values()), state, saved) if remaining else ():
                yield remaining.pop(training.target), result
            state.finish(keep_mark=False)
        except KronosError as error:
            for training in remaining.values():
                yield training, error
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            for training in remaining.values():
                yield training, shortage(f"The training of {training.state.artifact}", device, MORE_MEMORY)


def _missing_in(saved: dict[str, Any] | None, group: Iterable[PreparedTraining]) -> list[PreparedTraining]:
    """List the trainings that had ended when the state was saved."""
    return [] if saved is None else [training for training in group if training.state.key not in saved["members"]]


def _optimise(
    context: TrainingContext, group: Sequence[PreparedTraining], state: ResumeState, saved: dict[str, Any] | None
) -> Iterator[tuple[PreparedTraining, JobResult]]:
    recipe, base, device, precision = context.recipe, context.base, context.device, context.precision
    set_seed(recipe.seed)
    adapted = context.trainable(lora=True)
    products = torch.bfloat16 if precision == "bf16" else torch.float32
    multi_lora = MultiLora(
        base.predictor, adapted, recipe.adapter_alpha / recipe.adapter_r, recipe.adapter_dropout, products=products
    )
    start = multi_lora.pack(dict(adapted.named_parameters()))
    with limit_threads(multi_lora.predictor):
        windows = [ticker for training in group for ticker in training.windows]
        data = context.datasets(windows, state.folder)
        members = [
            Member(training.state.key, train_range, selection_range, training.listener)
            for training, train_range, selection_range in zip(
                group, _ranges(group, "train"), _ranges(group, "selection"), strict=True
            )
        ]
        per_pass = adapters_per_pass(base.predictor, multi_lora.width, recipe, precision, device, shared=True)
        forward = BatchedForward(multi_lora, device, precision, min(per_pass, len(group)), context.say)
        loop = MultiLoraLoop(forward, start, members, data, recipe, context.say)
        disk = len(group) * preflight.needed_bytes(adapted)
        preflight.check_disk(context.layout.root, disk)
        seconds = forward.expected_seconds(start, data, recipe)
        estimate = preflight.Estimate(len(data.train), len(data.selection), loop.steps, seconds, disk)
        name = _name(group)
        context.say(f"{name}: {len(group)} adapters together, {estimate.describe(base.source.name, device)}")
        set_seed(recipe.seed)
        if saved is not None:
            loop.restore(saved)
            step = max(member_state["step"] for member_state, *_ in saved["states"])
            context.say(f"{name}: resuming from step {step}")
        for number, output in loop.run(name, lambda current: state.save(current, context.say)):
            yield group[number], _publish(context, group, group[number], adapted, output)


def _publish(
    context: TrainingContext,
    group: Sequence[PreparedTraining],
    training: PreparedTraining,
    adapted: Any,
    output: TrainOutput | KronosError,
) -> JobResult:
    if isinstance(output, KronosError):
        return output
    summary = training_summary(
        output, adapted, training.windows, context.device, context.precision, together=len(group)
    )
    result = TrainingResult(training.target, output.history, summary)
    manifest = training_manifest(
        training.state,
        training.windows,
        context.recipe,
        context.base,
        training.mlflow_run,
        together=sorted({other.target.name for other in group} - {training.target.name}),
    )
    try:
        with fence(training.state.lock):
            publish_adapter(result, adapted.eval(), output.best, context.base, manifest, with_base=False)
            context.clear_state(training)
    except KronosError as error:
        return error
    return result


def _ranges(group: Sequence[PreparedTraining], split: str) -> list[range]:
    """Give each training the numbers of its windows in the dataset of the group."""
    ends = accumulate((training.count(split) for training in group), initial=0)
    return [range(*pair) for pair in pairwise(ends)]


def _name(group: Sequence[PreparedTraining]) -> str:
    names = [training.target.name for training in group]
    return f"adapters/{enumerate_some(names, 3)}"


def adapters_per_pass(
    predictor: Any, width: int, recipe: Recipe, precision: str, device: torch.device, *, shared: bool = False
) -> int:
    """Count the adapters that a pass may take, by the memory for their batches; at least 1.

    Args:
        predictor: the base model's predictor.
        width: numbers of one adapter.
        recipe: the settings.
        precision: "fp32" or "bf16".
        device: the device to train on.
        shared: whether to respect the memory that other processes hold on a GPU now.
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
    """Return the reason why adapters cannot train jointly, or None if they can."""
    reasons = {
        "float16 scales the loss of all by one number": precision == "fp16",
        "the model is compiled": recipe.torch_compile,
        "several processes share each": processes > 1,
        "the base is trained with each": not recipe.freeze_backbone,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def group_size(recipe: Recipe, per_pass: int, device: torch.device) -> int:
    """Return the most adapters of a group, by the setting or the memory of the device."""
    by_memory = min(per_pass, _MOST) if device.type == "cuda" else _CPU_GROUP
    return recipe.adapters_together or by_memory


def group_by_length(trainings: Sequence[PreparedTraining], limit: int) -> list[list[PreparedTraining]]:
    """Group trainings of similar length, as a training that ends early makes the passes of its group smaller.

    Args:
        trainings: the trainings; only those with the same lookback and horizon share a group.
        limit: the most trainings of a group.
    """
    if limit == 1:
        return [[training] for training in trainings]
    by_window: dict[tuple[int, int], list[PreparedTraining]] = {}
    for training in sorted(trainings, key=lambda training: training.count("train")):
        windows = training.windows[0]
        by_window.setdefault((windows.lookback, windows.horizon), []).append(training)
    return [similar[first : first + limit] for similar in by_window.values() for first in range(0, len(similar), limit)]
