"""What repeats is told once, and then by its count: the first of a kind at once, the others once a minute.

No key, however often it comes, gets more than that, and what is kept is bounded.
"""

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field
from itertools import takewhile

WINDOW_S = 60.0
MOST_KEYS = 10_000
"""All others are counted together, under None."""
MOST_REASONS = 5
"""Of a key; what has another reason is counted under `OTHERS`."""
MOST_CHARACTERS = 200
"""Of a reason."""
OTHERS = "others"


@dataclass(frozen=True, slots=True)
class Summary:
    """What came of one key since its last line, those left out that had a line of their own."""

    key: Hashable
    seconds: float
    counts: dict[str, int]
    """By kind."""
    reasons: dict[str, int]


@dataclass(slots=True)
class _Window:
    since: float
    told: set[str] = field(default_factory=set)
    """The kinds that had a line of their own, as long as the key goes on."""
    counts: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)


class Digest:
    def __init__(self) -> None:
        self._windows: dict[Hashable, _Window] = {}
        """Those that began first stand first."""

    def __len__(self) -> int:
        return len(self._windows)

    def note(self, key: Hashable, kind: str, reason: str, now: float) -> bool:
        """Take one in; True if it is to be told at once, False if it is counted."""
        window = self._windows.get(key)
        if window is None:
            if len(self._windows) >= MOST_KEYS:
                key = None
            window = self._windows.setdefault(key, _Window(now))
        if key is not None and kind not in window.told:
            window.told.add(kind)
            return True
        window.counts[kind] += 1
        reason = reason[:MOST_CHARACTERS]
        room = len(window.reasons) < MOST_REASONS or reason in window.reasons
        window.reasons[reason if room else OTHERS] += 1
        return False

    def due(self, now: float) -> list[Summary]:
        """What there is to tell of keys whose minute is over; one that stopped is forgotten."""
        ended = list(takewhile(lambda key: self._windows[key].since <= now - WINDOW_S, self._windows))
        return [summary for key in ended if (summary := self._end(key, now, go_on=True))]

    def drain(self, now: float) -> list[Summary]:
        """What there is to tell of all of them, whose minutes end early."""
        return [summary for key in list(self._windows) if (summary := self._end(key, now, go_on=False))]

    def _end(self, key: Hashable, now: float, *, go_on: bool) -> Summary | None:
        window = self._windows.pop(key)
        if not window.counts:
            return None
        if go_on:
            self._windows[key] = _Window(now, window.told)
        reasons = dict(window.reasons.most_common())
        return Summary(key, round(now - window.since, 1), dict(window.counts), reasons)
