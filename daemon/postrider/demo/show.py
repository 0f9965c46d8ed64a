"""The demo: a sample CRM at work, a real daemon, and three receivers, of which one fails at times and one is
slow. It counts what was promised and what came.
"""

import asyncio
import random
import secrets
import statistics
import time
import tomllib
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import UUID

import asyncpg
from aiohttp import web

from postrider.app import Daemon
from postrider.demo.crm import CapturedCrm, Crm, EmittingCrm
from postrider.demo.receivers import Receiver
from postrider.domain.errors import PostriderError
from postrider.domain.matching import Matcher
from postrider.domain.model import (
    DEFAULT_WORKSPACE,
    DeliveryState,
    Endpoint,
    EndpointState,
    event_public_id,
    parse_event_id,
)
from postrider.domain.sealing import Sealer
from postrider.domain.signing import parse_secret
from postrider.edges.clock import SystemClock
from postrider.edges.config import Config, parse_config
from postrider.edges.dialect_files import load_dialects
from postrider.edges.network import WebhookClient
from postrider.edges.resources import config_dir, sql_dir
from postrider.edges.settings import network_options
from postrider.engine.sender import SendSettings
from postrider.engine.trial import shake_hands
from postrider.store.captures import Captures
from postrider.store.catalogue import CatalogueStore
from postrider.store.database import PINNED, Connection, Database
from postrider.store.delivery_search import DeliveryRow
from postrider.store.endpoints import Endpoints
from postrider.store.history import DeliveryHistory
from postrider.store.migrations import migrate, read_migrations
from postrider.store.outbox import Outbox

WORKSPACES = {"nodestash": "ws_north", "workestra": "ws_berlin"}
"""Where a sample CRM has several workspaces: the one that subscribes. Events of the others go nowhere."""
EMITTING = "standard"
"""The dialect whose CRM emits its events itself; tables of the others are captured."""
WRITERS = 3
SETTLE_S = 15.0
"""How long retries may take to come through after the writers stopped."""
ROLLED_BACK = 0.05
"""The share of the CRM's transactions that change their mind: nothing of these may be sent."""


@dataclass
class Emitted:
    """An event of a committed transaction."""

    at: float
    """When the commit returned, in seconds since 1970."""
    type: str
    workspace_id: str


