"""python -m tests.bench.peers_pgqueuer fill DSN COUNT | work DSN URL"""

import asyncio
import signal
import sys

import asyncpg
import uvloop
from pgqueuer.core.executors import DatabaseRetryEntrypointExecutor  # type: ignore[import-not-found]
from pgqueuer.db import AsyncpgPoolDriver  # type: ignore[import-not-found]
from pgqueuer.models import Job  # type: ignore[import-not-found]
from pgqueuer.qm import QueueManager  # type: ignore[import-not-found]
from pgqueuer.queries import Queries  # type: ignore[import-not-found]

from tests.bench.peers_handler import Sender, bodies

BATCH = 100
"""Jobs that one statement fetches, and that one statement completes."""
MAX_TASKS = 500
"""Jobs fetched and not yet completed. The fetch sleeps 0.1 s whenever so many are, so that a limit of only
twice the batch, the least that pgqueuer takes, would leave its core idle; the sender holds back the rest.
"""


async def fill(dsn: str, count: int) -> None:
    async with asyncpg.create_pool(dsn, min_size=1) as pool:
        queries = Queries(AsyncpgPoolDriver(pool))
        await queries.install()
        await queries.enqueue(["deliver"] * count, [body.encode() for body in bodies(count)], [0] * count)


async def work(dsn: str, url: str) -> None:
    async with asyncpg.create_pool(dsn) as pool:
        manager = QueueManager(Queries(AsyncpgPoolDriver(pool)))
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, manager.shutdown.set)
        sender = Sender(url)

        async def deliver(job: Job) -> None:
            await sender.send(job.id, job.payload)

        manager.entrypoint("deliver", executor_factory=DatabaseRetryEntrypointExecutor)(deliver)
        await manager.run(batch_size=BATCH, max_concurrent_tasks=MAX_TASKS)
        await sender.close()


if __name__ == "__main__":
    command, dsn, argument = sys.argv[1:]
    uvloop.run(fill(dsn, int(argument)) if command == "fill" else work(dsn, argument))
