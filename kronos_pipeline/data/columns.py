"""Find the columns of a CSV by the meaning of their names, and choose between columns that mean the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import pyarrow as pa
import pyarrow.compute as pc

from kronos_pipeline.data.bars import FEATURES, PRICES
from kronos_pipeline.data.column_names import TIME_MEANINGS, is_plain_name, meaning_of, normal_name, volume_unit

Meaning = tuple[str, int]
"""The meaning of a name, and its rank: 0 for the best names."""

_ZERO = r"^[+-]?0*(?:[.,]0*)?$"
"""A cell that is 0 or empty."""


@dataclass(frozen=True)
class ChosenColumns:
    """The columns of a file that are used.

    Attributes:
        positions: the position of each column by feature, `adj_close` or `symbol`.
        times: the positions of the columns that may hold the time, the best column first.
        notes: decisions between columns.
        problems: the meaning and the broken rule of each choice that cannot be made.
    """

    positions: dict[str, int]
    times: tuple[int, ...]
    notes: tuple[str, ...]
    problems: tuple[tuple[str, str], ...]


def header_meanings(names: Sequence[str], wanted: Mapping[str, str]) -> list[Meaning | None]:
    """Return the meaning of each name of a header.

    Args:
        names: the names.
        wanted: the user's names of columns by meaning; they overrule the table of names.
    """
    return list(_header_meanings(tuple(names), tuple(wanted.items())))


@lru_cache(256)
def _header_meanings(names: Sequence[str], wanted_pairs: Sequence[tuple[str, str]]) -> Sequence[Meaning | None]:
    wanted = dict(wanted_pairs)
    stripped = _without_affix(names)
    meanings = [meaning_of(name) for name in stripped]
    chosen = {
        meaning: position for meaning, name in wanted.items() if (position := name_position(names, name)) is not None
    }
    if chosen.keys() & set(TIME_MEANINGS):
        meanings = [None if entry and entry[0] in TIME_MEANINGS else entry for entry in meanings]
    meanings = [None if entry and entry[0] in chosen else entry for entry in meanings]
    for meaning, position in chosen.items():
        meanings[position] = (meaning, 0)
    return meanings


def side_by_side(names: Sequence[str]) -> list[str]:
    """Return the prefixes or suffixes of names, such as AAPL of AAPL.Open, that each have all four prices."""
    known = {normal_name(name) for name in names}
    if known >= set(PRICES):
        return []
    affixes = [name.removesuffix("open") for name in known if name.endswith("open")]
    prefixes = [affix for affix in affixes if affix and all(affix + price in known for price in PRICES)]
    affixes = [name.removeprefix("open") for name in known if name.startswith("open")]
    suffixes = [affix for affix in affixes if affix and all(price + affix in known for price in PRICES)]
    return sorted({affix.upper() for affix in (*prefixes, *suffixes)})


def choose_columns(
    names: Sequence[str], meanings: Sequence[Meaning | None], cells: Callable[[int], pa.StringArray], ticker: str
) -> ChosenColumns:
    """Choose a column for each meaning: the column with the best name.

    Args:
        names: the names of the header.
        meanings: their meanings.
        cells: returns the cells of the column at a position.
        ticker: the symbol; it tells the base from the quote currency in `Volume ETH` and `Volume BTC`.
    """
    notes: list[str] = []
    problems: list[tuple[str, str]] = []
    positions: dict[str, int] = {}
    candidates = _candidates(meanings)
    if "close" not in candidates and (adjusted := candidates.pop("adj_close", [])):
        candidates["close"] = adjusted
        notes.append(f"close is {names[adjusted[0]]}, as no column is called Close")
    candidates |= _base_and_quote(names, candidates, ticker)
    if len(volumes := candidates.get("volume", [])) > 1:
        traded = [position for position in volumes if not _all_zero(cells(position))]
        if traded and traded[0] != volumes[0]:
            empty = ", ".join(names[position] for position in volumes[: volumes.index(traded[0])])
            notes.append(f"volume is {names[traded[0]]}, as {empty} is 0 in every line")
            candidates["volume"] = traded[:1]
    for meaning in (*FEATURES, "adj_close", "symbol"):
        if not (matches := candidates.get(meaning)):
            continue
        best = [position for position in matches if meanings[position] == meanings[matches[0]]]
        if len(best) > 1 and meaning != "symbol" and not all(cells(other).equals(cells(best[0])) for other in best[1:]):
            shown = ", ".join(names[position] for position in best)
            rule = f"{len(best)} columns for it ({shown}); keep one, or say --columns {meaning}={names[best[0]]}"
            problems.append((meaning, rule))
        elif len(matches) > 1:
            others = ", ".join(dict.fromkeys(names[position] for position in matches[1:]))
            duplicated = others == names[matches[0]]
            notes.append(
                f"{others} is there twice, with the same cells"
                if duplicated
                else f"{meaning} is {names[matches[0]]}, and not {others}"
            )
        positions[meaning] = matches[0]
    return ChosenColumns(positions, tuple(_times(names, meanings, candidates)), tuple(notes), tuple(problems))


def meaning_notes(names: Mapping[str, str], notes: Sequence[str]) -> list[str]:
    """Return the note on features whose columns have another name.

    Args:
        names: the file's spelling by feature.
        notes: notes that are there already.
    """
    others = [f"{key} is {name}" for key, name in names.items() if key in FEATURES and not is_plain_name(key, name)]
    others = [text for text in others if not any(note.startswith(f"{text},") for note in notes)]
    if not others:
        return []
    foreign = "volume" in names and not is_plain_name("volume", names["volume"])
    units = "; volume and amount are in the file's own units" if foreign and "amount" in names else ""
    if units and is_plain_name("ts code", names.get("symbol", "")):
        units += ", lots of 100 and thousands for TuShare's stocks"
    return [f"columns by meaning: {', '.join(others)}{units}"]


def name_position(names: Sequence[str], name: str) -> int | None:
    """Return the position of a user's name among the names of a header: the very name, in any case, or much like it."""
    for same in (lambda text: text, str.casefold, normal_name):
        matches = [position for position, text in enumerate(names) if same(text) == same(name)]
        if matches:
            return matches[0]
    return None


