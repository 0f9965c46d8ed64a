"""What keeping endpoints in memory costs a daemon: 100,000 of them, sealed with a key, most in one workspace.

First the snapshot by itself: it loads them, takes over a change of all, and reads them anew. Then a daemon
that runs: one endpoint changes, and an event is emitted at once. The longest block of the event loop is what
it did nothing else for, in CPU time of its thread, so that other processes don't count.

    python -m tests.bench.endpoints load|change DSN ROUNDS      one of the two, as JSON
"""

import asyncio
import base64
import gc
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import asyncpg
import structlog
import uvloop
from structlog.testing import capture_logs

from postrider.app import Daemon
from postrider.domain.model import Endpoint, endpoint_public_id
from postrider.domain.promises import RetrySettings
from postrider.domain.sealing import Sealer
from postrider.edges.clock import SystemClock
from postrider.edges.config import load_config
from postrider.edges.dialect_files import load_dialects
from postrider.edges.randomness import random_bytes
from postrider.engine.dialect_rules import DialectRules
from postrider.engine.endpoints import EndpointSnapshot
from postrider.engine.signals import Signal
from postrider.store.database import Database
from tests.bench.processes import DAEMON_CORE, output_of
from tests.bench.report import Row, spread
from tests.bench.stage import Stage
from tests.support.daemon_process import SECRET, write_config

COUNT = 100_000
KEY = bytes(32)
HEADERS = '{"Authorization": "Bearer 0123456789abcdef"}'
MOST, ALONE = "ws", "ws_10"
"""A workspace of nine endpoints in ten, and one that has one: endpoint 10."""
CHANGED, CHANGED_ALONE = 5, 10
PATTERNS = (("deal.*", "contact.updated"), ("*",), ("deal.updated", "deal.*"))
TYPES = ("deal.updated", "deal.won", "contact.updated")


async def endpoints(stage: Stage, rounds: int, seconds: float) -> list[Row]:
    del seconds
    count = int(COUNT * stage.scale)
    await stage.clear()
    await _fill(stage, count)
    loaded, changed = [
        await output_of(DAEMON_CORE, "-m", "tests.bench.endpoints", part, stage.dsn, str(rounds), timeout=300)
        for part in ("load", "change")
    ]
    what = f"one endpoint of {count:,} changes"
    rows = [
        Row(f"{count:,} endpoints: {name}", "", "", f"{took_s:.1f} s, longest block {block_ms:.1f} ms")
        for name, took_s, block_ms in loaded["steps"]
    ]
    return [
        *rows,
        Row(
            f"{count:,} endpoints: first event of a type in a workspace that has most of them",
            "",
            "",
            f"block {loaded['first_match_ms']:.1f} ms",
        ),
        Row(f"{count:,} endpoints: memory", "", "", f"{loaded['bytes'] / 1e6:.0f} MB"),
        Row(f"{what}: rows read", "1", "", spread(changed["read"], "{:,.0f}")),
        Row(f"{what}: longest block", "≤ 10 ms", "", spread(changed["block_ms"], "{:.1f}", " ms")),
        Row(f"{what}: until effective", "≤ 100 ms", "", spread(changed["effective_ms"], "{:.1f}", " ms")),
        Row(f"{what}: until an event arrives there", "", "", spread(changed["arrived_ms"], "{:.1f}", " ms")),
    ]


async def _fill(stage: Stage, count: int) -> None:
    sealer, numbers = Sealer(KEY, random_bytes), range(1, count + 1)
    async with stage.connection.transaction():
        await stage.connection.executemany(
            """INSERT INTO postrider.endpoint
                 (id, workspace_id, url, patterns, dialect, sealed_headers, created_at, updated_at)
               VALUES ($1, $2, $3, $4, 'standard', $5, now(), now())""",
            [
                (
                    number,
                    f"ws_{number}" if number % 10 == 0 else MOST,
                    f"{stage.sink.url}/ok/{number}",
                    PATTERNS[number % 3],
                    sealer.seal(HEADERS, f"{endpoint_public_id(number)} headers"),
                )
                for number in numbers
            ],
        )
        await stage.connection.execute("ALTER TABLE postrider.endpoint_secret DISABLE TRIGGER USER")
        await stage.connection.execute(
            """INSERT INTO postrider.endpoint_secret (endpoint_id, workspace_id, created_at, sealed)
               SELECT e.id, e.workspace_id, now(), s.sealed
               FROM unnest($1::bigint[], $2::bytea[]) AS s (id, sealed)
               JOIN postrider.endpoint AS e USING (id)""",
            numbers,
            [sealer.seal(SECRET, endpoint_public_id(number)) for number in numbers],
        )
        await stage.connection.execute("ALTER TABLE postrider.endpoint_secret ENABLE TRIGGER USER")
    await stage.connection.execute("ANALYZE postrider.endpoint, postrider.endpoint_secret")


