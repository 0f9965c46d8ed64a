"""What every bench stands on: PostgreSQL and a counting receiver on one core, daemons on the other, and the
SQL that fills and empties the tables. A daemon is `python -m postrider run`; nothing else is known of it."""

import asyncio
import atexit
import os
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from itertools import count
from pathlib import Path

import asyncpg

from postrider.domain.model import endpoint_public_id
from postrider.domain.sealing import Sealer
from postrider.edges.embedded import EmbeddedPostgres
from postrider.edges.resources import sql_dir
from postrider.store.database import Connection
from postrider.store.migrations import read_schema
from tests.bench import processes
from tests.bench.floor import WORKERS, text
from tests.bench.processes import DAEMON_CORE, OTHER_CORE, Daemon, Sink
from tests.support.daemon_process import write_config
from tests.support.migrating import migrate

_SECRET = "bench-secret-of-sufficient-length"

_FILL = """
INSERT INTO postrider.outbox (workspace_id, type, data)
SELECT 'default', 'e' || n % $2 || '.updated', json_build_object('title', $3::text)
FROM generate_series(1, $1) AS n
"""

_ADD_ENDPOINTS = """
INSERT INTO postrider.endpoint (id, workspace_id, url, patterns, dialect, concurrency, created_at, updated_at)
SELECT id, $5, url, ARRAY[pattern], 'standard', $4, now(), now()
FROM unnest($1::bigint[], $2::text[], $3::text[]) AS e (id, url, pattern)
"""

_ADD_SECRETS = """
INSERT INTO postrider.endpoint_secret (endpoint_id, workspace_id, created_at, sealed)
SELECT id, $3, now(), sealed FROM unnest($1::bigint[], $2::bytea[]) AS s (id, sealed)
"""

_EMIT = "SELECT postrider.emit('e' || n || '.updated', '{}') AS id, n FROM unnest($1::integer[]) AS n"

_DISTURB = """
SELECT postrider.emit('noise.made', json_build_object('title', $2::text), workspace_id => 'neighbour')
FROM generate_series(1, $1)
"""

_CLEAR = """
TRUNCATE postrider.outbox, postrider.pending, postrider.claim, postrider.delivery, postrider.attempt,
  postrider.idempotency, postrider.daemon
"""


