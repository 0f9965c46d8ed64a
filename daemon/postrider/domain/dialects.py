"""Dialects: one CRM's wire format and habits as data, and the requests made from it.

A dialect is a TOML file; `config/dialects/README.md` describes its keys.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, lru_cache
from ipaddress import ip_network
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec

from postrider.domain.catalogue import (
    TYPE_PATTERN,
    Catalogue,
    EventType,
    SampleObject,
    TypeName,
    check_catalogue,
)
from postrider.domain.envelope import Build, Values, check_sendable, compile_template, dump_body
from postrider.domain.errors import UsageError
from postrider.domain.javascript import stringify
from postrider.domain.model import Event
from postrider.domain.policy import DEFAULT_DELAYS
from postrider.domain.signing import Secret, SignatureTemplate, Signer, sign_v1

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105 - the grammar of a header name (RFC 9110, 5.6.2)
_TEXT = r"[\t\x20-\x7e]*"

_NAME = r"^[a-z0-9][a-z0-9_-]{0,62}\Z"
_HEADER_NAME = rf"^{_TOKEN}\Z"
_HEADER_TEXT = rf"^{_TEXT}\Z"
_VALUE_NAME = r"^[a-z][a-z0-9_]{0,62}\Z"
_VALUE = r"^(?!\$)[^\"\\{}\x00-\x1f]*\Z"
_ID_TEMPLATE = r"^[A-Za-z0-9_-]*\{(hex|number)\}[A-Za-z0-9_-]*\Z"
_MEANINGS = {
    _NAME: "lower-case letters, digits, - and _",
    _HEADER_NAME: "a header name",
    _HEADER_TEXT: "printable ASCII",
    _VALUE_NAME: "lower-case letters, digits and _",
    _VALUE: "text without quotation marks, backslashes and braces, and without $ at its beginning",
    _ID_TEMPLATE: "letters, digits, - and _ around one {hex} or {number}",
    TYPE_PATTERN: "an event type such as deal.updated",
}
"""What the patterns mean, for people."""

Name = Annotated[str, msgspec.Meta(pattern=_NAME)]
HeaderName = Annotated[str, msgspec.Meta(pattern=_HEADER_NAME)]
HeaderText = Annotated[str, msgspec.Meta(pattern=_HEADER_TEXT, min_length=1)]
ValueName = Annotated[str, msgspec.Meta(pattern=_VALUE_NAME)]
Value = Annotated[str, msgspec.Meta(pattern=_VALUE, max_length=1000)]
IdTemplate = Annotated[str, msgspec.Meta(pattern=_ID_TEMPLATE)]
Delay = Annotated[float, msgspec.Meta(ge=0, le=30 * 86_400)]

_RESERVED_HEADERS = frozenset({
    "connection", "content-encoding", "content-length", "content-type", "expect", "host", "keep-alive",
    "postrider-test", "proxy-authorization", "proxy-connection", "te", "trailer", "transfer-encoding",
    "upgrade", "user-agent",
})  # fmt: skip
_MAX_HEADER_CHARACTERS = 8000
"""Of one header's name and value: many servers take lines of 8 KiB."""
_MAX_HEADERS_BYTES = 14_336
"""Of the 16 KiB that are sent, 2 KiB are for a dialect's own headers and its signatures."""
_TEST_HEADER = "postrider-test"
_STANDARD_HEADERS = ("webhook-id", "webhook-timestamp", "webhook-signature")


