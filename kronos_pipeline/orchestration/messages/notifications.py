"""Messages to people by apprise: a webhook, Slack, mail and a hundred other services.

The addresses are secrets, so they come from the environment alone (KRONOS_NOTIFY_URLS), and no log, tag or error shows
them: a service that does not answer is named by its kind and number.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

VARIABLE = "KRONOS_NOTIFY_URLS"


@dataclass(frozen=True)
class Delivery:
    """The outcome of a message.

    Attributes:
        sent: the number of services that took it.
        problems: a sentence for each service that did not.
    """

    sent: int
    problems: Sequence[str]


def notify(urls: str, title: str, markdown: str) -> Delivery:
    """Send a message to each service; a service that fails is a problem in the outcome, never an exception.

    Args:
        urls: addresses of apprise, separated by commas or spaces; none if empty.
        title: a line.
        markdown: the text.
    """
    if not urls.strip():
        return Delivery(0, [])
    import apprise  # takes a second
    from apprise.logger import logger
    from apprise.utils.parse import parse_urls

    logger.setLevel(logging.CRITICAL + 1)  # its messages may hold an address
    sent, problems = 0, []
    for number, url in enumerate(parse_urls(urls) or [urls], 1):  # type: ignore[no-untyped-call]
        service = apprise.Apprise.instantiate(url, suppress_exceptions=True)
        if service is None:
            problems.append(f"address {number} of {VARIABLE} is none that apprise knows")
        elif _delivered(service, title, markdown):
            sent += 1
        else:
            problems.append(f"address {number} of {VARIABLE} ({service.service_name}) did not take the message")
    return Delivery(sent, problems)


def _delivered(service: Any, title: str, markdown: str) -> bool:
    import apprise

    services = apprise.Apprise()
    services.add(service)
    try:
        return bool(services.notify(title=title, body=markdown, body_format=apprise.NotifyFormat.MARKDOWN))
    except Exception:  # whatever a service's plugin raises: its text may hold the address
        return False
