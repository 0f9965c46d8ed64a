"""The catalogue of a dialect: the event types that a CRM promises its customers, each with a sample."""

import difflib
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Annotated, Any, Literal

import msgspec
import orjson

from postrider.domain.errors import UsageError
from postrider.domain.matching import MAX_PATTERN_LENGTH, OPERATIONAL_PREFIX, covers, matching_patterns

TYPE_PATTERN = r"^[a-zA-Z0-9_]+(\.[a-zA-Z0-9_]+)*\Z"
TypeName = Annotated[str, msgspec.Meta(pattern=TYPE_PATTERN, max_length=MAX_PATTERN_LENGTH)]


def check_type(text: str) -> None:
    """Raise UsageError for what no event can have as its type; `postrider.emit` in sql/ has the same rule."""
    if len(text) > MAX_PATTERN_LENGTH or not re.match(TYPE_PATTERN, text):
        raise UsageError(
            f"event type {text[:150]!r} is not valid",
            f"Use up to {MAX_PATTERN_LENGTH} letters, digits and underscores in parts joined by dots, as in "
            "deal.updated.",
        )


class SampleObject(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A record of the CRM as its events carry it. The texts are JSON objects, kept in their key order."""

    data: str
    id: str | None = None
    actor: str | None = None
    related: str | None = None

    def __post_init__(self) -> None:
        for name in ("data", "actor", "related"):
            if (text := getattr(self, name)) is not None:
                _object(text, name)


class EventType(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    type: TypeName
    description: str
    group: str = ""
    object: str | None = None
    """The sample object, by its name; None takes the type without its last part."""
    changed: dict[str, Any] = {}
    """Fields in which the event's data differs from the sample object; these were changed by the event."""
    status: Literal["available", "planned"] = "available"

    @property
    def object_type(self) -> str:
        return self.object or self.type.rpartition(".")[0] or self.type


class Sample(msgspec.Struct, frozen=True):
    """The parts of a sample event, as JSON text."""

    object_type: str | None
    object_id: str | None
    data: str
    previous_attributes: str | None
    actor: str | None
    related: str | None


class Catalogue:
    """The event types of a dialect by name. A closed one knows every type that there is."""

    def __init__(
        self, types: Iterable[EventType], objects: Mapping[str, SampleObject], *, closed: bool
    ) -> None:
        self.types = {each.type: each for each in types}
        self.closed = closed
        self._objects = objects

    def sample(self, event_type: str) -> Sample:
        """The sample of a type. Raises UsageError for an unknown one."""
        known = self.types.get(event_type)
        if known is None:
            raise self._unknown(f"there is no event type {event_type!r}", event_type)
        shown = self._objects[known.object_type]
        data = orjson.loads(shown.data)
        previous = {name: data[name] for name in known.changed if name in data}
        return Sample(
            object_type=known.object_type,
            object_id=shown.id or (data["id"] if isinstance(data.get("id"), str) else None),
            data=_text(data | known.changed),
            previous_attributes=_text(previous) if previous else None,
            actor=_compact(shown.actor),
            related=_compact(shown.related),
        )

    def check_type(self, event_type: str) -> None:
        """Raise UsageError for a type that a closed catalogue does not have."""
        if self.closed and event_type not in self.types and not event_type.startswith(OPERATIONAL_PREFIX):
            raise self._unknown(f"there is no event type {event_type!r}", event_type)

    def check_pattern(self, pattern: str) -> None:
        """Raise UsageError for a pattern that matches no type of a closed catalogue."""
        if not self.closed or pattern.startswith(OPERATIONAL_PREFIX):
            return
        if not any(pattern in matching_patterns(event_type) for event_type in self.types):
            raise self._unknown(f"no event type matches {pattern!r}", pattern)

    def planned(self, patterns: Collection[str], exclusions: Collection[str]) -> list[str]:
        """The event types of a subscription that the CRM plans, and does not announce yet."""
        return [
            each.type
            for each in self.types.values()
            if each.status == "planned" and covers(patterns, exclusions, each.type)
        ]

    def _unknown(self, message: str, name: str) -> UsageError:
        known = set(self.types)
        if name.endswith(".*"):
            known = {f"{each.rpartition('.')[0]}.*" for each in self.types}
        nearest = _nearest(name, known)
        hint = f"Did you mean {nearest}?" if nearest else "`postrider dialect show` lists the event types."
        return UsageError(message, hint)


def _nearest(name: str, known: Iterable[str]) -> str | None:
    folded = {each.lower(): each for each in known}
    found = difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0.5)
    return folded[found[0]] if found else None


def check_catalogue(types: Iterable[EventType], objects: Mapping[str, SampleObject]) -> None:
    """Raise ValueError for a type that is told twice, or has no sample."""
    seen = set()
    for each in types:
        if each.type in seen:
            raise ValueError(f"the event type {each.type} is told twice")
        seen.add(each.type)
        if each.object_type not in objects:
            raise ValueError(f"{each.type} has no sample: there is no [objects.{each.object_type}]")


def _object(text: str, name: str) -> dict[str, Any]:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"{name} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{name} is not a JSON object")
    return value


def _text(value: object) -> str:
    return orjson.dumps(value).decode()


def _compact(text: str | None) -> str | None:
    return None if text is None else _text(orjson.loads(text))
