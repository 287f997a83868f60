"""What other machines publish to the artifact store, fetched by a sensor a part at a time: no tick lasts long."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

from kronos_pipeline.artifact_store.names import ALL
from kronos_pipeline.artifact_store.sharing import shared_folder
from kronos_pipeline.artifacts import ArtifactLayout
from kronos_pipeline.errors import KronosError

_AT_ONCE = 8
"""Tickers that are fetched together between two looks at the clock."""


class PublishedArtifacts:
    """What this process has fetched of the store.

    A look at a store that names a tag for each object, such as S3, is a listing; only changed tickers are asked for.
    """

    def __init__(self) -> None:
        self._tags: dict[str, str | None] = {}
        self._asked: dict[str, int] = {}
        self._turn = 0

    def fetch(
        self, layout: ArtifactLayout, tickers: Collection[str], seconds: float, say: Callable[[str], None]
    ) -> None:
        """Fetch what was published since the last call, the longest unasked tickers first; nothing without a store.

        Args:
            layout: the output folder.
            tickers: the tickers to fetch.
            seconds: time after which the rest is left to the next call.
            say: takes what could not be fetched, a sentence each.
        """
        deadline = time.monotonic() + seconds
        try:
            folder = shared_folder(layout.root)
            if folder is None:
                return
            tags = folder.published()
            changed = [group for group in (ALL, *tickers) if group in tags and self._has_changed(group, tags[group])]
            changed.sort(key=lambda group: self._asked.get(group, 0))
            for first in range(0, len(changed), _AT_ONCE):
                part = changed[first : first + _AT_ONCE]
                fetched = folder.fetch([group for group in part if group != ALL])
                self._turn += 1
                self._asked |= dict.fromkeys(part, self._turn)
                self._tags |= {group: tags[group] for group in part}
                for line in (*fetched.notes, *map(str, fetched.errors.values())):
                    say(line)
                if time.monotonic() > deadline:
                    break
        except KronosError as error:
            say(str(error))

    def _has_changed(self, group: str, tag: str | None) -> bool:
        return tag is None or self._tags.get(group) != tag
