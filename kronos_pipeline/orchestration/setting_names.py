"""Names of settings in texts: messages name the flags of the command line, and the launchpad takes YAML."""

from __future__ import annotations

import re
from typing import Any, Literal, get_args, get_origin

from kronos_pipeline.config import KronosTrainingConfig

_FIELDS = KronosTrainingConfig.model_fields
_FLAGS = {name.replace("_", "-"): name for name in _FIELDS} | {"from": "from_date"}
_FLAG = re.compile(
    r"`[^`]*`"  # a command to copy stays as it is
    rf"|--(?P<no>no-)?(?P<flag>{'|'.join(sorted(_FLAGS, key=len, reverse=True))})(?![\w-])(?P<colon>:)?"
    r"(?: (?P<value>[^\s;)]*[^\s;).,:]))?"
)


def name_settings(text: str) -> str:
    """Return a text that names settings as the launchpad does, and not as flags.

    Examples:
        >>> name_settings("--drop-bad-rows 1 leaves out the bad row; or lower --horizon")
        "`drop_bad_rows: '1'` leaves out the bad row; or lower `horizon`"
    """
    return _FLAG.sub(_replaced, text)


def _replaced(match: re.Match[str]) -> str:
    if not match["flag"]:
        return match[0]
    name = _FLAGS[match["flag"]]
    rest = f"{match['colon'] or ''} {match['value']}" if match["value"] else match["colon"] or ""
    if match["colon"]:
        return f"`{name}`{rest}"
    if _FIELDS[name].annotation is bool:
        return f"`{name}: {'false' if match['no'] else 'true'}`{rest}"
    value = _as_yaml(match["value"] or "", _FIELDS[name].annotation)
    return f"`{name}: {value}`" if value else f"`{name}`{rest}"


def _as_yaml(text: str, kind: Any) -> str | None:
    """Return the value after a flag as YAML, or None if the word is no value of the setting."""
    if get_origin(kind) is list:
        return f"[{', '.join(map(repr, text.split(',')))}]" if re.search(r"=|^\d{4}-\d\d-\d\d$", text) else None
    if get_origin(kind) is Literal:
        return text if text in get_args(kind) else None
    if not re.fullmatch(r"[\d.]+%?", text):
        return None
    return repr(text) if kind is str else text
