"""Envelopes: a template of JSON, and the body that it becomes for an event.

In a template a text that starts with `$` stands for a value of the event (`$$` for a dollar sign), a table
with the key `$value` or `$each` for a value that is computed; everything else is itself. The CRM's own JSON
is spliced in byte for byte. `config/dialects/README.md` lists the values.
"""

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cached_property
from itertools import accumulate
from typing import Any

import msgspec
import orjson

from postrider.domain.errors import PostriderError
from postrider.domain.model import MAX_DATA_BYTES, MAX_DATA_DEPTH, Event

Build = Callable[["Values"], object]

ABSENT: Any = object()
"""What the event does not have. It is left out of objects and lists."""


class PayloadError(PostriderError):
    """An event that cannot be sent, however often it is tried; `message` is the reason."""


class Values:
    """What templates may ask of one event. `event_id` is its id as the dialect writes it."""

    def __init__(self, event: Event, event_id: str) -> None:
        self.event = event
        self.event_id = event_id

    def spliced(self, column: str) -> Any:
        text: str | None = getattr(self.event, column)
        if text is None:
            return ABSENT
        if _may_be_deep(text) and (depth := _depth(text)) > MAX_DATA_DEPTH:
            raise PayloadError(f"{column} is nested {depth:,} levels deep; the limit is {MAX_DATA_DEPTH:,}")
        return orjson.Fragment(text)

    def member(self, column: str, name: str) -> Any:
        raw = self.members(column).get(name)
        return ABSENT if raw is None else orjson.Fragment(bytes(raw))

    def members(self, column: str) -> Mapping[str, msgspec.Raw]:
        """The members of a JSON object, each as it was written; none where it is not an object."""
        if getattr(self.event, column) is None:
            return {}
        if column not in self._members:
            self.spliced(column)  # refuses what is nested too deep
            try:
                self._members[column] = _MEMBERS.decode(getattr(self.event, column))
            except (msgspec.DecodeError, UnicodeEncodeError):
                self._members[column] = {}
        return self._members[column]

    @cached_property
    def _members(self) -> dict[str, dict[str, msgspec.Raw]]:
        return {}


_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])


def compile_template(template: object, path: str) -> Build:
    """Turn a template into a function from an event's values to what orjson writes.

    Raises ValueError, with the path of the mistake, for a value that does not exist.
    """
    return _compile(template, path, _VALUES)


def dump_body(built: object) -> bytes:
    """Write what a template built. Raises PayloadError for text that JSON cannot hold."""
    try:
        return orjson.dumps(built)
    except orjson.JSONEncodeError as error:
        raise PayloadError(f"the event cannot be written as JSON: {error}") from None


def check_sendable(event: Event) -> None:
    """Raise PayloadError when the event is too large to be sent, or could not be read."""
    if event.problem is not None:
        raise PayloadError(event.problem)
    if event.data is None:
        raise PayloadError(f"its JSON has {event.data_bytes:,} bytes; the limit is {MAX_DATA_BYTES:,}")


def _compile(template: object, path: str, names: Mapping[str, Build]) -> Build:
    if isinstance(template, str) and template.startswith("$") and not template.startswith("$$"):
        return _named(template, path, names)
    if isinstance(template, list):
        items = [_compile(item, f"{path}[{index}]", names) for index, item in enumerate(template)]
        return lambda values: [built for item in items if (built := item(values)) is not ABSENT]
    if isinstance(template, dict):
        return _compile_table(template, path, names)
    literal = template.removeprefix("$") if isinstance(template, str) else template
    if not isinstance(literal, str | int | float):
        raise ValueError(f"{path}: a date has no place in JSON; write it as a text")
    return lambda _: literal


def _compile_table(template: Mapping[str, Any], path: str, names: Mapping[str, Build]) -> Build:
    if "$value" in template:
        return _computed(template, path, names)
    if "$each" in template:
        return _each(template, path)
    if not _is_dynamic(template):
        written = orjson.Fragment(orjson.dumps(template))
        return lambda _: written
    fields = [(name, _compile(each, f"{path}.{name}", names)) for name, each in template.items()]
    return lambda values: {name: built for name, build in fields if (built := build(values)) is not ABSENT}


def _is_dynamic(template: object) -> bool:
    if isinstance(template, str):
        return template.startswith("$")
    if isinstance(template, dict):
        return any(_is_dynamic(key) or _is_dynamic(value) for key, value in template.items())
    return isinstance(template, list) and any(map(_is_dynamic, template))


def _named(text: str, path: str, names: Mapping[str, Build]) -> Build:
    if text in names:
        return names[text]
    column, _, member = text.removeprefix("$").partition(".")
    if column in _JSON_COLUMNS and member and f"${column}" in names:
        return lambda values: values.member(column, member)
    known = ", ".join([*names, *(f"${each}.NAME" for each in _JSON_COLUMNS if f"${each}" in names)])
    raise ValueError(f"{path}: there is no value {text!r}; known are {known}")


