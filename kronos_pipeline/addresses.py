"""Addresses of databases, servers and services, shown without the user and the password that they may hold."""

from __future__ import annotations

import re
from urllib.parse import unquote

_SECRET = re.compile(
    r"(?<=[?&])(?:user|username|password|passwd|token|key|secret|sslpassword|access_key)=[^&]*&?", re.IGNORECASE
)
_SHORTEST = 4
"""Characters of a password below which it is not looked for in a text, as any word may hold it."""


def without_password(url: str) -> str:
    """Return an address without user and password, for display.

    A password may hold a slash or an @ that its user has not encoded, so the last @ ends it.
    """
    scheme, mark, rest = url.partition("://")
    if rest.startswith("/"):  # a file
        return url
    path, question, query = rest.partition("?")
    if question and "@" in query and "@" not in path:
        path, question, query = rest, "", ""
    shown = f"{scheme}{mark}{path.rpartition('@')[2]}{question}{query}"
    return _SECRET.sub("", shown).rstrip("?&")


def without_secrets(text: str, url: str) -> str:
    """Return a text, such as the message of a library, without the user and the password of an address."""
    shown = without_password(url)
    if shown == url:
        return text
    text = text.replace(url, shown)
    login, at, _ = url.partition("://")[2].rpartition("@")
    secrets = login.split(":", 1)[1:] if at else []
    secrets += [match[0].rstrip("&").partition("=")[2] for match in _SECRET.finditer(url)]
    # A library cuts an address where an unencoded mark seems to end a part, and shows the rest.
    secrets += [part for secret in secrets for part in re.split(r"[@:/?#\s]", secret)]
    for secret in sorted({login, *secrets, *map(unquote, secrets)}, key=len, reverse=True):
        if len(secret) >= _SHORTEST:
            text = text.replace(secret, "…")
    return text