class Stage:
    def __init__(self, dsn: str, connection: Connection, sink: Sink, directory: Path, scale: float) -> None:
        self.dsn = dsn
        self.connection = connection
        self.sink = sink
        self.scale = scale
        """Factor of the sizes that do not follow from the seconds of a run."""
        self._directory = directory
        self._log_numbers = count()
        self._config = write_config(directory, dsn, log={"format": "json", "level": "info"})

    async def clear(self, *, endpoints: bool = True) -> None:
        """Forget all events, and the endpoints too."""
        await self.connection.execute(_CLEAR)
        if endpoints:
            await self.connection.execute("TRUNCATE postrider.endpoint, postrider.endpoint_secret")

    async def subscribe(
        self,
        endpoints: int,
        *,
        groups: Sequence[str] = ("ok",),
        pattern: str = "e{}.*",
        concurrency: int | None = None,
        sink: Sink | None = None,
        workspace: str = "default",
        host: str | None = None,
    ) -> None:
        """Endpoint N gets the events of the types eN.*, or of another pattern, at /GROUP/N of the sink, or of
        `host`; the groups take turns."""
        first = await self.connection.fetchval("SELECT coalesce(max(id), 0) + 1 FROM postrider.endpoint")
        ids = list(range(first, first + endpoints))
        base = (sink or self.sink).url if host is None else f"http://{host}"
        urls = [f"{base.format(n)}/{groups[n % len(groups)]}/{n}" for n in range(endpoints)]
        patterns = [pattern.format(n) for n in range(endpoints)]
        sealed = [Sealer().seal(_SECRET, endpoint_public_id(number)) for number in ids]
        async with self.connection.transaction():
            await self.connection.execute(_ADD_ENDPOINTS, ids, urls, patterns, concurrency, workspace)
            await self.connection.execute(_ADD_SECRETS, ids, sealed, workspace)

    async def insert(self, events: int, *, types: int, data_bytes: int = 300) -> None:
        """Commit events in one statement; their types take turns."""
        await self.connection.execute(_FILL, events, types, text(data_bytes), timeout=600)

    async def fill(self, events: int, *, types: int, data_bytes: int = 300) -> None:
        """Insert events for a daemon to find, and wait until all is quiet."""
        await self.insert(events, types=types, data_bytes=data_bytes)
        await self.connection.execute("ANALYZE postrider.outbox, postrider.pending", timeout=60)
        await self.rest()

    async def emit(self, numbers: Sequence[int]) -> dict[str, tuple[int, float]]:
        """Commit one event of type eN.updated for each number: {id: (number, epoch s after commit)}."""
        rows = await self.connection.fetch(_EMIT, numbers)
        committed_at = time.time()
        return {row["id"]: (row["n"], committed_at) for row in rows}

    @asynccontextmanager
    async def another_connection(self) -> "AsyncIterator[Stage]":
        """The same stage, for somebody else who writes at the same time."""
        connection = await asyncpg.connect(self.dsn)
        try:
            yield Stage(self.dsn, connection, self.sink, self._directory, self.scale)
        finally:
            connection.terminate()

    async def disturb(self, events: int, *, data_bytes: int = 2) -> None:
        """Commit events of the type `noise.made` in the workspace `neighbour`."""
        await self.connection.execute(_DISTURB, events, text(data_bytes), timeout=60)

    async def rest(self) -> None:
        """Wait until autovacuum is done with what happened before, for 30 s at most."""
        for _ in range(300):
            busy = await self.connection.fetchval(
                "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'autovacuum worker'"
            )
            if not busy:
                return
            await asyncio.sleep(0.1)

    async def waiting(self) -> bool:
        """Whether an event is in the queue, or claimed."""
        found: bool = await self.connection.fetchval(
            "SELECT EXISTS (SELECT FROM postrider.pending) OR EXISTS (SELECT FROM postrider.claim)"
        )
        return found

    async def settled(self, daemon: Daemon, timeout: float = 120) -> None:
        """Wait until every event has left the queue."""
        ends_at = time.monotonic() + timeout
        while await self.waiting():
            daemon.lives()
            if time.monotonic() > ends_at:
                raise TimeoutError(f"the queue did not empty within {timeout:.0f} s")
            await asyncio.sleep(0.1)

    async def alone(self) -> None:
        """Wait until no other session is left: a session reports what it changed at its end."""
        for _ in range(100):
            others = await self.connection.fetchval(
                """SELECT count(*) FROM pg_stat_activity
                   WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"""
            )
            if not others:
                return
            await asyncio.sleep(0.1)
        raise TimeoutError("sessions of a daemon that stopped are left")

    @contextmanager
    def daemon(self, within: Sequence[str] = ()) -> Iterator[Daemon]:
        """A daemon on its core, `within` a command that becomes it; killed at the end, as its unsent work is
        of no use."""
        daemon = Daemon(self._config, self._directory / f"daemon-{next(self._log_numbers)}.log", within)
        try:
            yield daemon
        finally:
            daemon.kill()

    async def asleep(self, *daemons: Daemon) -> None:
        """Wait until these daemons, and no others, sleep, ready to be woken."""
        for _ in range(200):
            idle = await self.connection.fetchval("SELECT count(*) FROM postrider.daemon WHERE idle")
            if all(daemon.lives() for daemon in daemons) and idle == len(daemons):
                return
            await asyncio.sleep(0.1)
        raise TimeoutError("the daemons did not fall asleep within 20 s")

    async def floor(
        self, seconds: float, *, endpoints: int = 1, data_bytes: int = 300, workers: int = WORKERS
    ) -> dict[str, float]:
        """What the plain loop of floor.py does on the daemon's core."""
        figures: dict[str, float] = await processes.output_of(
            DAEMON_CORE,
            *("-m", "tests.bench.floor", self.sink.url),
            *(str(argument) for argument in (endpoints, data_bytes, seconds, workers)),
            timeout=seconds + 60,
        )
        return figures

    async def drain_rate(self, deliveries: int) -> float:
        """Deliveries per second, first to last arrival, of a daemon that finds so many of them waiting."""
        self.sink.reset()
        with self.daemon() as daemon:
            await daemon.until(lambda: self.sink.received() >= deliveries, f"{deliveries} deliveries", 180)
            return self.sink.rate()

    def postgres_log(self) -> Path:
        return self._directory / "data" / "log"

    def database_cpu_s(self) -> float:
        """CPU seconds of all of PostgreSQL's processes so far."""
        postmaster = int((self._directory / "data" / "postmaster.pid").read_text().split()[0])
        return processes.cpu_s_with_children(postmaster)


@asynccontextmanager
async def staged(scale: float) -> AsyncIterator[Stage]:
    """Everything runs on the other core, but for what is started on the daemon's; all ends with us."""
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    os.sched_setaffinity(0, {OTHER_CORE})
    directory = Path(tempfile.mkdtemp(prefix="postrider-bench-"))
    directory.chmod(0o755)  # as root, the server runs as another user
    # At the very end: the embedded server leaves a lock file there when the interpreter exits.
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    with EmbeddedPostgres(directory) as server, processes.sink(OTHER_CORE) as sink:
        connection = await asyncpg.connect(server.dsn)
        try:
            await migrate(connection, read_schema(sql_dir()))
            yield Stage(server.dsn, connection, sink, directory, scale)
        finally:
            connection.terminate()
