"""The tags and the description of a version, as MLflow's pages show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from kronos_pipeline.errors import enumerate_some, join
from kronos_pipeline.evaluation.scoring.targets import TARGETS, Target
from kronos_pipeline.evaluation.scoring.verdicts import BETTER, NO_BETTER, TOO_LITTLE, WORSE
from kronos_pipeline.tracking.run_page import BARS, COMMAND

if TYPE_CHECKING:
    from kronos_pipeline.evaluation.scoring.gate import Decision
    from kronos_pipeline.evaluation.scoring.verdicts import Comparison
    from kronos_pipeline.tracking.version import Version

DECIDED_AT = "decided_at"
_GATE_REASON = "gate_reason"
_LONGEST_DESCRIPTION = 5000
"""Characters that MLflow's databases hold; the reasons against a dozen rivals on three targets come close."""


def decision_tags(decisions: Mapping[Target, Decision]) -> dict[str, str]:
    """Return the tags of a version that record the gate's decisions."""
    tags: dict[str, str] = {}
    now = utc_now()
    for target, decision in decisions.items():
        tags |= _decision_tags(target, "gate", "yes" if decision.promote else "no", decision.reason, now)
        tags[f"verdict.{target}"] = _verdicts(decision.comparisons)
    return tags


def person_tags(version: Version, target: Target, promoted: str, reason: str, decided_at: str) -> dict[str, str]:
    """Return the tags of a version that record a person's decision on a target, and keep the gate's reason.

    The gate's reason comes first: if the process is killed between two tags, the next still finds the reason.

    Args:
        version: the version.
        target: the target.
        promoted: "yes" or "rolled back".
        reason: the person's reason.
        decided_at: the time of the decision, ISO 8601 in UTC.
    """
    by_gate = version.decision("reason", target) if version.decision("decided_by", target) == "gate" else None
    kept = {f"{_GATE_REASON}.{target}": by_gate} if by_gate else {}
    return {**kept, **_decision_tags(target, "person", promoted, reason, decided_at)}


def gate_reason(version: Version, target: Target) -> str | None:
    """Return the reason of the gate's decision on a target, also after a person's decision; None without a decision."""
    if version.decision("decided_by", target) == "gate":
        return version.decision("reason", target)
    return version.decision(_GATE_REASON, target)


def beaten_rivals(version: Version, target: Target) -> list[str]:
    """Return the rivals that a version was better than on a target, in the gate's decision."""
    return sorted(rivals_by_verdict(version, target).get(BETTER, []))


def rivals_by_verdict(version: Version, target: Target) -> dict[str, list[str]]:
    """Return the rivals of a version on a target by verdict, from the gate's decision; empty without a decision."""
    rivals: dict[str, list[str]] = {}
    for group in version.tags.get(f"verdict.{target}", "").split("; "):
        for verdict in (BETTER, NO_BETTER, WORSE, TOO_LITTLE):
            for joint in ("than", "against"):
                if group.startswith(start := f"{verdict} {joint} "):
                    rivals[verdict] = group.removeprefix(start).split(", ")
    prefix = f"verdict.{target}."  # in earlier registries, a tag for each rival
    for key, old_verdict in version.tags.items():
        if key.startswith(prefix):
            rivals.setdefault(old_verdict, []).append(key.removeprefix(prefix))
    return rivals


def utc_now() -> str:
    """Return the current time as in tags: ISO 8601 in UTC, in seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _decision_tags(target: Target, by: str, promoted: str, reason: str, decided_at: str) -> dict[str, str]:
    tags = {"decided_by": by, "promoted": promoted, "reason": reason}
    return {DECIDED_AT: decided_at, **{f"{key}.{target}": value for key, value in tags.items()}}


def _verdicts(comparisons: Mapping[str, Comparison]) -> str:
    """Return the rivals by verdict, the best first: "better than naive, drift; too little evidence against base"."""
    rivals: dict[str, list[str]] = {}
    for rival, comparison in comparisons.items():
        joint = "against" if comparison.verdict == TOO_LITTLE else "than"
        rivals.setdefault(f"{comparison.verdict} {joint} ", []).append(rival)
    order = [f"{verdict} " for verdict in (BETTER, NO_BETTER, WORSE, TOO_LITTLE)]
    groups = sorted(
        rivals, key=lambda words: next(place for place, start in enumerate(order) if words.startswith(start))
    )
    return "; ".join(words + ", ".join(rivals[words]) for words in groups) or "no rival to compare with"


def describe(version: Version) -> str:
    """Return the description of a version in Markdown: its state, verdicts, evidence, training and command.

    MLflow's table of versions shows the first words, so the state comes first.
    """
    parts = [_state(version), *_decisions(version)]
    if evidence := version.tags.get("evidence"):
        parts.append(f"Evidence: {evidence}{_cutoffs(version)}.")
    bars = f" on bars {version.tags[BARS]}" if BARS in version.tags else ""
    base = version.tags.get("base_model", "its base model")
    kind = version.tags.get("kind", "model").capitalize()
    parts.append(f"{kind} of {_tickers(version)} on {base}, {version.trained()}{bars}.")
    if warning := version.tags.get("contamination"):
        parts.append(f"Warning: {warning}")
    if command := version.tags.get(COMMAND):
        parts.append(f"Command: `{command}`")
    return "\n\n".join(parts)[:_LONGEST_DESCRIPTION]


def describe_model(name: str, tickers: Sequence[str]) -> str:
    """Return the description of a registered model in Markdown: its content, its aliases and their commands.

    Args:
        name: name of the registered model.
        tickers: the tickers that its first version was trained on.
    """
    return (
        f"Kronos models of {enumerate_some(tickers)}, one version for each training.\n\n"
        "- `champion` serves forecasts; `champion-mean`, `champion-distribution` and `champion-volatility` are the "
        "best versions for each target\n"
        "- `challenger` is the newest measured version; `refit` is the newest version trained on all bars\n\n"
        f"Serve the champion: `mlflow models serve -m models:/{name}@champion --env-manager local`"
    )


def _state(version: Version) -> str:
    """Return the state of a version: refit, not evaluated, champion of its targets, or not promoted."""
    if version.is_refit:
        return f"Refit of version {version.tags['refit_of']}, on all bars"
    if not version.measured:
        return "Not evaluated yet"
    promoted: list[Target] = [target for target in TARGETS if version.decision("promoted", target) == "yes"]
    if promoted:
        return f"Promoted to champion of {join(promoted)}"
    if any(version.decision("promoted", target) == "rolled back" for target in TARGETS):
        return "Rolled back"
    return "Not promoted" if version.decided else "Evaluated, without a decision yet"


def _decisions(version: Version) -> list[str]:
    """Return a paragraph for each target with a decision; targets with one reason share a paragraph."""
    targets: dict[str, list[Target]] = {}
    for target in TARGETS:
        if reason := version.decision("reason", target):
            targets.setdefault(reason, []).append(target)
    return [f"{join(together).capitalize()}: {reason}" for reason, together in targets.items()]


def _cutoffs(version: Version) -> str:
    return f", {version.tags['cutoffs']}" if "cutoffs" in version.tags else ""


def _tickers(version: Version) -> str:
    return enumerate_some(version.tags.get("trained_on", "unknown tickers").split(","))
