"""python -m tests.bench.peers_procrastinate fill DSN COUNT | work DSN URL"""

import sys

import psycopg
import uvloop
from procrastinate import App, PsycopgConnector, RetryStrategy  # type: ignore[import-not-found]
from procrastinate.job_context import JobContext  # type: ignore[import-not-found]

from tests.bench.peers_handler import CONCURRENCY, Sender, bodies

POOL = 4
"""Connections to the database. Jobs are fetched one at a time; more only compete with the fetch."""


async def commit_at_once(connection: psycopg.AsyncConnection) -> None:
    """Every call of procrastinate is one statement, which needs no BEGIN and COMMIT of its own."""
    await connection.set_autocommit(True)


async def run(command: str, dsn: str, argument: str) -> None:
    connector = PsycopgConnector(conninfo=dsn, min_size=POOL, max_size=POOL, configure=commit_at_once)
    app = App(connector=connector)
    senders: list[Sender] = []

    async def deliver(context: JobContext, body: str) -> None:
        await senders[0].send(context.job.id, body.encode())

    task = app.task(name="deliver", pass_context=True, retry=RetryStrategy(max_attempts=25))(deliver)
    async with app.open_async():
        if command == "fill":
            await app.schema_manager.apply_schema_async()
            await task.batch_defer_async(*({"body": body} for body in bodies(int(argument))))
        else:
            senders.append(Sender(argument))
            await app.run_worker_async(concurrency=CONCURRENCY, delete_jobs="successful")
            await senders[0].close()


if __name__ == "__main__":
    uvloop.run(run(*sys.argv[1:]))
