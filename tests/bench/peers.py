"""The same events through job queues that a Python or Node team would use, and Postrider's ratio to each.

Every run has a database of its own, filled with the queue's own bulk call before its worker starts on the
daemon's core. A rate is requests per second between the first and the last arrival at the receiver. In every
round Postrider and the peers take turns; the ratios are per round.
"""

import asyncio
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import asyncpg

from postrider.domain.model import Endpoint, EndpointState
from postrider.domain.sealing import Sealer
from postrider.edges.resources import sql_dir
from postrider.store import endpoints
from postrider.store.database import Database
from postrider.store.migrations import read_schema
from tests.bench.peers_handler import CONCURRENCY, DATA_BYTES
from tests.bench.peers_install import Installed, NotInstallable, installers
from tests.bench.processes import DAEMON_CORE, Sink
from tests.bench.report import Row, compared
from tests.bench.stage import Stage
from tests.support.daemon_process import write_config
from tests.support.migrating import migrate

REPOSITORY = Path(__file__).parents[2]
CALIBRATION = 1000
"""Jobs of the first, uncounted run, whose rate says how many the rounds need."""
PATIENCE = 120.0
"""Seconds within which a queue has to be filled, or drained."""


class Queue(Protocol):
    """A queue under test, whose worker is a process."""

    async def fill(self, dsn: str, count: int) -> None:
        """Make the queue's tables and enqueue `count` jobs."""

    def worker(self, dsn: str) -> list[str]:
        """The command of the worker."""


class Peer:
    """A queue whose program has the commands `fill DSN COUNT` and `work DSN URL`."""

    def __init__(self, program: list[str], url: str, directory: Path) -> None:
        self._program = program
        self._url = url
        self._log = directory / "fill.log"

    async def fill(self, dsn: str, count: int) -> None:
        command = [*self._program, "fill", dsn, str(count)]
        with _running(command, self._log) as process:
            await _wait_until(lambda: process.poll() is not None, f"filling with {count}", self._log)
        assert process.returncode == 0, _tail(self._log)

    def worker(self, dsn: str) -> list[str]:
        return [*self._program, "work", dsn, self._url]


class Postrider:
    def __init__(self, url: str, directory: Path) -> None:
        self._url = url
        self._directory = directory

    async def fill(self, dsn: str, count: int) -> None:
        database = Database(dsn, pool_size=1)
        await database.open()
        async with database.connection() as connection:
            await migrate(connection, read_schema(sql_dir()))
        endpoint = Endpoint(
            id=secrets.randbits(62) + 1,
            workspace_id="default",
            url=self._url,
            patterns=("*",),
            exclusions=(),
            dialect="standard",
            secrets=(),
            state=EndpointState.ACTIVE,
            concurrency=CONCURRENCY,
            headers={},
            failing_since=None,
        )
        async with database.connection() as connection:
            await endpoints.add(
                connection, Sealer(), endpoint, ["bench-secret-of-sufficient-length"], datetime.now(UTC)
            )
            await connection.execute(
                """SELECT postrider.emit('deal.updated', json_build_object('title', repeat('x', $2)))
                   FROM generate_series(1, $1)""",
                count,
                DATA_BYTES,
            )
        await database.close()

    def worker(self, dsn: str) -> list[str]:
        config = write_config(self._directory, dsn)
        return [sys.executable, "-m", "postrider", "run", "--config", str(config)]


async def peers(stage: Stage, rounds: int, seconds: float) -> list[Row]:
    """A row for each peer; `seconds` is the length of one run."""
    dsn, sink = stage.dsn, stage.sink
    directory = Path(tempfile.mkdtemp(prefix="postrider-peers-"))
    try:
        installed, rows = _install(directory)
        if not installed:
            return rows
        url = f"{sink.url}/ok/hook"
        queues: dict[str, Queue] = {"postrider": Postrider(url, directory)}
        queues |= {name: Peer(peer.program, url, directory) for name, peer in installed.items()}
        counts = {}
        for name, queue in queues.items():
            rate = await _drain_rate(queue, dsn, sink, directory, CALIBRATION)
            counts[name] = max(CALIBRATION, int(rate * seconds))
        rates: dict[str, list[float]] = {name: [] for name in queues}
        for _ in range(rounds):
            for name, queue in queues.items():
                rates[name].append(await _drain_rate(queue, dsn, sink, directory, counts[name]))
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    own = rates["postrider"]
    for name, peer in installed.items():
        rows.append(compared(f"{name} {peer.version}, the same events", "", rates[name], own))
    return rows


def _install(directory: Path) -> tuple[dict[str, Installed], list[Row]]:
    """The peers that could be installed, and the rows of the others."""
    installed, rows = {}, []
    for name, install in installers(directory).items():
        try:
            installed[name] = install()
        except NotInstallable as error:
            rows.append(Row(name, "", f"not installable here: {error}", ""))
    return installed, rows


async def _drain_rate(queue: Queue, dsn: str, sink: Sink, directory: Path, count: int) -> float:
    """Requests per second of a worker that finds `count` jobs waiting, between first and last arrival."""
    async with _database(dsn) as own:
        await queue.fill(own, count)
        connection = await asyncpg.connect(own)
        # As autovacuum would have done by the time that a backlog is this long.
        await connection.execute("VACUUM (ANALYZE)")
        await connection.close()
        sink.reset()
        log = directory / "worker.log"
        with _running(queue.worker(own), log) as process:

            def drained() -> bool:
                assert process.poll() is None, f"the worker ended\n{_tail(log)}"
                return sink.received() >= count

            await _wait_until(drained, f"{count} arrivals", log)
            return sink.rate()


@asynccontextmanager
async def _database(dsn: str) -> AsyncIterator[str]:
    """A new database; yields its DSN."""
    name = f"peers_{secrets.token_hex(4)}"
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(f"CREATE DATABASE {name}")
        yield urlsplit(dsn)._replace(path=f"/{name}").geturl()
    finally:
        await connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        await connection.close()


@contextmanager
def _running(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    pinned = ["taskset", "-c", str(DAEMON_CORE), *command] if shutil.which("taskset") else command
    with log.open("wb") as output:
        process = subprocess.Popen(pinned, cwd=REPOSITORY, stdout=output, stderr=output)
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(15)


async def _wait_until(holds: Callable[[], bool], what: str, log: Path) -> None:
    ends_at = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < ends_at, f"waited {PATIENCE:.0f} s in vain for {what}\n{_tail(log)}"
        await asyncio.sleep(0.1)


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-20:])
