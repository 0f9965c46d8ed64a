"""Capture sections: which rows of the CRM's tables become events, and what these say.

A section of the configuration is data; `store/capture_sql.py` makes a trigger of it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Operation = Literal["created", "updated", "deleted", "truncated"]
Timestamps = Literal["seconds", "milliseconds", "microseconds", "unix", "long_date", "relative"]
"""`long_date` is `March 15, 2026`; `relative` the same, but `Today` or `Yesterday` where that is the day."""
When = Literal["changes", "becomes", "increases", "set", "cleared"]
Scalar = str | int | float | bool

OPERATIONS: tuple[Operation, ...] = get_args(Operation)


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the row."""

    name: str
    timestamps: Timestamps | None = None
    """How a timestamp is written; None takes the section's."""


@dataclass(frozen=True, slots=True)
class Constant:
    value: Any


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting of the CRM's session, such as `crm.user_id`; null where it is not set."""

    name: str


@dataclass(frozen=True, slots=True)
class Fields:
    """An object."""

    entries: Mapping[str, "Entry"]
    if_set: str | None = None
    """A column of the row: where it is null, so is the object."""


@dataclass(frozen=True, slots=True)
class Lookup:
    """A related row, or one column of it, found by equal columns; with `many` a list of them."""

    table: str
    where: Mapping[str, "Entry"]
    """Column of the related table → what it equals, of the row that relates to it."""
    entry: "Column | Fields"
    many: bool = False
    order: str | None = None
    keep_deleted: bool = False
    """A row that the same transaction deleted is found too."""

    @property
    def columns(self) -> list[str]:
        """What is read of the related table."""
        order = [] if self.order is None else [self.order]
        return list(dict.fromkeys([*self.where, *local_columns(self.entry), *order]))


Entry = Column | Constant | Setting | Fields | Lookup


@dataclass(frozen=True, slots=True)
class Derived:
    """An event that comes of a change of one column."""

    type: str
    column: str
    when: When
    """It changes at all, becomes one of `values`, becomes one that comes later among them, is no longer null,
    or becomes null."""
    values: tuple[Scalar, ...]
    instead: bool
    """It replaces `updated`."""
    on_insert: bool
    """A new row with such a value makes it too."""


@dataclass(frozen=True, slots=True)
class Capture:
    name: str
    table: str
    object_type: str
    key: tuple[str, ...]
    """Columns that tell one row from another; they never become null."""
    object_id: Entry | None
    """What the event says is the object's id; None takes the key."""
    workspace: Entry
    timestamps: Timestamps
    columns: Fields
    actor: Entry | None
    related: Fields | None
    events: Mapping[Operation, str]
    """The event types of inserts, updates, deletes and, where the section asks for it, TRUNCATE."""
    derived: tuple[Derived, ...]
    section: Mapping[str, Any] = field(repr=False, compare=False)
    """As the configuration has it."""

    @property
    def ignores_truncate(self) -> bool:
        """Whether the section says nothing of TRUNCATE, which then tells nothing."""
        return "truncated" not in self.section.get("events", {})

    @property
    def event_types(self) -> list[str]:
        return list(dict.fromkeys([*self.events.values(), *(each.type for each in self.derived)]))


def local_columns(entry: Entry) -> Iterator[str]:
    """The columns of the row itself that an entry depends on."""
    match entry:
        case Column(name=name):
            yield name
        case Fields(entries=entries, if_set=if_set):
            if if_set is not None:
                yield if_set
            for each in entries.values():
                yield from local_columns(each)
        case Lookup(where=where):
            for each in where.values():
                yield from local_columns(each)


def lookups(capture: Capture) -> Iterator[Lookup]:
    """All of a section's, also those inside others."""
    for entry in (capture.object_id, capture.workspace, capture.columns, capture.actor, capture.related):
        if entry is not None:
            yield from _lookups_in(entry)


def _lookups_in(entry: Entry) -> Iterator[Lookup]:
    if isinstance(entry, Fields):
        for each in entry.entries.values():
            yield from _lookups_in(each)
    elif isinstance(entry, Lookup):
        yield entry
        yield from _lookups_in(entry.entry)
        for each in entry.where.values():
            yield from _lookups_in(each)