class Demo:
    """Enter it to start everything; `write_for` lets the CRM work; `counts` tells what came of it."""

    def __init__(self, server_dsn: str, dialect: str = "standard") -> None:
        self._server_dsn = server_dsn
        self.dialect = load_dialects(())[dialect]
        self._workspace = WORKSPACES.get(dialect, DEFAULT_WORKSPACE)
        self._database_name = f"postrider_demo_{dialect}"
        self.dsn = server_dsn.replace("/postgres?", f"/{self._database_name}?")
        # One that is disabled when its schedule is exhausted may not be so flaky.
        fail_rate = 0.05 if self.dialect.disable_when_exhausted else 0.3
        self.receivers = [
            Receiver("steady", ("*",), dialect),
            Receiver("flaky", ("deal.*", "lead.*"), dialect, fail_rate=fail_rate),
            Receiver("slow", ("contact.*", "activity.*"), dialect, delay_s=0.3),
        ]
        self.emitted: dict[str, Emitted] = {}
        self.rolled_back = 0
        self._matcher = Matcher(())

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Demo"]:
        await self._create_database()
        runner = await self._start_receivers()
        directory = TemporaryDirectory(prefix="postrider-demo-")
        config = self._config(self._hasty_dialect(Path(directory.name)))
        daemon = Daemon(config)
        self._database = Database(self.dsn, pool_size=2)
        await self._database.open()
        try:
            await self._capture(config)
            await self._subscribe(config)
            await daemon.start()
            try:
                yield self
            finally:
                await daemon.stop()
        finally:
            await self._database.close()
            await runner.cleanup()
            directory.cleanup()

    def _config(self, dialect: Path) -> Config:
        return parse_config(
            {
                "database": {"dsn": self.dsn},
                "dialect": {
                    "default": self.dialect.name,
                    "paths": [str(dialect)],
                    **self._example.get("dialect", {}),
                },
                "network": {"allow": ["127.0.0.0/8"], "https_only": False},
                "retry": {"schedule": ["0s", "500ms", "1s", "2s", "4s", "8s"]},
                "admin": {"listen": ""},
                "capture": self._example.get("capture", []),
            },
            "the demo's configuration",
        )

    def _hasty_dialect(self, directory: Path) -> Path:
        """The file of the dialect, less the promise of its schedule: who watches does not wait for hours."""
        shipped = (config_dir() / "dialects" / f"{self.dialect.name}.toml").read_text()
        path = directory / f"{self.dialect.name}.toml"
        path.write_text(shipped.replace("promised_schedule = true\n", ""))
        return path

    @cached_property
    def _example(self) -> dict[str, Any]:
        """The configuration of the sample CRM."""
        if self.dialect.name == EMITTING:
            return {}
        return tomllib.loads((config_dir() / "crms" / f"{self.dialect.name}.toml").read_text())

    async def _create_database(self) -> None:
        server = await asyncpg.connect(self._server_dsn, server_settings=PINNED)
        exists = "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)"
        if not await server.fetchval(exists, self._database_name):
            await server.execute(f"CREATE DATABASE {self._database_name}")
        await server.close()
        tables = "sample_crm.sql" if self.dialect.name == EMITTING else f"crm_{self.dialect.name}.sql"
        connection = await asyncpg.connect(self.dsn, server_settings=PINNED)
        try:
            await migrate(connection, read_migrations(sql_dir()))
            await connection.execute((sql_dir() / tables).read_text())
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

    async def _capture(self, config: Config) -> None:
        await CatalogueStore(self._database).publish(self.dialect)
        await Captures(self._database).apply(config.capture, datetime.now(UTC))

    async def _subscribe(self, config: Config) -> None:
        """Replace the endpoints of an earlier run, whose receivers are gone, and verify the new ones."""
        store = Endpoints(self._database, Sealer())
        now = datetime.now(UTC)
        for row in await store.list_endpoints():
            await store.delete(row.endpoint.id, now)
        for receiver in self.receivers:
            receiver.endpoint_id = secrets.randbits(63) or 1
            endpoint = Endpoint(
                id=receiver.endpoint_id,
                workspace_id=self._workspace,
                url=receiver.url,
                patterns=receiver.events,
                exclusions=(),
                dialect=self.dialect.name,
                secrets=(parse_secret(receiver.secret),),
                state=EndpointState.UNVERIFIED if self.dialect.handshake else EndpointState.ACTIVE,
                concurrency=None,
                headers={},
                failing_since=None,
                description=f"the demo's {receiver.name} receiver",
            )
            await store.add(endpoint, [receiver.secret], now)
            await self._verify(endpoint, config)
            await store.activate(endpoint.id, now)
            receiver.open = True
        self._matcher = Matcher([row.endpoint for row in await store.list_endpoints()])

    async def _verify(self, endpoint: Endpoint, config: Config) -> None:
        if self.dialect.handshake is None:
            return
        async with WebhookClient(network_options(config)) as client:
            settings = SendSettings(client, {}, config.delivery.user_agent, https_only=False)
            handshake = await shake_hands(
                settings,
                self.dialect,
                self.dialect.handshake,
                endpoint,
                database=self._database,
                clock=SystemClock(),
            )
        if handshake.reason is not None:
            raise PostriderError(f"the demo's own receiver did not answer the handshake: {handshake.reason}")

    async def write_for(self, seconds: float | None, rate: float, stop: asyncio.Event) -> None:
        """Let the CRM work, `rate` transactions a second, until the time is over or `stop` is set."""
        ends_at = time.monotonic() + seconds if seconds is not None else float("inf")

        async def work() -> None:
            connection = await asyncpg.connect(self.dsn)  # the CRM's own, and set as it likes
            crm = EmittingCrm(connection) if self.dialect.name == EMITTING else CapturedCrm(connection)
            try:
                while time.monotonic() < ends_at and not stop.is_set():
                    await self._transact(crm, connection)
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

    async def _transact(self, crm: Crm, connection: Connection) -> None:
        transaction = connection.transaction()
        await transaction.start()
        started_at: datetime = await connection.fetchval("SELECT now()")
        await crm.act()
        if random.random() < ROLLED_BACK:
            await transaction.rollback()
            self.rolled_back += 1
            return
        # What is not committed and can be seen is of this transaction; its ids are not older than that. The
        # demo's server is too young for a second epoch of transactions.
        oldest = UUID(int=(int(started_at.timestamp() * 1000) - 1) << 80)
        rows = await connection.fetch(
            """SELECT id, type, workspace_id FROM postrider.outbox
               WHERE id > $1 AND NOT test AND pg_xact_status(xmin::text::xid8) = 'in progress'""",
            oldest,
        )
        await transaction.commit()
        committed_at = time.time()
        for row in rows:
            self.emitted[event_public_id(row["id"])] = Emitted(committed_at, row["type"], row["workspace_id"])

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
            for endpoint in self._matcher.match(emitted.workspace_id, emitted.type):
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
            "set_aside": len(await Captures(self._database).list_rejections(1000)),
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
