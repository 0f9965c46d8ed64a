"""An endpoint from its row, whatever somebody did to the row: one that is damaged makes an endpoint that is
unusable, and says why."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from math import isfinite
from sys import intern
from urllib.parse import urlsplit

import asyncpg

from postrider.domain.errors import PostriderError
from postrider.domain.matching import parse_pattern
from postrider.domain.model import DeliveryState, Endpoint, EndpointState, endpoint_public_id
from postrider.domain.sealing import Sealer
from postrider.domain.signing import Secret, parse_secret
from postrider.store.last_deliveries import LastDelivery

COLUMNS = """
  e.id, e.workspace_id, e.url, e.description, e.patterns, e.exclusions, e.dialect, e.concurrency,
  e.headers::text AS headers, e.sealed_headers, e.rate::text::float8 AS rate, e.state, e.disabled_reason,
  e.failing_since, e.created_at, e.updated_at,
  ARRAY(SELECT s.sealed FROM postrider.endpoint_secret AS s
        WHERE s.endpoint_id = e.id AND s.workspace_id = e.workspace_id ORDER BY s.created_at DESC) AS secrets
"""
"""Of `postrider.endpoint AS e`."""
LISTED = f"""
SELECT {COLUMNS}, l.event_id AS last_event_id, l.state AS last_state, l.reason AS last_reason, l.at AS last_at
FROM postrider.endpoint AS e
LEFT JOIN postrider.last_delivery AS l ON l.endpoint_id = e.id AND l.workspace_id = e.workspace_id
"""  # noqa: S608 (constant)
"""What people see of endpoints."""

NO_HEADERS: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class EndpointRow:
    """An endpoint as people see it."""

    endpoint: Endpoint
    disabled_reason: str | None
    last_delivery: LastDelivery | None
    created_at: datetime
    updated_at: datetime


def seal_headers(headers: Mapping[str, str], endpoint_id: int, sealer: Sealer) -> tuple[str, bytes | None]:
    """What the columns `headers` and `sealed_headers` hold: where there is a key, nothing readable."""
    text = json.dumps(dict(headers))
    if not headers or not sealer.seals:
        return text, None
    return "{}", sealer.seal(text, headers_context(endpoint_id))


def read_row(row: asyncpg.Record, sealer: Sealer) -> EndpointRow:
    """The endpoint of a row of `LISTED`."""
    return EndpointRow(
        endpoint=read_endpoint(row, sealer),
        disabled_reason=row["disabled_reason"],
        last_delivery=_last_delivery(row),
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )


def read_endpoint(row: asyncpg.Record, sealer: Sealer) -> Endpoint:
    """The endpoint of a row with `COLUMNS`. Never fails: what can't be read is told as `unusable`.

    Strings that many endpoints have in common are kept once.
    """
    damage = _Damage()
    state = EndpointState.PAUSED  # events of one that can't be told to be deleted or disabled wait
    secrets: tuple[Secret, ...] = ()
    headers = NO_HEADERS
    url, dialect = row["url"] or "", row["dialect"] or ""
    with damage.noted():
        state = _state(row["state"])
    patterns = _patterns(row["patterns"], damage)
    exclusions = _patterns(row["exclusions"], damage)
    if state is not EndpointState.DELETED:
        with damage.noted():
            _check_url(url)
        with damage.noted():
            headers = _headers(row, sealer)
        with damage.noted():
            secrets = _secrets(row, sealer)
        if not patterns:
            damage.reasons.append("it has no event pattern")
    rate = row["rate"]
    if rate is not None and not isfinite(rate):
        damage.reasons.append("its rate is not a finite number")
        rate = None
    return Endpoint(
        id=row["id"],
        workspace_id=intern(row["workspace_id"]),
        url=url,
        patterns=patterns,
        exclusions=exclusions,
        dialect=intern(dialect),
        secrets=secrets,
        state=state,
        concurrency=row["concurrency"],
        headers=headers,
        failing_since=row["failing_since"],
        description=row["description"],
        rate=rate,
        unusable="; ".join(damage.reasons) or None,
    )


def _last_delivery(row: asyncpg.Record) -> LastDelivery | None:
    if row["last_event_id"] is None:
        return None
    return LastDelivery(
        row["id"],
        row["workspace_id"],
        row["last_event_id"],
        DeliveryState(row["last_state"]),
        row["last_reason"],
        row["last_at"],
    )


class _Damage:
    def __init__(self) -> None:
        self.reasons: list[str] = []

    @contextmanager
    def noted(self) -> Iterator[None]:
        try:
            yield
        except PostriderError as error:
            self.reasons.append(error.message)


def _state(text: str) -> EndpointState:
    with suppress(ValueError):
        return EndpointState(text)
    raise PostriderError(f"its state {text!r} is not known")


def _patterns(texts: list[str | None], damage: _Damage) -> tuple[str, ...]:
    patterns = []
    for text in texts:
        with damage.noted():
            patterns.append(intern(parse_pattern(text or "")))
    return tuple(dict.fromkeys(patterns))


def _check_url(url: str) -> None:
    with suppress(ValueError):
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname:
            return
    raise PostriderError("its URL is not one of http or https")


def _headers(row: asyncpg.Record, sealer: Sealer) -> Mapping[str, str]:
    text, sealed = row["headers"], row["sealed_headers"]
    if sealed is not None:
        text = sealer.open(sealed, headers_context(row["id"]), "value of its headers")
    elif text == "{}":
        return NO_HEADERS
    with suppress(ValueError, RecursionError):
        headers = json.loads(text)
        if isinstance(headers, dict) and all(isinstance(value, str) for value in headers.values()):
            return headers
    # Nothing of it is quoted: it may hold a password.
    raise PostriderError("its headers are not an object of texts")


def _secrets(row: asyncpg.Record, sealer: Sealer) -> tuple[Secret, ...]:
    context = endpoint_public_id(row["id"])
    secrets = tuple([parse_secret(sealer.open(sealed, context)) for sealed in row["secrets"]])
    if not secrets:
        raise PostriderError("it has no signing secret")
    return secrets


def headers_context(endpoint_id: int) -> str:
    """What sealed headers are bound to."""
    return f"{endpoint_public_id(endpoint_id)} headers"