class SignatureHeader(SignatureTemplate, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A header that carries a signature of the CRM's own kind."""

    header: HeaderName


class Handshake(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The request that a new endpoint has to answer with `status` before it becomes active."""

    type: TypeName
    body: dict[str, Any]
    status: Annotated[int, msgspec.Meta(ge=200, le=299)] = 200


class Dialect(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, dict=True):
    name: Name
    description: str
    notes: str = ""
    """What a person should know: where the CRM's document is silent or contradicts itself."""
    body: Annotated[dict[str, Any], msgspec.Meta(min_length=1)]
    """The template of the body, an object in its order."""
    values: dict[ValueName, Value] = {}
    """What `{name}` stands for in the texts of `body`, `handshake.body` and `objects`."""
    event_id: IdTemplate = "evt_{hex}"
    test_event_id: IdTemplate | None = None
    """The id of an event that is only a test; None writes it as any other."""
    message_id: IdTemplate | None = None
    """The `webhook-id` header; None takes the event's id."""
    javascript: bool = False
    """Write the body as JavaScript does, for receivers that verify what they parsed and wrote again."""
    standard_webhooks: bool = True
    """Send the three headers of Standard Webhooks 1.0."""
    signatures: tuple[SignatureHeader, ...] = ()
    headers: dict[HeaderName, HeaderText] = {}
    https_only: bool = False
    user_agent: HeaderText | None = None
    """None takes `delivery.user_agent`."""
    timeout: Annotated[float, msgspec.Meta(gt=0, le=3_600)] | None = None
    """Seconds for a whole attempt; None takes `delivery.timeout`."""
    connect_timeout: Annotated[float, msgspec.Meta(gt=0, le=3_600)] | None = None
    """Seconds of it until a connection is made; None takes `delivery.connect_timeout`."""
    retry_delays: Annotated[tuple[Delay, ...], msgspec.Meta(min_length=1, max_length=100)] = DEFAULT_DELAYS
    """Seconds before attempt 1, 2, …"""
    retry_jitter: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    """Largest random part added to a delay, as a fraction of it; None takes `retry.jitter`."""
    promised_schedule: bool = False
    """The CRM's document has these delays: `retry.schedule` and `retry.jitter` do not replace them."""
    retry_after: bool = True
    """A `Retry-After` of a 429 or 503 puts the next attempt off."""
    gone: Literal["disable", "retry"] = "disable"
    """What a 410 does: end the delivery and disable the endpoint, or count as any other failure."""
    disable_when_exhausted: bool = False
    """Disable the endpoint when the last attempt of a delivery fails."""
    disable_after: Annotated[float, msgspec.Meta(gt=0)] | Literal["never"] | None = None
    """Seconds of nothing but failures that disable the endpoint; None takes `retry.disable_after`."""
    sending_addresses: tuple[str, ...] = ()
    """Networks that the CRM's document promises requests to come from."""
    handshake: Handshake | None = None
    closed_catalogue: bool = False
    """Refuse event types that `events` does not have."""
    objects: dict[str, SampleObject] = {}
    events: tuple[EventType, ...] = ()

    def __post_init__(self) -> None:
        names = [name.lower() for name in (*self.headers, *(each.header for each in self.signatures))]
        fixed = _STANDARD_HEADERS if self.standard_webhooks else ()
        for name in names:
            if name in _RESERVED_HEADERS or name in fixed or names.count(name) > 1:
                raise ValueError(f"the header {name} is set more than once")
        if not self.standard_webhooks and not self.signatures:
            raise ValueError("nothing signs the request: add [[signatures]], or keep standard_webhooks")
        for network in self.sending_addresses:
            ip_network(network)
        check_catalogue(self.events, self.objects)
        compile_template(self.body, "body")
        if self.handshake is not None:
            compile_template(self.handshake.body, "handshake.body")
        if any(delay == 0 for delay in self.retry_delays[1:]):
            raise ValueError("retry_delays: only the first delay may be zero")
        if self.timeout is not None and (self.connect_timeout or 0.0) > self.timeout:
            raise ValueError("connect_timeout: it can't be longer than timeout, which counts it in")

    @cached_property
    def catalogue(self) -> Catalogue:
        objects = {name: self._filled_object(each) for name, each in self.objects.items()}
        return Catalogue(self.events, objects, closed=self.closed_catalogue)

    @cached_property
    def build(self) -> Build:
        return compile_template(self.filled(self.body), "body")

    @cached_property
    def handshake_build(self) -> Build:
        assert self.handshake is not None
        return compile_template(self.filled(self.handshake.body), "handshake.body")

    @cached_property
    def signers(self) -> tuple[tuple[str, Signer], ...]:
        return tuple((each.header, Signer(each)) for each in self.signatures)

    def _filled_object(self, sample: SampleObject) -> SampleObject:
        texts = {name: self.filled(getattr(sample, name)) for name in ("data", "actor", "related")}
        return msgspec.structs.replace(sample, **texts)

    def filled(self, template: Any) -> Any:
        """The template with the values in place of their names."""
        if isinstance(template, str):
            for name, value in self.values.items():
                template = template.replace(f"{{{name}}}", value)
            return template
        if isinstance(template, list):
            return [self.filled(each) for each in template]
        if isinstance(template, dict):
            return {name: self.filled(each) for name, each in template.items()}
        return template


def parse_dialect(text: str, source: str) -> Dialect:
    """Read a dialect from TOML. Raises UsageError with `source` and the path of the mistake in it."""
    try:
        return msgspec.toml.decode(text, type=Dialect)
    except msgspec.ValidationError as error:
        what, _, path = str(error).partition(" - at `")
        where = path.rpartition("$")[2].rstrip("`").lstrip(".")
        for pattern, meaning in _MEANINGS.items():
            what = what.replace(f"`str` matching regex {pattern!r}", meaning)
        raise UsageError(
            f"{source}: {f'{where}: ' if where else ''}{what}",
            "The README beside the shipped dialects lists the keys of a dialect and their values.",
        ) from None
    except msgspec.DecodeError as error:
        raise UsageError(f"{source}: {error}", "It should be a TOML file.") from None


def with_values(dialect: Dialect, values: Mapping[str, str], source: str) -> Dialect:
    """The dialect with the configuration's values in place of its own. Raises UsageError, with the path in
    `source`, for one that it does not have and for one that can't stand in a body."""
    for name, value in values.items():
        if name not in dialect.values:
            raise UsageError(
                f"{source}.{name}: the dialect {dialect.name} has no such value",
                f"It has: {', '.join(dialect.values) or 'none'}.",
            )
        if not re.match(_VALUE, value):
            raise UsageError(f"{source}.{name}: expected {_MEANINGS[_VALUE]}", "Write an address, or a name.")
    return msgspec.structs.replace(dialect, values={**dialect.values, **values})


def event_id(dialect: Dialect, event: Event) -> str:
    """The event's id as this dialect writes it; the public id in the default form `evt_{hex}`."""
    template = dialect.test_event_id if event.test and dialect.test_event_id else dialect.event_id
    return _filled(template, event.id)


def parse_event_ids(text: str, dialects: Iterable[Dialect]) -> list[UUID]:
    """The events that an id may mean: the public id, or what one of these dialects writes into a body or the
    header `webhook-id`. Raises UsageError where it is neither."""
    templates = {"evt_{hex}": None}
    for each in dialects:
        written = (each.event_id, each.test_event_id, each.message_id)
        templates |= dict.fromkeys(template for template in written if template is not None)
    found = dict.fromkeys(meant for each in templates if (meant := _meant(text, each)) is not None)
    if found:
        return list(found)
    shapes = ", ".join(
        each.replace("{hex}", "<32 hexadecimal digits>").replace("{number}", "<number>") for each in templates
    )
    raise UsageError(f"{text[:100]!r} is not an event id", f"One looks like this: {shapes}.")


def render(dialect: Dialect, event: Event) -> bytes:
    """The body of a request: the same bytes at every attempt, with the CRM's own JSON in it byte for byte
    (or, where the dialect wants that, as JavaScript writes it).

    Raises PayloadError when the event's data is too large, nested too deep or not text that JSON can hold.
    """
    check_sendable(event)
    handshake = handshake_of(dialect, event)
    build = dialect.build if handshake is None else dialect.handshake_build
    body = dump_body(build(Values(event, event_id(dialect, event))))
    return stringify(body.decode()) if dialect.javascript else body


def handshake_of(dialect: Dialect, event: Event) -> Handshake | None:
    """The handshake, where the event is one that was made up to ask an endpoint whether it is one."""
    handshake = dialect.handshake
    return handshake if event.test and handshake is not None and event.type == handshake.type else None


def request_headers(
    dialect: Dialect,
    event: Event,
    secrets: Sequence[Secret],
    *,
    timestamp: int,
    body: bytes,
    user_agent: str,
    extra: Mapping[str, str],
) -> dict[str, str]:
    """The headers of one attempt, made at `timestamp` (seconds since 1970) and signed by every secret.

    `secrets` are newest first; a signature header that has room for one takes the newest. `user_agent`
    serves where the dialect has none of its own. `extra`, the endpoint's own headers, never replaces one
    of the others; a name of it that is reserved, or that no header can have, is left out, since a row may
    be older than the check at the door, or changed by hand.
    """
    own_id = event_id(dialect, event)
    headers = {"content-type": "application/json", "user-agent": dialect.user_agent or user_agent}
    if dialect.standard_webhooks:
        message_id = own_id if dialect.message_id is None else _filled(dialect.message_id, event.id)
        headers["webhook-id"] = message_id
        headers["webhook-timestamp"] = str(timestamp)
        headers["webhook-signature"] = sign_v1(
            [secret.key for secret in secrets], message_id, timestamp, body
        )
    for name, signer in dialect.signers:
        headers[name] = signer.sign(secrets, own_id, timestamp, body)
    for name, text in dialect.headers.items():
        headers[name] = (
            text.replace("{id}", own_id).replace("{timestamp}", str(timestamp)).replace("{type}", event.type)
        )
    if event.test:
        headers[_TEST_HEADER] = "true"
    if extra:
        taken = {name.lower() for name in headers}
        headers.update({
            name: value
            for name, value in extra.items()
            if name.lower() not in taken and _refusal_of_name(name) is None
        })  # fmt: skip
    return headers


def unsigned_headers(
    dialect: Dialect, event: Event, *, timestamp: int | None, user_agent: str, extra: Mapping[str, str]
) -> dict[str, str | None]:
    """The headers of one attempt for people to see: None stands for a signature, for the value of one of the
    endpoint's own headers, and for what holds a time where `timestamp` is None."""
    made = request_headers(
        dialect, event, (), timestamp=timestamp or 0, body=b"", user_agent=user_agent,
        extra=dict.fromkeys(extra, ""),
    )  # fmt: skip
    timed = {"webhook-timestamp"} | {name for name, text in dialect.headers.items() if "{timestamp}" in text}
    # Without a secret a signature is empty, and nothing else is.
    return {
        name: value if value and (timestamp is not None or name not in timed) else None
        for name, value in made.items()
    }


def check_header(name: str, value: str) -> None:
    """Raise UsageError for an endpoint's own header that Postrider sets itself or that HTTP cannot carry."""
    if (refusal := _refusal_of_name(name)) is not None:
        raise UsageError(*refusal)
    if len(name) + len(value) > _MAX_HEADER_CHARACTERS:
        raise UsageError(
            f"the header {name[:100]} has {len(name) + len(value):,} characters",
            f"At most {_MAX_HEADER_CHARACTERS:,} are sent: many servers refuse more.",
        )
    # The value is not quoted: it may be a password.
    if not re.fullmatch(_TEXT, value):
        raise UsageError(
            f"the value of the header {name} has a line break, a control character or a non-ASCII one",
            "Use printable ASCII characters; encode anything else, for example as base64.",
        )


def check_headers(headers: Mapping[str, str]) -> None:
    """Raise UsageError for an endpoint's own headers that can't be sent; `check_header` for each, and their
    sum, which leaves room for those that Postrider sets."""
    for name, value in headers.items():
        check_header(name, value)
    # Printable ASCII: a character is a byte, and each line has four more.
    total = sum(len(name) + len(value) + 4 for name, value in headers.items())
    if total > _MAX_HEADERS_BYTES:
        raise UsageError(
            f"the headers take {total:,} bytes together",
            f"At most {_MAX_HEADERS_BYTES:,} are sent: many servers refuse more than 16 KiB in all.",
        )


@lru_cache(maxsize=4096)
def _refusal_of_name(name: str) -> tuple[str, str] | None:
    """Why an endpoint can't have a header of that name, and what to do about it."""
    if not re.fullmatch(_TOKEN, name):
        return (
            f"{name[:100]!r} is not a header name",
            "Names consist of letters, digits and hyphens, for example X-Api-Key.",
        )
    if name.lower() in _RESERVED_HEADERS or name.lower().startswith("webhook-"):
        return f"the header {name[:100]} is set by Postrider", "Choose another name."
    return None


_HEX_ID = re.compile(r"[0-9a-fA-F]{32}")
_NUMBER_ID = re.compile(r"[0-9]{1,39}")


def _meant(text: str, template: str) -> UUID | None:
    """The event whose id, written by the template, is this text."""
    start, placeholder, end = re.split(r"(\{hex\}|\{number\})", template)
    middle = text.removeprefix(start).removesuffix(end)
    if start + middle + end != text:
        return None
    if placeholder == "{hex}":
        return UUID(hex=middle) if _HEX_ID.fullmatch(middle) else None
    number = int(middle) if _NUMBER_ID.fullmatch(middle) else -1
    return UUID(int=number) if 0 <= number < 1 << 128 else None


def _filled(template: str, event_id: UUID) -> str:
    if "{hex}" in template:
        return template.replace("{hex}", event_id.hex)
    return template.replace("{number}", str(event_id.int))
