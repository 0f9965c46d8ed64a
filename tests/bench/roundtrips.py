"""What a delivery can't do without, each alone: the floor of its latency.

    python -m tests.bench.roundtrips DSN SECONDS

Prints JSON, medians in ms: `notify` from a NOTIFY to its arrival in another session, and `claim` for an
UPDATE that takes one row of a queue, committed as the daemon does, without a wait for the disk.
"""

import asyncio
import json
import statistics
import sys
import time
from collections.abc import Awaitable, Callable

import asyncpg
import uvloop

_QUEUE = """
CREATE TABLE bench_queue (id bigint PRIMARY KEY, owner integer) WITH (fillfactor = 50);
INSERT INTO bench_queue SELECT n, NULL FROM generate_series(1, 100000) AS n;
"""

_CLAIM = """
WITH next AS (SELECT id FROM bench_queue WHERE id >= $1 ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED)
UPDATE bench_queue AS q SET owner = 1 FROM next WHERE q.id = next.id RETURNING q.id
"""


async def median_ms(trip: Callable[[int], Awaitable[object]], seconds: float) -> float:
    spans: list[float] = []
    ends_at = time.perf_counter() + seconds
    while (started := time.perf_counter()) < ends_at:
        await trip(len(spans))
        spans.append(time.perf_counter() - started)
    return statistics.median(spans) * 1000


async def measure(dsn: str, seconds: float) -> dict[str, float]:
    sender, listener = await asyncpg.connect(dsn), await asyncpg.connect(dsn)
    arrived = asyncio.Event()
    await listener.add_listener("bench_floor", lambda *_: arrived.set())
    await sender.execute("SET synchronous_commit = off")
    await sender.execute(_QUEUE)

    async def notify(_: int) -> None:
        arrived.clear()
        await sender.execute("NOTIFY bench_floor")
        await arrived.wait()

    async def claim(number: int) -> None:
        await sender.fetch(_CLAIM, number % 100_000)

    try:
        return {"notify": await median_ms(notify, seconds), "claim": await median_ms(claim, seconds)}
    finally:
        await sender.execute("DROP TABLE bench_queue")
        await listener.close()
        await sender.close()


if __name__ == "__main__":
    print(json.dumps(uvloop.run(measure(sys.argv[1], float(sys.argv[2])))))