def _computed(template: Mapping[str, Any], path: str, names: Mapping[str, Build]) -> Build:
    """A value, without some members, mapped to another one, or replaced where it is absent."""
    _refuse_unknown(template, path, {"$value", "else", "map", "without"})
    value = template["$value"]
    build = _compile(value, f"{path}.$value", names)
    if "without" in template:
        column, unwanted = str(value).removeprefix("$"), template["without"]
        if column not in _JSON_COLUMNS or not _is_list_of_texts(unwanted):
            raise ValueError(f"{path}.without: takes a list of names, of a JSON value such as $data")
        build = _without(column, frozenset(unwanted))
    if "map" in template:
        mapping = template["map"]
        if not isinstance(mapping, dict):
            raise ValueError(f"{path}.map: should be a table from a text to what is written for it")
        build = _mapped(build, mapping)
    if "else" not in template:
        return build
    substitute = _compile(template["else"], f"{path}.else", names)
    return lambda values: built if (built := build(values)) is not ABSENT else substitute(values)


def _mapped(build: Build, mapping: Mapping[str, Any]) -> Build:
    def look_up(values: Values) -> object:
        built = build(values)
        return mapping.get(built, built) if isinstance(built, str) else built

    return look_up


def _without(column: str, unwanted: frozenset[str]) -> Build:
    def leave_out(values: Values) -> object:
        members = values.members(column)
        if unwanted.isdisjoint(members):
            return values.spliced(column)
        return {name: orjson.Fragment(bytes(raw)) for name, raw in members.items() if name not in unwanted}

    return leave_out


def _each(template: Mapping[str, Any], path: str) -> Build:
    """A list with an item for each attribute that changed."""
    _refuse_unknown(template, path, {"$each", "item"})
    if template["$each"] != "$previous_attributes" or "item" not in template:
        raise ValueError(f'{path}: should be {{ "$each" = "$previous_attributes", item = … }}')
    item = _compile(template["item"], f"{path}.item", {**_VALUES, **_CHANGE_VALUES})

    def build(values: Values) -> object:
        return [
            item(_Change(values, name, previous))
            for name, previous in values.members("previous_attributes").items()
        ]

    return build


class _Change(Values):
    """One attribute that changed."""

    def __init__(self, values: Values, name: str, previous: msgspec.Raw) -> None:
        super().__init__(values.event, values.event_id)
        self.name = name
        self.previous = orjson.Fragment(bytes(previous))
        self.current = values.member("data", name)


def _refuse_unknown(template: Mapping[str, Any], path: str, known: set[str]) -> None:
    if unknown := sorted(set(template) - known):
        raise ValueError(
            f"{path}: unknown key {unknown[0]!r}; known beside it are {', '.join(sorted(known))}"
        )


def _is_list_of_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _utc(moment: datetime, precision: str) -> str:
    return moment.astimezone(UTC).isoformat(timespec=precision)[:-6] + "Z"  # for +00:00


_STRING = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_STEPS = bytes.maketrans(b"{[]}", b"\x01\x01\xff\xff")
_NO_BRACKETS = bytes(set(range(256)) - set(b"{[]}"))


def _may_be_deep(text: str) -> bool:
    """Whether a JSON text has brackets enough. Searching for them takes a tenth of counting them in a text of
    20 kB that has few, and settles it for all but unusual events."""
    left = MAX_DATA_DEPTH
    for bracket in "{[":
        at = text.find(bracket)
        while at >= 0:
            left -= 1
            if left < 0:
                return True
            at = text.find(bracket, at + 1)
    return False


def _depth(text: str) -> int:
    """How deep the arrays and objects of a JSON text are nested.

    Every bracket outside a string becomes the byte +1 or -1; their largest running sum is the depth. No
    step of it is a Python loop, because a megabyte of brackets must not hold up the event loop.
    """
    outside_strings = _STRING.sub("", text).encode(errors="surrogatepass")
    steps = outside_strings.translate(_STEPS, _NO_BRACKETS)
    return max(accumulate(memoryview(steps).cast("b")), default=0)


def _or_absent(value: str | None) -> Any:
    return ABSENT if value is None else value


_JSON_COLUMNS = ("data", "previous_attributes", "actor", "related")

_VALUES: Mapping[str, Build] = {
    "$id": lambda values: values.event_id,
    "$type": lambda values: values.event.type,
    "$type.object": lambda values: values.event.type.rpartition(".")[0] or values.event.type,
    "$type.action": lambda values: values.event.type.rpartition(".")[2],
    "$occurred_at.seconds": lambda values: _utc(values.event.occurred_at, "seconds"),
    "$occurred_at.milliseconds": lambda values: _utc(values.event.occurred_at, "milliseconds"),
    "$occurred_at.microseconds": lambda values: _utc(values.event.occurred_at, "microseconds"),
    "$occurred_at.unix": lambda values: int(values.event.occurred_at.timestamp()),
    "$workspace_id": lambda values: values.event.workspace_id,
    "$object_type": lambda values: _or_absent(values.event.object_type),
    "$object_id": lambda values: _or_absent(values.event.object_id),
    "$null": lambda _: None,
    "$data": lambda values: values.spliced("data"),
    "$previous_attributes": lambda values: values.spliced("previous_attributes"),
    "$actor": lambda values: values.spliced("actor"),
    "$related": lambda values: values.spliced("related"),
}
_CHANGE_VALUES: Mapping[str, Build] = {
    "$attribute": lambda values: values.name,  # type: ignore[attr-defined]
    "$previous": lambda values: values.previous,  # type: ignore[attr-defined]
    "$current": lambda values: values.current,  # type: ignore[attr-defined]
}
