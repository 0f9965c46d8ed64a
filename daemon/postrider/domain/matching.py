"""Which endpoints subscribe to an event: patterns, and an index that finds their endpoints.

A pattern is an exact event type (`deal.updated`), a prefix (`deal.*`) or all (`*`). Operational events of
Postrider itself (`endpoint.disabled`) are not part of all: they need a pattern that names them.
"""

import re
from bisect import bisect_left, insort
from collections.abc import Iterable, KeysView
from operator import attrgetter

from postrider.domain.errors import UsageError
from postrider.domain.model import Endpoint

MAX_PATTERN_LENGTH = 128
OPERATIONAL_PREFIX = "endpoint."
"""What the types of Postrider's own events start with."""

_MEMO_SIZE = 1_000_000
"""Endpoints in all answers that are remembered; each answer itself counts for as much as a few."""
_ANSWER_SIZE = 16
_id = attrgetter("id")
_TYPE = re.compile(r"[a-zA-Z0-9_]+(?:\.[a-zA-Z0-9_]+)*")
_PATTERN = re.compile(rf"\*|{_TYPE.pattern}(?:\.\*)?")


def parse_pattern(text: str) -> str:
    """The pattern in `text`, without white space around it. Raises UsageError when it is not one."""
    pattern = text.strip()
    if len(pattern) > MAX_PATTERN_LENGTH:
        raise UsageError(
            f"event pattern {pattern[:32]!r}… is longer than {MAX_PATTERN_LENGTH} characters",
            "Separate several patterns with commas.",
        )
    if _PATTERN.fullmatch(pattern):
        return pattern
    stem = pattern.rstrip("*.")
    if _TYPE.fullmatch(stem):
        hint = f"Did you mean {stem}.*?"
    else:
        hint = (
            "Write an event type (deal.updated), a prefix (deal.*) or * for all; "
            "names consist of letters, digits and _, separated by dots."
        )
    raise UsageError(f"{pattern!r} is not an event pattern", hint)


def matching_patterns(event_type: str) -> frozenset[str]:
    """Every pattern that matches events of this type."""
    segments = event_type.split(".")
    prefixes = {".".join([*segments[:end], "*"]) for end in range(1, len(segments))}
    everything = () if event_type.startswith(OPERATIONAL_PREFIX) else ("*",)
    return frozenset({event_type, *prefixes, *everything})


def covers(patterns: Iterable[str], exclusions: Iterable[str], event_type: str) -> bool:
    """Whether a subscription is to events of this type."""
    matching = matching_patterns(event_type)
    return not matching.isdisjoint(patterns) and matching.isdisjoint(exclusions)


def wants(endpoint: Endpoint, event_type: str) -> bool:
    """Whether an endpoint is subscribed to events of this type, whatever its state."""
    return covers(endpoint.patterns, endpoint.exclusions, event_type)


class Matcher:
    """An index over the endpoints that are subscribed: it looks only at those with a matching pattern."""

    def __init__(self, endpoints: Iterable[Endpoint] = ()) -> None:
        self._endpoints: dict[int, Endpoint] = {}
        self._subscribers: dict[tuple[str, str], list[Endpoint]] = {}
        """By workspace and pattern, in the order of their ids."""
        self._memo: dict[str, dict[str, tuple[Endpoint, ...]]] = {}
        """By workspace and event type."""
        self._remembered = 0
        self.update(endpoints)

    def __len__(self) -> int:
        return len(self._endpoints)

    def get(self, endpoint_id: int) -> Endpoint | None:
        return self._endpoints.get(endpoint_id)

    def ids(self) -> KeysView[int]:
        """Of all endpoints, whatever their state."""
        return self._endpoints.keys()

    def update(self, changed: Iterable[Endpoint], gone: Iterable[int] = ()) -> None:
        """Add endpoints or put them in the place of those with their ids; forget others."""
        for endpoint in changed:
            self._remove(endpoint.id)
            self._endpoints[endpoint.id] = endpoint
            if endpoint.subscribed:
                for key in _keys(endpoint):
                    insort(self._subscribers.setdefault(key, []), endpoint, key=_id)
                self._forget(endpoint.workspace_id)
        for endpoint_id in gone:
            self._remove(endpoint_id)

    def match(self, workspace_id: str, event_type: str) -> tuple[Endpoint, ...]:
        """The endpoints of the workspace that get events of this type: each once, ordered by id."""
        remembered = self._memo.get(workspace_id)
        if remembered is not None and (found := remembered.get(event_type)) is not None:
            return found
        found = self._search(workspace_id, event_type)
        size = len(found) + _ANSWER_SIZE
        if self._remembered + size > _MEMO_SIZE:
            self._memo.clear()
            self._remembered = 0
        self._memo.setdefault(workspace_id, {})[event_type] = found
        self._remembered += size
        return found

    def _search(self, workspace_id: str, event_type: str) -> tuple[Endpoint, ...]:
        patterns = matching_patterns(event_type)
        lists = [
            found for pattern in patterns if (found := self._subscribers.get((workspace_id, pattern), ()))
        ]
        candidates = lists[0] if len(lists) == 1 else _merged(lists)
        return tuple([e for e in candidates if not e.exclusions or patterns.isdisjoint(e.exclusions)])

    def _remove(self, endpoint_id: int) -> None:
        endpoint = self._endpoints.pop(endpoint_id, None)
        if endpoint is None or not endpoint.subscribed:
            return
        for key in _keys(endpoint):
            subscribers = self._subscribers[key]
            del subscribers[bisect_left(subscribers, endpoint_id, key=_id)]
            if not subscribers:
                del self._subscribers[key]
        self._forget(endpoint.workspace_id)

    def _forget(self, workspace_id: str) -> None:
        for found in self._memo.pop(workspace_id, {}).values():
            self._remembered -= len(found) + _ANSWER_SIZE


def _keys(endpoint: Endpoint) -> set[tuple[str, str]]:
    return {(endpoint.workspace_id, pattern) for pattern in endpoint.patterns}


def _merged(lists: Iterable[Iterable[Endpoint]]) -> list[Endpoint]:
    return sorted({endpoint.id: endpoint for each in lists for endpoint in each}.values(), key=_id)
