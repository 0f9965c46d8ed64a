"""The demo: a sample CRM whose code writes rows and emits events in the same transactions, a real daemon,
and three receivers, of which one fails at times and one is slow. It counts what was promised and what came.
"""

import asyncio
import random
import secrets
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import asyncpg
from aiohttp import web

from postrider.app import Daemon
from postrider.demo.crm import SampleCrm
from postrider.domain.matching import Matcher
from postrider.domain.model import (
    DEFAULT_WORKSPACE,
    DeliveryState,
    Endpoint,
    EndpointState,
    parse_event_id,
)
from postrider.domain.sealing import Sealer
from postrider.domain.signing import SignatureError, new_secret, secret_key, verify_v1
from postrider.edges.config import (
    Config,
    parse_config,
)
from postrider.edges.resources import sql_dir
from postrider.store.database import Database
from postrider.store.endpoints import Endpoints
from postrider.store.history import DeliveryHistory, DeliveryRow
from postrider.store.migrations import migrate, read_migrations
from postrider.store.outbox import Outbox

DATABASE = "postrider_demo"
WRITERS = 3
SETTLE_S = 15.0
"""How long retries may take to come through after the writers stopped."""
ROLLED_BACK = 0.05
"""The share of the CRM's transactions that change their mind: nothing of these may be sent."""