def _without_affix(names: Sequence[str]) -> Sequence[str]:
    affixes = side_by_side(names)
    if len(affixes) != 1:
        return names
    affix = affixes[0].lower()

    def without(name: str) -> str:
        text = normal_name(name).removeprefix(affix).removesuffix(affix)
        # A volume keeps its unit: close_usd is a close, and volume_usd and Volume (USD) are money.
        return name if text == normal_name(name) or volume_unit(name) == affix else text

    return [without(name) for name in names]


def _candidates(meanings: Sequence[Meaning | None]) -> dict[str, list[int]]:
    """Return the positions of each meaning, those of the best names first."""
    positions: dict[str, list[int]] = {}
    for position in sorted(range(len(meanings)), key=lambda index: (meanings[index] or ("", 0))[1]):
        if meaning := meanings[position]:
            positions.setdefault(meaning[0], []).append(position)
    return positions


def _base_and_quote(names: Sequence[str], candidates: Mapping[str, list[int]], ticker: str) -> dict[str, list[int]]:
    """Tell `Volume ETH` from `Volume BTC` for ETHBTC: the base currency's is the volume, the other is the amount."""
    money_columns = [*candidates.get("volume", []), *candidates.get("amount", [])]
    if len(money_columns) != 2:
        return {}
    for base, quote in (money_columns, money_columns[::-1]):
        units = volume_unit(names[base]), volume_unit(names[quote])
        if None not in units and normal_name(ticker) == "".join(map(str, units)):
            return {"volume": [base], "amount": [quote]}
    return {}


def _all_zero(cells: pa.StringArray) -> bool:
    return bool(pc.all(pc.match_substring_regex(pc.utf8_trim_whitespace(cells), _ZERO)).as_py())


def _times(names: Sequence[str], meanings: Sequence[Meaning | None], candidates: Mapping[str, list[int]]) -> list[int]:
    # Without the times of closing and the like where a column has the times of opening.
    best = min((entry[1] for entry in meanings if entry and entry[0] == "time"), default=0)
    times = [
        position
        for meaning in TIME_MEANINGS
        for position in sorted(candidates.get(meaning, []))
        if meaning != "time" or meanings[position] == ("time", best)
    ]
    if not times and names and meanings[0] is None and normal_name(names[0]) in ("", "unnamed0", "index"):
        return [0]
    return times
