"""Which endpoints subscribe to an event: patterns, and an index that finds their endpoints.

A pattern is an exact event type (`deal.updated`), a prefix (`deal.*`) or all (`*`). Operational events of
Postrider itself (`endpoint.disabled`) are not part of all: they need a pattern that names them.
"""

import re
from collections import defaultdict
from collections.abc import Iterable

from postrider.domain.errors import UsageError
from postrider.domain.model import Endpoint, EndpointState

MAX_PATTERN_LENGTH = 128
OPERATIONAL_PREFIX = "endpoint."
"""What the types of Postrider's own events start with."""

_MEMO_SIZE = 4_096
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


class Matcher:
    """An index over one snapshot of the endpoints. It looks only at endpoints that have a matching pattern.

    Active and paused endpoints match (events of a paused one wait); all other states are left out.
    """

    def __init__(self, endpoints: Iterable[Endpoint]) -> None:
        self._subscribers: defaultdict[tuple[str, str], list[Endpoint]] = defaultdict(list)
        for endpoint in endpoints:
            if endpoint.state in (EndpointState.ACTIVE, EndpointState.PAUSED):
                for pattern in endpoint.patterns:
                    self._subscribers[endpoint.workspace_id, pattern].append(endpoint)
        self._memo: dict[tuple[str, str], tuple[Endpoint, ...]] = {}

    def match(self, workspace_id: str, event_type: str) -> tuple[Endpoint, ...]:
        """The endpoints of the workspace that get events of this type: each once, ordered by id."""
        key = workspace_id, event_type
        found = self._memo.get(key)
        if found is None:
            if len(self._memo) >= _MEMO_SIZE:
                self._memo.clear()
            found = self._memo[key] = self._search(workspace_id, event_type)
        return found

    def _search(self, workspace_id: str, event_type: str) -> tuple[Endpoint, ...]:
        patterns = matching_patterns(event_type)
        candidates = {
            endpoint.id: endpoint
            for pattern in patterns
            for endpoint in self._subscribers.get((workspace_id, pattern), ())
        }
        return tuple(
            endpoint for _, endpoint in sorted(candidates.items()) if patterns.isdisjoint(endpoint.exclusions)
        )
