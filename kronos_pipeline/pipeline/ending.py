"""The end of a run on the terminal: what was made, the result, a picture, and the next command to try."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from kronos_pipeline.errors import count, enumerate_some, group_messages

if TYPE_CHECKING:
    from kronos_pipeline.artifacts import ArtifactLayout
    from kronos_pipeline.config import KronosTrainingConfig
    from kronos_pipeline.promotion.submit import Submission

_WIDTH = 80
_LABEL = 10


def ending_lines(
    config: KronosTrainingConfig,
    layout: ArtifactLayout,
    evaluation: Mapping[str, Any],
    submissions: Sequence[Submission] = (),
    picture: Path | None = None,
) -> list[str]:
    """Return the end of a training or a backtest.

    Args:
        config: the settings.
        layout: the layout of the artifacts.
        evaluation: the evaluation that decides, of the backtest if there is one, see `build_evaluation`.
        submissions: the gate's decisions on the trained models.
        picture: the picture to look at; by default the holdout of the ticker with the largest gain.
    """
    from kronos_pipeline.evaluation.reports.summary import (
        better_tickers,
        error_lines,
        evidence_is_little,
        measured_line,
        ranked_tickers,
        verdict_lines,
    )

    best, tickers = ranked_tickers(evaluation)[0], evaluation["per_symbol"]
    picture = picture or layout.plot(best)
    made = f"{evaluation['model']} of {tickers[0]['symbol']}"
    if len(tickers) > 1:
        several = "adapters of" if evaluation["model"] == "adapter" else "a checkpoint over"
        made = f"{several} {count(len(tickers), 'ticker')}"
    lines = ["", *_block("Made", [f"{made}, on {evaluation['base_model']}, in {layout.root}"])]
    lines += _block("Measured", [measured_line(evaluation), *evaluation["warnings"]])
    lines += _block("Result", error_lines(evaluation), wrapped=False)
    lines += _block("Verdict", verdict_lines(evaluation))
    if champions := _champion_lines(submissions, better_tickers(evaluation)):
        lines += _block("Champion", champions)
    if skipped := evaluation["skipped"]:
        reasons = [(entry["symbol"], entry["reason"].splitlines()[0]) for entry in skipped]
        lines += _block("Skipped", group_messages(reasons))
    lines += _block("Picture", [str(picture)])
    report = f"{kronos_command()} report{_output_flag(layout.root)}"
    following = [(report, "all tables, reasons and pictures")]
    if evidence_is_little(evaluation):
        following.append((backtest_command(config, layout.root), "scores at 8 cutoffs or more, for a verdict"))
    else:
        data = flag_unless_default("data_dir", config.data_dir)
        following.append((f"{kronos_command()} forecast {best}{data}{_output_flag(layout.root)}", "the next bars"))
    next_lines = [text for command, why in following for text in (f"{why}:", f"  {command}")]
    return lines + _block("Next", next_lines, wrapped=False)


def backtest_command(config: KronosTrainingConfig, output: Path) -> str:
    """Return the command of a backtest with the settings of a training: one training serves all of its cutoffs."""
    from kronos_pipeline.data.proposal import flags_of
    from kronos_pipeline.evaluation.scoring.verdicts import MIN_CUTOFFS

    recipe = config.recipe.model_copy(update={"backtest_origins": MIN_CUTOFFS, "backtest_refit_every": MIN_CUTOFFS})
    folders = f"{flag_unless_default('data_dir', config.data_dir)}{_output_flag(output)}"
    return f"{kronos_command()} backtest{folders} {flags_of(recipe)}"


def kronos_command() -> str:
    """Return how this shell starts `kronos`: the bare name if it is on the PATH, else a path or Python's `-m`."""
    if shutil.which("kronos"):
        return "kronos"
    script = Path(sys.executable).with_name("kronos")
    if not script.is_file():
        return "python -m kronos_pipeline.cli"
    folder = Path.cwd()
    return str(script.relative_to(folder) if script.is_relative_to(folder) else script)


def _champion_lines(submissions: Sequence[Submission], better: Sequence[str]) -> list[str]:
    """Return the new champions, and why a model that is better has not become champion."""
    from kronos_pipeline.errors import join
    from kronos_pipeline.promotion.submit import decision_lines

    lines: dict[str, list[str]] = {}
    for submission in submissions:
        if submission.promoted:
            lines.setdefault(join(submission.promoted), []).append(f"{submission.name} version {submission.version}")
    refused = [submission for submission in submissions if not submission.promoted] if better else []
    promoted = [f"of {targets}: {enumerate_some(names, 3)}" for targets, names in lines.items()]
    return [*promoted, *(decision_lines(refused) if refused and len(refused) <= len(better) else [])]


def _output_flag(output: Path) -> str:
    return flag_unless_default("output_dir", str(output))


def flag_unless_default(field: str, value: str) -> str:
    """Return a flag with a space before it, or nothing if this shell's default is the same."""
    from kronos_pipeline.config import KronosTrainingConfig, environment_settings

    default = environment_settings().get(field, KronosTrainingConfig.model_fields[field].default)
    same = Path(value).absolute() == Path(str(default)).absolute()
    return "" if same else f" --{field.replace('_', '-')} {shlex.quote(value)}"


def _block(label: str, texts: Sequence[str], wrapped: bool = True) -> list[str]:
    """Return texts beside a label, wrapped to the width of a terminal or line by line."""
    lines: list[str] = []
    for text in texts:
        pieces = wrap(text, _WIDTH - _LABEL, break_long_words=False, break_on_hyphens=False) if wrapped else [text]
        lines += [pieces[0], *(f"  {piece}" for piece in pieces[1:])]
    return [f"{label if not place else '':<{_LABEL}}{line}" for place, line in enumerate(lines)]
