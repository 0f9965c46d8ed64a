"""The demo: a sample CRM at work, a real daemon, and three receivers, of which one fails at times and one is
slow. It counts what was promised and what came.
"""

import asyncio
import statistics
import tomllib
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from aiohttp import web

from postrider.app import Daemon
from postrider.demo.crm import EMITTING, Left, make_tables, session
from postrider.demo.receivers import Receiver
from postrider.domain.audit import EVERYWHERE, Actor
from postrider.domain.endpoint_input import NewEndpoint
from postrider.domain.errors import PostriderError, UsageError
from postrider.domain.matching import Matcher
from postrider.domain.model import (
    DEFAULT_WORKSPACE,
    DeliveryState,
    event_public_id,
)
from postrider.domain.status import Progress
from postrider.edges.clock import SystemClock
from postrider.edges.config import Config, parse_config
from postrider.edges.dialect_files import load_dialects
from postrider.edges.resources import config_dir
from postrider.operations import captures, endpoint_changes, endpoints, events, installation
from postrider.operations.events import ShownEvent
from postrider.operations.work import open_backend, open_database

WORKSPACES = {"nodestash": "ws_north", "workestra": "ws_berlin"}
"""Where a sample CRM has several workspaces: the one that subscribes. Events of the others go nowhere."""
WRITERS = 3
SETTLE_S = 15.0
"""How long retries may take to come through after the writers stopped."""
WATCHER = Actor("demo", "demo", "localhost")


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
            Receiver("flaky", self._known("deal.*", "lead.*"), dialect, fail_rate=fail_rate),
            Receiver("slow", self._known("contact.*", "activity.*"), dialect, delay_s=0.3),
        ]
        self.emitted: dict[str, Emitted] = {}
        self.rolled_back = 0
        self._matcher = Matcher(())
        self._clock = SystemClock()

    def _known(self, *patterns: str) -> tuple[str, ...]:
        """Those that the dialect's catalogue takes."""
        known = []
        for pattern in patterns:
            with suppress(UsageError):
                self.dialect.catalogue.check_pattern(pattern)
                known.append(pattern)
        return tuple(known)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Demo"]:
        directory = TemporaryDirectory(prefix="postrider-demo-")
        config = self._config(self._hasty_dialect(Path(directory.name)))
        await self._create_database(config)
        runner = await self._start_receivers()
        daemon = Daemon(config)
        try:
            async with open_backend(config) as self._backend:
                await self._capture()
                await self._subscribe()
                await daemon.start()
                try:
                    yield self
                finally:
                    await daemon.stop()
        finally:
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

    async def _create_database(self, config: Config) -> None:
        await installation.create_database(self._server_dsn, self._database_name)
        async with open_database(config) as database:
            await installation.migrate(database, self._clock, self.dialect)
        await make_tables(self.dsn, self.dialect.name)

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

    async def _capture(self) -> None:
        async with self._backend.begin(WATCHER, EVERYWHERE) as work:
            await captures.apply(work)

    async def _subscribe(self) -> None:
        """Replace the endpoints of an earlier run, whose receivers are gone, and verify the new ones."""
        subscribed = []
        async with self._backend.begin(WATCHER, EVERYWHERE) as work:
            left = (await endpoints.list_endpoints(work)).rows
        for row in left:
            await endpoints.delete(self._backend, WATCHER, EVERYWHERE, row.endpoint.id)
        for receiver in self.receivers:
            new = NewEndpoint(
                workspace_id=self._workspace,
                url=receiver.url,
                patterns=receiver.events,
                secret=receiver.secret,
                description=f"the demo's {receiver.name} receiver",
            )
            added = await endpoint_changes.add(self._backend, WATCHER, EVERYWHERE, new)
            if added.problem is not None:
                raise PostriderError(f"the demo's own receiver did not answer the handshake: {added.problem}")
            receiver.endpoint_id = added.row.endpoint.id
            receiver.open = True
            subscribed.append(added.row.endpoint)
        self._matcher = Matcher(subscribed)

    async def write_for(self, seconds: float | None, rate: float, stop: asyncio.Event) -> None:
        """Let the CRM work, `rate` transactions a second, until the time is over or `stop` is set."""
        ends_at = self._clock.monotonic() + seconds if seconds is not None else float("inf")

        async def work() -> None:
            async with session(self.dsn, self.dialect.name) as crm:
                while self._clock.monotonic() < ends_at and not stop.is_set():
                    self._note(await crm.transact())
                    left_s = max(0.0, ends_at - self._clock.monotonic())
                    await self._clock.wait(stop, min(WRITERS / rate, left_s))

        async with asyncio.TaskGroup() as group:
            for _ in range(WRITERS):
                group.create_task(work())

    def _note(self, left: list[Left] | None) -> None:
        """What the transaction left that has just ended."""
        if left is None:
            self.rolled_back += 1
            return
        committed_at = self._clock.now().timestamp()
        for each in left:
            self.emitted[event_public_id(each.id)] = Emitted(committed_at, each.type, each.workspace_id)

    async def settle(self, seconds: float = SETTLE_S) -> None:
        """Wait until every delivery that is owed has come to an end, or the time is over."""
        ends_at = self._clock.monotonic() + seconds
        while self._clock.monotonic() < ends_at:
            counts = await self.counts()
            if counts["succeeded"] + counts["failed"] >= counts["expected"]:
                return
            await self._clock.sleep(0.2)

    async def counts(self) -> dict[str, Any]:
        """What was owed, what came, and what is neither: lost. A delivery counts as succeeded when its
        receiver accepted it, whatever the database says."""
        by_endpoint = {receiver.endpoint_id: receiver for receiver in self.receivers}
        states: Counter[str] = Counter()
        duplicates = 0
        for event_id, emitted in list(self.emitted.items()):
            subscribed = [each.id for each in self._matcher.match(emitted.workspace_id, emitted.type)]
            shown = None
            if not all(by_endpoint[each].accepted[event_id] for each in subscribed):
                async with self._backend.begin(WATCHER, EVERYWHERE) as work:
                    shown = await events.show(work, event_id)
            for endpoint_id in subscribed:
                accepted = by_endpoint[endpoint_id].accepted[event_id]
                if shown is not None and not accepted:  # it may have come while we asked
                    states[_state_of(shown, endpoint_id)] += 1
                    continue
                states["succeeded"] += 1
                duplicates += accepted - 1
        async with self._backend.begin(WATCHER, EVERYWHERE) as work:
            set_aside = len(await captures.rejections(work, 1000))
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
            "set_aside": set_aside,
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


def _state_of(shown: ShownEvent, endpoint_id: int) -> str:
    """The state of a delivery that its receiver has not accepted."""
    state = next((row.state for row in shown.deliveries if row.endpoint_id == endpoint_id), None)
    if state is None:
        return "lost" if shown.progress is Progress.DONE else "sending"
    return "lost" if state in (DeliveryState.SUCCEEDED, DeliveryState.CANCELLED) else state.value
