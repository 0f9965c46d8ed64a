"""python -m tests.bench.endpoints [COUNT …]: what keeping endpoints in memory costs a daemon.

Loads so many endpoints, sealed with a key, from an embedded PostgreSQL, then takes over the change of one
and of all, and a new start of the configuration. Prints the time of each, the longest that the event loop did
nothing else (in CPU time of its thread, so that other processes don't count) and the memory that is kept.
"""

import asyncio
import gc
import os
import sys
import tempfile
import time
from pathlib import Path

import asyncpg
import structlog
import uvloop

from postrider.domain.model import endpoint_public_id
from postrider.domain.promises import RetrySettings
from postrider.domain.sealing import Sealer
from postrider.edges.clock import SystemClock
from postrider.edges.dialect_files import load_dialects
from postrider.edges.embedded import EmbeddedPostgres
from postrider.edges.metrics import Metrics
from postrider.edges.randomness import random_bytes
from postrider.edges.resources import sql_dir
from postrider.engine.failures import Failures
from postrider.engine.lanes import Lanes
from postrider.engine.ledger import Ledger
from postrider.engine.recorded import LeftWaiting
from postrider.engine.recorder import Recorder
from postrider.engine.signals import Signal
from postrider.engine.subscriptions import Subscriptions
from postrider.store.database import Database
from postrider.store.deliveries import Deliveries
from postrider.store.endpoint_changes import Endpoints
from postrider.store.migrations import migrate, read_schema
from tests.support.daemon_process import SECRET

HEADERS = '{"Authorization": "Bearer 0123456789abcdef"}'


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Watch:
    """The longest piece of work between two turns of the event loop."""

    def __init__(self) -> None:
        self.longest_s = 0.0
        self._task = asyncio.create_task(self._turn())

    async def _turn(self) -> None:
        while True:
            before = time.thread_time()
            await asyncio.sleep(0)
            self.longest_s = max(self.longest_s, time.thread_time() - before)

    async def stop(self) -> float:
        await asyncio.sleep(0)
        self._task.cancel()
        return self.longest_s


async def fill(dsn: str, count: int, sealer: Sealer) -> None:
    """Every tenth endpoint is in a workspace of its own, the rest in one."""
    connection = await asyncpg.connect(dsn)
    await connection.execute("TRUNCATE postrider.endpoint, postrider.endpoint_secret")
    async with connection.transaction():
        await connection.executemany(
            """INSERT INTO postrider.endpoint
                 (id, workspace_id, url, patterns, dialect, sealed_headers, created_at, updated_at)
               VALUES ($1, $2, 'https://example.com/hooks/' || $1::bigint, '{deal.*,contact.updated}',
                       'standard', $3, now(), now())""",
            [
                (
                    number,
                    f"ws_{number}" if number % 10 == 0 else "ws",
                    sealer.seal(HEADERS, f"{endpoint_public_id(number)} headers"),
                )
                for number in range(1, count + 1)
            ],
        )
        await connection.execute("ALTER TABLE postrider.endpoint_secret DISABLE TRIGGER USER")
        await connection.executemany(
            """INSERT INTO postrider.endpoint_secret (endpoint_id, workspace_id, created_at, sealed)
               SELECT id, workspace_id, now(), $2 FROM postrider.endpoint WHERE id = $1""",
            [(number, sealer.seal(SECRET, endpoint_public_id(number))) for number in range(1, count + 1)],
        )
        await connection.execute("ALTER TABLE postrider.endpoint_secret ENABLE TRIGGER USER")
    await connection.execute("ANALYZE postrider.endpoint, postrider.endpoint_secret")
    await connection.close()


async def measure(dsn: str, count: int) -> None:
    sealer = Sealer(bytes(32), random_bytes)
    await fill(dsn, count, sealer)
    connection = await asyncpg.connect(dsn)
    database = Database(dsn, pool_size=2, synchronous_commit=False)
    await database.open()
    clock, ledger = SystemClock(), Ledger()
    dialects, retry = load_dialects([]), RetrySettings(None, None, 432_000.0)
    subscriptions = Subscriptions(
        endpoints=Endpoints(database, sealer),
        lanes=Lanes(capacity=8192, concurrency=256, endpoint_concurrency=8, ledger=ledger, clock=clock),
        recorder=Recorder(
            deliveries=Deliveries(database),
            ledger=ledger,
            left_waiting=LeftWaiting(Signal()),
            readers=(),
            doubt=Signal(),
            clock=clock,
            metrics=Metrics("bench"),
            failures=Failures(clock),
        ),
        dialects=dialects,
        retry=retry,
        wake=Signal(),
        clock=clock,
    )
    await database.connection().__aenter__()
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    before = resident_bytes()
    for name, statement in (
        ("load", None),
        ("change of one", "UPDATE postrider.endpoint SET url = url || '/new' WHERE id = 5"),
        ("change of all", "UPDATE postrider.endpoint SET url = url || '/newer'"),
        ("reload", None),
    ):
        if statement is not None:
            await connection.execute(statement)
        elif name == "reload":
            subscriptions.configure(dialects, retry)
        watch = Watch()
        began = time.monotonic()
        read = await subscriptions.run_once()
        took_s = time.monotonic() - began
        subscriptions.match("ws", "deal.updated")
        print(
            f"{count:,} endpoints, {name}: {read:,} read in {took_s * 1000:,.1f} ms, longest piece "
            f"{await watch.stop() * 1000:.1f} ms, memory +{(resident_bytes() - before) / 1e6:.1f} MB",
            flush=True,
        )
    await connection.close()
    await database.close()


def main() -> None:
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    counts = [int(argument) for argument in sys.argv[1:]] or [30_000, 100_000]
    directory = Path(tempfile.mkdtemp(prefix="postrider-bench-"))
    directory.chmod(0o755)
    with EmbeddedPostgres(directory) as server:

        async def prepare() -> None:
            connection = await asyncpg.connect(server.dsn)
            await migrate(connection, read_schema(sql_dir()))
            await connection.close()

        asyncio.run(prepare())
        for count in counts:
            if os.fork() == 0:  # memory of its own
                with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                    runner.run(measure(server.dsn, count))
                os._exit(0)
            os.wait()


if __name__ == "__main__":
    main()
