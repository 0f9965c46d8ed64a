"""Dialects: one CRM's wire format as data, and the body and headers of a request rendered from it.

A dialect is a TOML file; `config/dialects/README.md` describes its keys.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC
from itertools import accumulate
from typing import Annotated, Literal

import msgspec
import orjson

from postrider.domain.errors import PostriderError, UsageError
from postrider.domain.model import MAX_DATA_BYTES, MAX_DATA_DEPTH, Event, event_public_id
from postrider.domain.policy import DEFAULT_DELAYS
from postrider.domain.signing import sign_v1

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105 - the grammar of a header name (RFC 9110, 5.6.2)
_TEXT = r"[\t\x20-\x7e]*"

Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}\Z")]
HeaderName = Annotated[str, msgspec.Meta(pattern=rf"^{_TOKEN}\Z")]
HeaderText = Annotated[str, msgspec.Meta(pattern=rf"^{_TEXT}\Z", min_length=1)]
Delay = Annotated[float, msgspec.Meta(ge=0, le=30 * 86_400)]
EventValue = Literal["type", "occurred_at", "data", "previous_attributes"]

_RESERVED_HEADERS = frozenset({
    "connection", "content-encoding", "content-length", "content-type", "expect", "host", "keep-alive",
    "te", "trailer", "transfer-encoding", "upgrade", "user-agent",
})  # fmt: skip


class PayloadError(PostriderError):
    """An event that cannot be sent, however often it is tried; `message` is the reason."""


class EnvelopeField(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One field of the body. It is left out where the event does not have the value."""

    name: str
    value: EventValue


