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

from kronos_pipeline.errors import KronosError, SettingsError
from kronos_pipeline.model.devices import explain_out_of_memory, is_out_of_memory, shortage
from kronos_pipeline.model.modules import fitting_threads
from kronos_pipeline.model.multi_lora import StackedLora
from kronos_pipeline.training import preflight as plan
from kronos_pipeline.training.adapters import AdapterJob, Prepared
from kronos_pipeline.training.checkpoint import TrainingState, group_state, locked
from kronos_pipeline.training.devices import current_device, processes, repeatable
from kronos_pipeline.training.grouping import adapters_per_pass, adapters_together, groups_of, one_by_one
from kronos_pipeline.training.multi_lora.loop import JointOptimisation
from kronos_pipeline.training.multi_lora.member import Member
from kronos_pipeline.training.multi_lora.microbatch import Passes
from kronos_pipeline.training.publish import (
    TrainingResult,
    load_result,
    publish_adapter,
    training_manifest,
    training_summary,
)
from kronos_pipeline.training.single import MORE_MEMORY, train_alone
from kronos_pipeline.training.trainer_state import Outcome

if TYPE_CHECKING:
    from kronos_pipeline.training.trainer import KronosTrainer


Ended = TrainingResult | KronosError
"""What became of a training."""


def train_together(
    trainer: KronosTrainer,
    jobs: Sequence[AdapterJob],
    begin: Callable[[AdapterJob], AdapterJob] | None,
    done: Callable[[AdapterJob, Ended], None] | None,
) -> list[Ended]:
    """See `KronosTrainer.train_adapters`."""
    ended: dict[int, Ended] = {}
    places: dict[Path, tuple[int, AdapterJob]] = {}
    fit: list[Prepared] = []

    def end(number: int, job: AdapterJob, result: Ended) -> None:
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
    why_alone = one_by_one(trainer.recipe, trainer.precision, processes())
    if why_alone and len(fit) > 1 and trainer.recipe.adapters_together != 1:
        trainer.say(f"{len(fit)} adapters train one by one, as {why_alone}")
    for group in groups_of(fit, 1 if why_alone or len(fit) == 1 else _most_in_a_group(trainer)):
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
    return adapters_together(trainer.recipe, per_pass, trainer.device)


def _train_alone(trainer: KronosTrainer, group: Sequence[Prepared]) -> Iterator[tuple[Prepared, Ended]]:
    for one in group:
        try:
            result: Ended = train_alone(trainer, one, lora=True)
        except KronosError as error:
            if processes() > 1:
                raise  # the other processes have ended with it
            result = error
        yield one, result


def _train_group(trainer: KronosTrainer, group: Sequence[Prepared]) -> Iterator[tuple[Prepared, Ended]]:
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


def _not_in(saved: dict[str, Any] | None, members: Iterable[Prepared]) -> list[Prepared]:
    """Those that had ended when the state was saved."""
    return [] if saved is None else [one for one in members if one.state.key not in saved["members"]]


def _optimise(
    trainer: KronosTrainer, group: Sequence[Prepared], state: TrainingState, saved: dict[str, Any] | None
) -> Iterator[tuple[Prepared, Ended]]:
    recipe, base, device = trainer.recipe, trainer.base, trainer.device
    set_seed(recipe.seed)
    adapted = trainer.trainable(lora=True)
    products = torch.bfloat16 if trainer.precision == "bf16" else torch.float32
    stacked = StackedLora(
        base.predictor, adapted, recipe.adapter_alpha / recipe.adapter_r, recipe.adapter_dropout, products=products
    )
    start = stacked.pack(dict(adapted.named_parameters()))
    with fitting_threads(stacked.predictor):
        windows = [one for prepared in group for one in prepared.windows]
        train, selection = trainer.datasets(windows, state.folder)
        members = [
            Member(one.state.key, of_train, of_selection, one.listener)
            for one, of_train, of_selection in zip(
                group, _ranges(group, "train"), _ranges(group, "selection"), strict=True
            )
        ]
        at_once = adapters_per_pass(base.predictor, stacked.width, recipe, trainer.precision, device, shared=True)
        passes = Passes(stacked, device, trainer.precision, min(at_once, len(group)), trainer.say)
        optimisation = JointOptimisation(passes, start, members, train, selection, recipe, trainer.say)
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
    trainer: KronosTrainer, group: Sequence[Prepared], one: Prepared, adapted: Any, outcome: Outcome | KronosError
) -> Ended:
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


def _ranges(group: Sequence[Prepared], split: str) -> list[range]:
    """The numbers of each one's windows in the data of all."""
    ends = accumulate((one.count(split) for one in group), initial=0)
    return [range(*pair) for pair in pairwise(ends)]


def _names(group: Sequence[Prepared]) -> str:
    names = [one.target.name for one in group]
    return f"adapters/{', '.join(names[:3])}" + (f" and {len(names) - 3} more" if len(names) > 3 else "")
