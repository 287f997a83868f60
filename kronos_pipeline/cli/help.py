"""The text of `--help`: flags in sections, most used first, with the defaults that hold in this shell."""

from __future__ import annotations

import re
from argparse import Action, BooleanOptionalAction, RawDescriptionHelpFormatter
from collections.abc import Iterable, Mapping
from textwrap import fill
from typing import Any

from kronos_pipeline.config import Role, environment_settings, environment_variable, settings_of

MOST_USED = (
    *(
        "tickers",
        "ticker",
        "data_dir",
        "output_dir",
        "model_name",
        "adapter",
        "epochs",
        "stride",
        "lookback",
        "horizon",
    ),
    *("validation_days", "backtest_origins", "device", "seeds", "verbose", "json"),
)
"""Flags of the first section, in its order."""
_SECTIONS = {
    "reading of CSVs": Role.BARS,
    "windows and holdout": Role.WINDOWS | Role.HOLDOUT,
    "training": Role.TRAINING | Role.ROUNDING | Role.NAME,
    "forecasts": Role.SAMPLING | Role.FORECAST,
    "evaluation and promotion": Role.EVALUATION | Role.DECISION,
    "execution": Role.RUN | Role.MODEL,
}
"""The settings of a section by their roles; a setting is in the first section with one of its roles."""
_ADAPTERS = "adapters"
_FEW = 14
"""Largest number of flags that are not divided into sections."""
_METAVARS = {"int": "N", "float": "X", "str": "TEXT", "list[str]": "A,B"}


class FlagHelp(RawDescriptionHelpFormatter):
    """Formatter of argparse for the flags of a command: sections, effective defaults, and no flags without effect."""

    def __init__(self, prog: str, relevant: Role | None = None) -> None:
        """Set the command.

        Args:
            prog: the command's name.
            relevant: the roles of the settings that matter to the command; None for all.
        """
        super().__init__(prog, max_help_position=30)
        self._left_out: frozenset[str] = (
            frozenset() if relevant is None else settings_of(~relevant) - settings_of(relevant)
        )

    def add_usage(self, usage: Any, actions: Iterable[Action], groups: Any, prefix: str | None = None) -> None:
        """Name the positional arguments, and all flags in one word."""
        if prefix is not None:  # argparse asks for the name of subcommands
            super().add_usage(usage, actions, groups, prefix)
            return
        words = [action.metavar or action.dest for action in actions if not action.option_strings]
        super().add_usage(" ".join([self._prog, *map(str, words), "[flags]"]), [], [], prefix)

    def add_text(self, text: str | None) -> None:
        """Add a description, each paragraph of a docstring as wide as the terminal."""
        paragraphs = re.split(r"\n\s*\n", text or "")
        super().add_text("\n\n".join(fill(" ".join(words.split()), self._width) for words in paragraphs) or None)

    def add_arguments(self, actions: Iterable[Action]) -> None:
        """Divide the flags into sections; name the number of the flags that are left out."""
        shown = [action for action in actions if _field(action) not in self._left_out]
        positional = [action for action in shown if not action.option_strings]
        flags = [action for action in shown if action.option_strings]
        super().add_arguments(positional)
        if len(flags) <= _FEW:
            super().add_arguments(flags)
            return
        self.end_section()
        for title, members in _divided(flags).items():
            self.start_section(title)
            super().add_arguments(members)
            self.end_section()
        self.start_section(None)
        if self._left_out:
            self.add_text("The other flags of `kronos train` are accepted too.")

    def _format_action_invocation(self, action: Action) -> str:
        if not action.option_strings or isinstance(action.metavar, tuple):
            return super()._format_action_invocation(action)
        names = list(action.option_strings)
        if isinstance(action, BooleanOptionalAction) and "(default: False)" in (action.help or ""):
            names = [name for name in names if not name.startswith("--no-")]
        value = _METAVARS.get(str(action.metavar), str(action.metavar)) if action.metavar else ""
        return f"{', '.join(names)} {value}".strip()

    def _get_help_string(self, action: Action) -> str:
        """Return the help with the default that holds: one from the environment, and none that says nothing."""
        text = re.sub(r" \(default: (None|\[\]|False)\)$", "", action.help or "")
        text = text.replace("(default: True)", "(default: on)")
        text = re.sub(r"\(default: \[(.*)\]\)$", lambda found: f"(default: {found[1].replace(chr(39), '')})", text)
        field = _field(action)
        if field in environment_settings():
            value = str(_as_flag(environment_settings()[field])).replace("%", "%%")
            text = re.sub(r" \[environment: \w+\]|; by default as in the ticker's last evaluation", "", text)
            text = re.sub(r" \(default: .*\)$", "", text)
            return f"{text} (default: {value}, from {environment_variable(field)})"
        return text


def _field(action: Action) -> str:
    return action.dest.rpartition(".")[2]


def _as_flag(value: Any) -> Any:
    return ",".join(value) if isinstance(value, list) else value


def _divided(flags: Iterable[Action]) -> Mapping[str, list[Action]]:
    """Return the flags by section, sections and the most used flags in the order of the help."""
    by_field = {_field(action): action for action in flags}
    sections = {"most used": [by_field[field] for field in ("help", *MOST_USED) if field in by_field]}
    rest = {field: action for field, action in by_field.items() if field not in ("help", *MOST_USED)}
    for field, action in rest.items():
        sections.setdefault(section_of(field), []).append(action)
    order = ["most used", *_SECTIONS, _ADAPTERS, "others"]
    order.insert(order.index("forecasts"), order.pop(order.index(_ADAPTERS)))
    return {title: sections[title] for title in order if title in sections}


def section_of(field: str) -> str:
    """Return the section of a setting, such as "training"; "others" for a flag that is no setting."""
    if field == "accept_history":
        return next(iter(_SECTIONS))
    if field.startswith("adapter") or field == "freeze_backbone":
        return _ADAPTERS
    return next((title for title, roles in _SECTIONS.items() if field in settings_of(roles)), "others")
