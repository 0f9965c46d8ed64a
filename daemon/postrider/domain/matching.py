"""Which endpoints subscribe to an event: patterns, and an index that finds their endpoints.

A pattern is an exact event type (`deal.updated`), a prefix (`deal.*`) or all (`*`). Operational events of
Postrider itself (`endpoint.disabled`) are not part of all: they need a pattern that names them.
"""

import re
from bisect import bisect_left, insort
from collections.abc import Iterable, KeysView, Sequence
from itertools import chain
from operator import attrgetter

from postrider.domain.errors import UsageError
from postrider.domain.model import Endpoint

MAX_PATTERN_LENGTH = 128
OPERATIONAL_PREFIX = "endpoint."
"""What the types of Postrider's own events start with."""

_MEMO_SIZE = 1_000_000
"""Endpoints in all answers that are remembered; each answer itself counts for as much as a few."""
_ANSWER_SIZE = 16
_MENDED = 128
"""An answer that more endpoints changed since is found anew."""
_CHANGES = 1024
"""Changes that are remembered of a workspace, for its answers to be mended by."""
_id = attrgetter("id")
_Key = tuple[str, str, bool]
"""Workspace, pattern, and whether they exclude something."""
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


class _Answer:
    """The endpoints of a workspace for one event type, as they were after so many of its changes."""

    __slots__ = ("changes", "found")

    def __init__(self, found: tuple[Endpoint, ...], changes: int) -> None:
        self.found = found
        self.changes = changes


class _Workspace:
    """What is remembered of one: answers by event type, and the ids of endpoints that changed since there are
    any."""

    __slots__ = ("answers", "changed")

    def __init__(self) -> None:
        self.answers: dict[str, _Answer] = {}
        self.changed: list[int] = []


class Matcher:
    """An index over the endpoints that are subscribed: it looks only at those with a matching pattern.

    What it found it remembers. A change of an endpoint costs the same however many there are: an answer that
    it concerns is mended when it is next asked for.
    """

    def __init__(self, endpoints: Iterable[Endpoint] = ()) -> None:
        self._endpoints: dict[int, Endpoint] = {}
        self._subscribers: dict[_Key, list[Endpoint]] = {}
        """In the order of their ids. An endpoint stands in one of the lists for an event, never in two."""
        self._memo: dict[str, _Workspace] = {}
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
                self._note_change(endpoint)
        for endpoint_id in gone:
            self._remove(endpoint_id)

    def match(self, workspace_id: str, event_type: str) -> tuple[Endpoint, ...]:
        """The endpoints of the workspace that get events of this type: each once, ordered by id."""
        remembered = self._memo.get(workspace_id)
        if remembered is None:
            remembered = self._memo[workspace_id] = _Workspace()
        answer = remembered.answers.get(event_type)
        if answer is not None and answer.changes == len(remembered.changed):
            return answer.found
        found = self._mended(workspace_id, event_type, answer, remembered.changed) if answer else None
        if found is None:
            found = self._search(workspace_id, event_type)
        self._remember(workspace_id, event_type, found)
        return found

    def _remember(self, workspace_id: str, event_type: str, found: tuple[Endpoint, ...]) -> None:
        remembered = self._memo[workspace_id]
        former = remembered.answers.pop(event_type, None)
        if former is not None:
            self._remembered -= len(former.found) + _ANSWER_SIZE
        size = len(found) + _ANSWER_SIZE
        if self._remembered + size > _MEMO_SIZE:
            self._memo.clear()
            self._remembered = 0
            remembered = self._memo[workspace_id] = _Workspace()
        remembered.answers[event_type] = _Answer(found, len(remembered.changed))
        self._remembered += size

    def _mended(
        self, workspace_id: str, event_type: str, answer: _Answer, changes: Sequence[int]
    ) -> tuple[Endpoint, ...] | None:
        """The answer with what changed since; None where that is too much."""
        changed = set(changes[answer.changes :])
        if len(changed) > _MENDED:
            return None
        found: Sequence[Endpoint] = answer.found
        for endpoint_id in changed:
            at = bisect_left(found, endpoint_id, key=_id)
            known = at < len(found) and found[at].id == endpoint_id
            endpoint = self._endpoints.get(endpoint_id)
            wanted = (
                endpoint is not None
                and endpoint.subscribed
                and endpoint.workspace_id == workspace_id
                and wants(endpoint, event_type)
            )
            if known or wanted:
                if not isinstance(found, list):
                    found = list(found)
                found[at : at + known] = [endpoint] if endpoint is not None and wanted else []
        return tuple(found)

    def _search(self, workspace_id: str, event_type: str) -> tuple[Endpoint, ...]:
        patterns = matching_patterns(event_type)
        lists = []
        for pattern in patterns:
            if whole := self._subscribers.get((workspace_id, pattern, False)):
                lists.append(whole)
            if excluding := self._subscribers.get((workspace_id, pattern, True)):
                lists.append([each for each in excluding if patterns.isdisjoint(each.exclusions)])
        return tuple(lists[0] if len(lists) == 1 else sorted(chain.from_iterable(lists), key=_id))

    def _remove(self, endpoint_id: int) -> None:
        endpoint = self._endpoints.pop(endpoint_id, None)
        if endpoint is None or not endpoint.subscribed:
            return
        for key in _keys(endpoint):
            subscribers = self._subscribers[key]
            del subscribers[bisect_left(subscribers, endpoint_id, key=_id)]
            if not subscribers:
                del self._subscribers[key]
        self._note_change(endpoint)

    def _note_change(self, endpoint: Endpoint) -> None:
        """Have what is remembered of its workspace mended, or forget it after very many changes."""
        remembered = self._memo.get(endpoint.workspace_id)
        if remembered is None:
            return
        if len(remembered.changed) < _CHANGES:
            remembered.changed.append(endpoint.id)
            return
        for answer in self._memo.pop(endpoint.workspace_id).answers.values():
            self._remembered -= len(answer.found) + _ANSWER_SIZE


def _keys(endpoint: Endpoint) -> list[_Key]:
    """Of the lists it stands in: those of its patterns that no wider one of it includes."""
    workspace_id, patterns, excludes = endpoint.workspace_id, endpoint.patterns, bool(endpoint.exclusions)
    if len(patterns) == 1:
        return [(workspace_id, patterns[0], excludes)]
    return [
        (workspace_id, pattern, excludes)
        for pattern in set(patterns)
        if (matching_patterns(pattern) - {pattern}).isdisjoint(patterns)
    ]