class Watch:
    """The longest block of the event loop since it was asked last."""

    def __init__(self) -> None:
        self._longest_s = 0.0
        self._task = asyncio.create_task(self._turn())

    async def _turn(self) -> None:
        while True:
            before = time.thread_time()
            await asyncio.sleep(0)
            self._longest_s = max(self._longest_s, time.thread_time() - before)

    async def longest_ms(self) -> float:
        await asyncio.sleep(0)  # what runs now is over then
        longest_s, self._longest_s = self._longest_s, 0.0
        return longest_s * 1000


async def _load(dsn: str) -> dict[str, Any]:
    """The snapshot by itself."""
    connection = await asyncpg.connect(dsn)
    database = Database(dsn, pool_size=2, synchronous_commit=False)
    await database.open()
    sealer = Sealer(KEY, random_bytes)
    snapshot = EndpointSnapshot(
        database=database,
        sealer=sealer,
        rules=DialectRules(load_dialects([]), RetrySettings(None, None, 432_000.0)),
        changed=Signal(),
        on_change=lambda _changed, _gone: None,
        read_anew=Signal(),
        clock=SystemClock(),
    )
    async with database.connection():
        pass  # it is open now
    _collect_like_a_daemon()
    before, kept = _resident_bytes(), 0
    steps = []
    watch = Watch()
    for name in ("first load", "change of all", "read anew"):
        match name:
            case "change of all":
                await connection.execute("UPDATE postrider.endpoint SET description = 'new'")
            case "read anew":
                snapshot.configure(sealer)
        await watch.longest_ms()
        began = time.monotonic()
        await snapshot.run_once()
        took_s = time.monotonic() - began
        steps.append((name, took_s, await watch.longest_ms()))
        kept = kept or _resident_bytes() - before
    snapshot.match(MOST, TYPES[0])
    first_match_ms = await watch.longest_ms()
    await connection.close()
    await database.close()
    return {"steps": steps, "bytes": kept, "first_match_ms": first_match_ms}


async def _change(dsn: str, rounds: int) -> dict[str, Any]:
    """A daemon that runs, and that has matched events of some types before."""
    found: dict[str, list[float]] = {"read": [], "block_ms": [], "effective_ms": [], "arrived_ms": []}
    with tempfile.TemporaryDirectory() as directory:
        key = Path(directory) / "key"
        key.write_text(base64.b64encode(KEY).decode())
        config = write_config(Path(directory), dsn, secrets={"key_file": str(key)})
        daemon = Daemon(load_config(config, {}))
        connection = await asyncpg.connect(dsn)
        await daemon.start()
        _collect_like_a_daemon()
        arrivals: asyncio.Queue[float] = asyncio.Queue()

        async def receive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            arrivals.put_nowait(time.monotonic())
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            writer.close()

        receiver = await asyncio.start_server(receive, "127.0.0.1", 0)
        port = receiver.sockets[0].getsockname()[1]
        watch = Watch()
        for number in range(rounds):
            for event_type in TYPES:
                daemon.services.snapshot.match(MOST, event_type)
            await asyncio.sleep(0.2)
            await watch.longest_ms()
            # One of a large workspace: known to every answer that was remembered.
            with capture_logs() as logs:
                url = f"http://127.0.0.1:{port}/unused/{number}"
                await connection.execute("UPDATE postrider.endpoint SET url = $2 WHERE id = $1", CHANGED, url)
                committed_at = time.monotonic()
                while _url(daemon.services.snapshot.match(MOST, TYPES[0]), CHANGED) != url:
                    await asyncio.sleep(0)
                found["effective_ms"].append((time.monotonic() - committed_at) * 1000)
                for event_type in TYPES:
                    daemon.services.snapshot.match(MOST, event_type)
                while not (
                    read := [each["read"] for each in logs if each["event"] == "subscriptions.loaded"]
                ):
                    await asyncio.sleep(0)
                found["block_ms"].append(await watch.longest_ms())
            found["read"].append(sum(read))
            # One whose event is emitted at once.
            url = f"http://127.0.0.1:{port}/{number}"
            await connection.execute(
                "UPDATE postrider.endpoint SET url = $2 WHERE id = $1", CHANGED_ALONE, url
            )
            committed_at = time.monotonic()
            await connection.execute("SELECT postrider.emit('deal.updated', '{}', workspace_id => $1)", ALONE)
            arrived_at = await asyncio.wait_for(arrivals.get(), 10)
            found["arrived_ms"].append((arrived_at - committed_at) * 1000)
        receiver.close()
        await daemon.stop()
        await connection.close()
    return found


def _url(found: Sequence[Endpoint], endpoint_id: int) -> str | None:
    return next((each.url for each in found if each.id == endpoint_id), None)


def _collect_like_a_daemon() -> None:
    gc.collect()
    gc.freeze()
    gc.set_threshold(2_000, 10, 50)


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    part, dsn, rounds = sys.argv[1:]
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    measured = _load(dsn) if part == "load" else _change(dsn, int(rounds))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(runner.run(measured)))


if __name__ == "__main__":
    main()
