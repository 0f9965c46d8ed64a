"""Subscribers on this machine, which verify each request as their CRM describes it."""

import hashlib
import hmac
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from uuid import UUID

from aiohttp import web

from postrider.domain.javascript import stringify
from postrider.domain.model import event_public_id
from postrider.domain.signing import SignatureError, secret_key, verify_v1
from postrider.edges.clock import SystemClock
from postrider.edges.randomness import new_secret, random_share


def _standard_webhooks(headers: Mapping[str, str], body: bytes, secret: str) -> bool:
    try:
        verify_v1([secret_key(secret)], headers, body, int(SystemClock().now().timestamp()))
    except SignatureError:
        return False
    return True


def _workestra(headers: Mapping[str, str], body: bytes, secret: str) -> bool:
    return hmac.new(secret.encode(), body, hashlib.sha256).hexdigest() == headers["X-Workestra-Signature"]


def _stover(headers: Mapping[str, str], body: bytes, secret: str) -> bool:
    written_again = stringify(body.decode())
    expected = hmac.new(secret.encode(), written_again, hashlib.sha256).hexdigest()
    return f"sha256={expected}" == headers["X-Stover-Signature"]


Verify = Callable[[Mapping[str, str], bytes, str], bool]
_VERIFY: Mapping[str, Verify] = {"workestra": _workestra, "stover": _stover}
"""Where it is not that of Standard Webhooks."""


@dataclass
class Receiver:
    """A subscriber, and what it saw."""

    name: str
    events: tuple[str, ...]
    dialect: str = "standard"
    fail_rate: float = 0.0
    delay_s: float = 0.0
    open: bool = False
    """It has been verified; only from then on does it fail at times."""
    secret: str = field(default_factory=new_secret, repr=False)
    url: str = ""
    endpoint_id: int = 0
    requests: int = 0
    refused: int = 0
    """Requests that it answered 500, on purpose."""
    bad_signatures: int = 0
    accepted: Counter[str] = field(default_factory=Counter, repr=False)
    """By the public id of the event."""
    arrived: dict[str, float] = field(default_factory=dict, repr=False)
    """When a request for an event came first, in seconds since 1970."""

    async def receive(self, request: web.Request) -> web.Response:
        body = await request.read()
        verify = _VERIFY.get(self.dialect, _standard_webhooks)
        if not verify(request.headers, body, self.secret):
            self.bad_signatures += 1
            return web.Response(status=401)
        if not self.open:
            return web.Response(status=200)
        self.requests += 1
        event_id = _event_of(request.headers["webhook-id"])
        self.arrived.setdefault(event_id, SystemClock().now().timestamp())
        if self.delay_s:
            await SystemClock().sleep(self.delay_s)
        if random_share() < self.fail_rate:
            self.refused += 1
            return web.Response(status=500, text="out of order, try again")
        self.accepted[event_id] += 1
        return web.Response(status=200)


def _event_of(message_id: str) -> str:
    """The public id of the event, whatever form its dialect gives it."""
    if (match := re.fullmatch(r"\w+_([0-9a-f]{32})", message_id)) is not None:
        return f"evt_{match[1]}"
    return event_public_id(UUID(int=int(message_id.removesuffix("-events"))))