class SignatureHeaders(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The scheme of the signature, and the names of the headers that carry it."""

    scheme: Literal["standard-webhooks-v1"]
    id_header: HeaderName
    timestamp_header: HeaderName
    signature_header: HeaderName

    def __post_init__(self) -> None:
        names = (self.id_header, self.timestamp_header, self.signature_header)
        _refuse_repeated(
            "the headers of a request", ["content-type", "user-agent", *(name.lower() for name in names)]
        )


class Dialect(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    name: Name
    description: str
    envelope: Annotated[tuple[EnvelopeField, ...], msgspec.Meta(min_length=1)]
    """The fields of the body, in their order."""
    signature: SignatureHeaders
    https_only: bool = False
    user_agent: HeaderText | None = None
    """None takes `delivery.user_agent`."""
    timeout: Annotated[float, msgspec.Meta(gt=0, le=3_600)] | None = None
    """Seconds for a whole attempt; None takes `delivery.timeout`."""
    retry_delays: Annotated[tuple[Delay, ...], msgspec.Meta(min_length=1)] = DEFAULT_DELAYS
    """Seconds before attempt 1, 2, …"""

    def __post_init__(self) -> None:
        _refuse_repeated("the names in `envelope`", [field.name for field in self.envelope])


def parse_dialect(text: str, source: str) -> Dialect:
    """Read a dialect from TOML. Raises UsageError with `source` and the path of the mistake in it."""
    try:
        return msgspec.toml.decode(text, type=Dialect)
    except msgspec.ValidationError as error:
        what, _, path = str(error).partition(" - at `$")
        where = path.rstrip("`").lstrip(".")
        raise UsageError(
            f"{source}: {f'{where}: ' if where else ''}{what}",
            "The README beside the shipped dialects lists the keys of a dialect and their values.",
        ) from None
    except msgspec.DecodeError as error:
        raise UsageError(f"{source}: {error}", "It should be a TOML file.") from None


def render(dialect: Dialect, event: Event) -> bytes:
    """The body of a request: the same bytes at every attempt, with the CRM's own JSON in it byte for byte.

    Raises PayloadError when the event's data is too large, nested too deep or not text that JSON can hold.
    """
    if event.data is None:
        raise PayloadError(f"data is {event.data_bytes:,} bytes; the limit is {MAX_DATA_BYTES:,}")
    body = {
        field.name: value
        for field in dialect.envelope
        if (value := _EVENT_VALUES[field.value](event)) is not None
    }
    try:
        return orjson.dumps(body)
    except orjson.JSONEncodeError as error:
        raise PayloadError(f"the event cannot be written as JSON: {error}") from None


def request_headers(
    dialect: Dialect,
    event: Event,
    keys: Sequence[bytes],
    *,
    timestamp: int,
    body: bytes,
    user_agent: str,
    extra: Mapping[str, str],
) -> dict[str, str]:
    """The headers of one attempt, made at `timestamp` (seconds since 1970) and signed by every key.

    `user_agent` serves where the dialect has none of its own. `extra`, the endpoint's own headers, never
    replaces one of the others.
    """
    message_id = event_public_id(event.id)
    signature = dialect.signature
    headers = {
        "content-type": "application/json",
        "user-agent": dialect.user_agent or user_agent,
        signature.id_header: message_id,
        signature.timestamp_header: str(timestamp),
        signature.signature_header: sign_v1(keys, message_id, timestamp, body),
    }
    if extra:
        taken = {name.lower() for name in headers}
        headers.update({name: value for name, value in extra.items() if name.lower() not in taken})
    return headers


def check_header(name: str, value: str) -> None:
    """Raise UsageError for an endpoint's own header that Postrider sets itself or that HTTP cannot carry."""
    if not re.fullmatch(_TOKEN, name):
        raise UsageError(
            f"{name!r} is not a header name",
            "Names consist of letters, digits and hyphens, for example X-Api-Key.",
        )
    if name.lower() in _RESERVED_HEADERS or name.lower().startswith("webhook-"):
        raise UsageError(f"the header {name} is set by Postrider", "Choose another name.")
    # The value is not quoted: it may be a password.
    if not re.fullmatch(_TEXT, value):
        raise UsageError(
            f"the value of the header {name} has a line break, a control character or a non-ASCII one",
            "Use printable ASCII characters; encode anything else, for example as base64.",
        )


def _refuse_repeated(what: str, names: Sequence[str]) -> None:
    if len(set(names)) < len(names):
        raise ValueError(f"{what} must differ from each other")


def _occurred_at(event: Event) -> str:
    # Always six digits of a second, as the examples of Standard Webhooks have them.
    return f"{event.occurred_at.astimezone(UTC).replace(tzinfo=None).isoformat(timespec='microseconds')}Z"


def _spliced(column: str, text: str | None) -> orjson.Fragment | None:
    if text is None:
        return None
    # Counting characters costs next to nothing, and settles it for all but unusual events.
    if text.count("{") + text.count("[") > MAX_DATA_DEPTH and (depth := _depth(text)) > MAX_DATA_DEPTH:
        raise PayloadError(f"{column} is nested {depth:,} levels deep; the limit is {MAX_DATA_DEPTH:,}")
    return orjson.Fragment(text)


_STRING = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_STEPS = bytes.maketrans(b"{[]}", b"\x01\x01\xff\xff")
_NO_BRACKETS = bytes(set(range(256)) - set(b"{[]}"))


def _depth(text: str) -> int:
    """How deep the arrays and objects of a JSON text are nested.

    Every bracket outside a string becomes the byte +1 or -1; their largest running sum is the depth. No
    step of it is a Python loop, because a megabyte of brackets must not hold up the event loop.
    """
    outside_strings = _STRING.sub("", text).encode(errors="surrogatepass")
    steps = outside_strings.translate(_STEPS, _NO_BRACKETS)
    return max(accumulate(memoryview(steps).cast("b")), default=0)


_EVENT_VALUES: Mapping[EventValue, Callable[[Event], object]] = {
    "type": lambda event: event.type,
    "occurred_at": _occurred_at,
    "data": lambda event: _spliced("data", event.data),
    "previous_attributes": lambda event: _spliced("previous_attributes", event.previous_attributes),
}
