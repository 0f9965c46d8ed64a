"""The options by which commands choose deliveries and events."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from datetime import datetime
from functools import wraps
from typing import Any, TypeVar, cast
from uuid import UUID

import click

from postrider.domain.errors import UsageError
from postrider.domain.lists import DeliveryFilter
from postrider.domain.matching import parse_pattern
from postrider.domain.model import DeliveryState, parse_endpoint_id
from postrider.edges.durations import parse_moment

C = TypeVar("C", bound=Callable[..., Any])

_TIME = "how long ago (2h), or a time with its zone, else local."

since_option = click.option("--since", metavar="T", help=f"Only of events since then: {_TIME}")
type_option = click.option(
    "--type",
    "event_type",
    metavar="P",
    callback=lambda _, __, text: None if text is None else parse_pattern(text),
    help="An event type, or a prefix such as deal.*.",
)
workspace_option = click.option("--workspace", help="Only this workspace.")
_filter_options = [
    click.option("--endpoint", "ep", metavar="EP", help="Only of this endpoint."),
    workspace_option,
    since_option,
    click.option("--until", metavar="T", help="Only of events before then, likewise."),
    type_option,
    click.option("--http-status", metavar="S", help="Last answered with it: 503, or a class such as 5xx."),
    click.option("--status", type=click.Choice([state.value for state in DeliveryState])),
]


@dataclass(frozen=True, slots=True)
class FilterOptions:
    """What a person gave for `filter_options`."""

    ep: str | None
    workspace: str | None
    since: str | None
    until: str | None
    event_type: str | None
    http_status: str | None
    status: str | None

    @property
    def wanted_state(self) -> DeliveryState | None:
        return DeliveryState(self.status) if self.status else None

    def read(self, now: datetime, event_id: UUID | None = None) -> DeliveryFilter:
        """The filter that they mean. Raises UsageError."""
        first = parse_moment(self.since, now) if self.since else None
        last = parse_moment(self.until, now) if self.until else None
        if first is not None and last is not None and first >= last:
            raise UsageError("--since is not before --until", "Turn them round.")
        return DeliveryFilter(
            endpoint_id=parse_endpoint_id(self.ep) if self.ep else None,
            event_id=event_id,
            workspace_id=self.workspace,
            state=self.wanted_state,
            since=first,
            until=last,
            type_pattern=self.event_type,
            http_status=parse_http_status(self.http_status) if self.http_status else None,
        )


def filter_options(command: C) -> C:
    """Give a command those options, as its argument `options`."""

    @wraps(command)
    def collected(**given: Any) -> Any:
        names = [each.name for each in fields(FilterOptions)]
        return command(options=FilterOptions(**{name: given.pop(name) for name in names}), **given)

    result: Any = collected
    for option in reversed(_filter_options):
        result = option(result)
    return cast("C", result)


def parse_http_status(text: str) -> range:
    """The statuses of `503` or `5xx`; UsageError for anything else."""
    if len(text) == 3 and text[0] in "12345":
        if text[1:].lower() == "xx":
            return range(int(text[0]) * 100, int(text[0]) * 100 + 100)
        if text.isascii() and text.isdigit():
            return range(int(text), int(text) + 1)
    raise UsageError(f"{text!r} is not an HTTP status", "Write one such as 503, or a class such as 5xx.")