@dataclass
class Receiver:
    """A subscriber on this machine, and what it saw."""

    name: str
    events: tuple[str, ...]
    fail_rate: float = 0.0
    delay_s: float = 0.0
    secret: str = field(default_factory=new_secret, repr=False)
    url: str = ""
    endpoint_id: int = 0
    requests: int = 0
    refused: int = 0
    """Requests that it answered 500, on purpose."""
    bad_signatures: int = 0
    accepted: Counter[str] = field(default_factory=Counter, repr=False)
    arrived: dict[str, float] = field(default_factory=dict, repr=False)
    """When a request for an event came first, in seconds since 1970."""

    async def receive(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.requests += 1
        event_id = request.headers.get("webhook-id", "")
        self.arrived.setdefault(event_id, time.time())
        try:
            verify_v1([secret_key(self.secret)], request.headers, body, int(time.time()))
        except SignatureError:
            self.bad_signatures += 1
            return web.Response(status=401)
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        if random.random() < self.fail_rate:
            self.refused += 1
            return web.Response(status=500, text="out of order, try again")
        self.accepted[event_id] += 1
        return web.Response(status=204)


@dataclass
class Emitted:
    """An event of a committed transaction."""

    at: float
    """When the commit returned, in seconds since 1970."""
    type: str


class Demo:
    """Enter it to start everything; `write_for` lets the CRM work; `counts` tells what came of it."""

    def __init__(self, server_dsn: str) -> None:
        self._server_dsn = server_dsn
        self.dsn = server_dsn.replace("/postgres?", f"/{DATABASE}?")
        self.receivers = [
            Receiver("steady", ("*",)),
            Receiver("flaky", ("deal.*",), fail_rate=0.3),
            Receiver("slow", ("contact.*", "activity.*"), delay_s=0.3),
        ]
        self.emitted: dict[str, Emitted] = {}
        self.rolled_back = 0
        self._matcher = Matcher(())

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Demo"]:
        await self._create_database()
        runner = await self._start_receivers()
        config = self._config()
        daemon = Daemon(config)
        self._database = Database(self.dsn, pool_size=2)
        await self._database.open()
        try:
            await self._subscribe()
            await daemon.start()
            try:
                yield self
            finally:
                await daemon.stop()
        finally:
            await self._database.close()
            await runner.cleanup()

    def _config(self) -> Config:
        return parse_config(
            {
                "database": {"dsn": self.dsn},
                "network": {"allow": ["127.0.0.0/8"], "https_only": False},
                "retry": {"schedule": ["0s", "500ms", "1s", "2s", "4s", "8s"]},
                "admin": {"listen": ""},
            },
            "the demo's configuration",
        )

    async def _create_database(self) -> None:
        server = await asyncpg.connect(self._server_dsn)
        if not await server.fetchval("SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", DATABASE):
            await server.execute(f"CREATE DATABASE {DATABASE}")
        await server.close()
        connection = await asyncpg.connect(self.dsn)
        try:
            await migrate(connection, read_migrations(sql_dir()))
            await connection.execute((sql_dir() / "sample_crm.sql").read_text())
        finally:
            await connection.close()

    async def _start_receivers(self) -> web.AppRunner:
        app = web.Application()
        for receiver in self.receivers:
            app.router.add_post(f"/{receiver.name}", receiver.receive)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        for receiver in self.receivers:
            receiver.url = f"http://127.0.0.1:{port}/{receiver.name}"
        return runner

    async def _subscribe(self) -> None:
        """Replace the endpoints of an earlier run, whose receivers are gone."""
        store = Endpoints(self._database, Sealer())
        now = datetime.now(UTC)
        for row in await store.list_endpoints():
            await store.delete(row.endpoint.id, now)
        endpoints = []
        for receiver in self.receivers:
            receiver.endpoint_id = secrets.randbits(63) or 1
            endpoint = Endpoint(
                id=receiver.endpoint_id,
                workspace_id=DEFAULT_WORKSPACE,
                url=receiver.url,
                patterns=receiver.events,
                exclusions=(),
                dialect="standard",
                secrets=(),
                state=EndpointState.ACTIVE,
                concurrency=None,
                headers={},
                failing_since=None,
                description=f"the demo's {receiver.name} receiver",
            )
            await store.add(endpoint, [receiver.secret], now)
            endpoints.append(endpoint)
        self._matcher = Matcher(endpoints)

    async def write_for(self, seconds: float | None, rate: float, stop: asyncio.Event) -> None:
        """Let the CRM work, `rate` transactions a second, until the time is over or `stop` is set."""
        ends_at = time.monotonic() + seconds if seconds is not None else float("inf")

        async def work() -> None:
            connection = await asyncpg.connect(self.dsn)
            crm = SampleCrm(connection)
            try:
                while time.monotonic() < ends_at and not stop.is_set():
                    await self._transact(crm)
                    try:
                        async with asyncio.timeout(min(WRITERS / rate, max(0.0, ends_at - time.monotonic()))):
                            await stop.wait()
                    except TimeoutError:
                        pass
            finally:
                await connection.close()

        async with asyncio.TaskGroup() as group:
            for _ in range(WRITERS):
                group.create_task(work())

    async def _transact(self, crm: SampleCrm) -> None:
        transaction = crm.connection.transaction()
        await transaction.start()
        event_type, event_id = await crm.act()
        if random.random() < ROLLED_BACK:
            await transaction.rollback()
            self.rolled_back += 1
            return
        await transaction.commit()
        self.emitted[event_id] = Emitted(time.time(), event_type)

    async def settle(self, seconds: float = SETTLE_S) -> None:
        """Wait until every delivery that is owed has come to an end, or the time is over."""
        ends_at = time.monotonic() + seconds
        while time.monotonic() < ends_at:
            counts = await self.counts()
            if counts["succeeded"] + counts["failed"] >= counts["expected"]:
                return
            await asyncio.sleep(0.2)

    async def counts(self) -> dict[str, Any]:
        """What was owed, what came, and what is neither: lost. A delivery counts as succeeded when its
        receiver accepted it, whatever the database says."""
        history, outbox = DeliveryHistory(self._database), Outbox(self._database)
        by_endpoint = {receiver.endpoint_id: receiver for receiver in self.receivers}
        states: Counter[str] = Counter()
        duplicates = 0
        for event_id, emitted in list(self.emitted.items()):
            for endpoint in self._matcher.match(DEFAULT_WORKSPACE, emitted.type):
                accepted = by_endpoint[endpoint.id].accepted
                if not accepted[event_id]:
                    key = (parse_event_id(event_id), endpoint.id)
                    pending = await outbox.is_pending(key[0])
                    row = await history.get(key)
                    if not accepted[event_id]:  # it may have come while we asked
                        states[_state_of(row, pending=pending)] += 1
                        continue
                states["succeeded"] += 1
                duplicates += accepted[event_id] - 1
        spans = self.latencies_ms()
        return {
            "emitted": len(self.emitted),
            "rolled_back": self.rolled_back,
            "expected": states.total(),
            "succeeded": states["succeeded"],
            "waiting": states["waiting"] + states["sending"],
            "retrying": states["retrying"],
            "failed": states["failed"],
            "lost": states["lost"],
            "duplicates": duplicates,
            "bad_signatures": sum(receiver.bad_signatures for receiver in self.receivers),
            "p50_ms": round(statistics.median(spans), 1) if spans else None,
            "p99_ms": round(spans[int(len(spans) * 0.99)], 1) if spans else None,
        }

    def latencies_ms(self) -> list[float]:
        """From the commit's return to the arrival at the steady receiver, sorted."""
        arrived = self.receivers[0].arrived
        return sorted(
            (arrived[event_id] - emitted.at) * 1000
            for event_id, emitted in self.emitted.items()
            if event_id in arrived
        )


def _state_of(row: DeliveryRow | None, *, pending: bool) -> str:
    """The state of a delivery that its receiver has not accepted."""
    if row is None:
        return "sending" if pending else "lost"
    return "lost" if row.state in (DeliveryState.SUCCEEDED, DeliveryState.CANCELLED) else row.state.value
