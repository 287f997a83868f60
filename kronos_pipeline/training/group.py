"""Adapters that train together: from their windows to what each of them publishes.

jobs ---> groups of like length ---> one optimisation per group ---> adapters/<name> of each, as it ends
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import set_seed

from kronos_pipeline.errors import KronosError
from kronos_pipeline.model.modules import fitting_threads
from kronos_pipeline.model.stacked_lora import StackedLora
from kronos_pipeline.training import plan
from kronos_pipeline.training.adapters import Prepared
from kronos_pipeline.training.course import Outcome
from kronos_pipeline.training.grouping import adapters_per_pass
from kronos_pipeline.training.members import Member
from kronos_pipeline.training.passes import Passes
from kronos_pipeline.training.publish import (
    TrainingResult,
    load_result,
    publish_adapter,
    training_manifest,
    training_summary,
)
from kronos_pipeline.training.state import TrainingState, group_state, locked
from kronos_pipeline.training.together import JointOptimisation

if TYPE_CHECKING:
    from kronos_pipeline.training.trainer import KronosTrainer


def train_group(
    trainer: KronosTrainer, group: Sequence[Prepared]
) -> Iterator[tuple[Prepared, TrainingResult | KronosError]]:
    """Train some adapters together, and give what became of each as it ends."""
    left = {one.state.key: one for one in group}
    with locked([one.state for one in group], trainer.device, trainer.say):
        try:
            for one in group:
                if kept := trainer.kept(one):
                    yield left.pop(one.state.key), kept
            if not left:
                return
            for one in left.values():
                one.state.begin(trainer.say)
            state = group_state(trainer.layout, [one.state for one in group])
            saved = state.load()
            for key in set(left) - set(left if saved is None else saved["members"]):
                # Published after the state was saved, by the process that was killed.
                kept = load_result(left[key].target, key)
                if kept is None:
                    saved = None
                    break
                yield left.pop(key), kept
            for one, result in _optimise(trainer, list(left.values()), state, saved):
                yield left.pop(one.state.key), result
            state.finish(keep_mark=False)
        except KronosError as error:
            for one in left.values():
                yield one, error


def _optimise(
    trainer: KronosTrainer, group: Sequence[Prepared], state: TrainingState, saved: dict[str, Any] | None
) -> Iterator[tuple[Prepared, TrainingResult | KronosError]]:
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
        at_once = adapters_per_pass(base.predictor, stacked.width, recipe, trainer.precision, device)
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
) -> TrainingResult | KronosError:
    if isinstance(outcome, KronosError):
        return outcome
    summary = training_summary(outcome, adapted, one.windows, trainer.device, trainer.precision)
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
