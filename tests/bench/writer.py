"""A CRM that writes: connections that each commit one statement after the other.

    python -m tests.bench.writer DSN WRITERS SECONDS STATEMENT

$1 of the statement is a number that no other execution under way has. Prints commits per second.
"""

import asyncio
import sys
import time

import asyncpg
import uvloop

NUMBERS = 10_000


async def write(dsn: str, writers: int, seconds: float, statement: str) -> float:
    connections = [await asyncpg.connect(dsn) for _ in range(writers)]
    prepared = [await connection.prepare(statement) for connection in connections]

    async def loop(writer: int) -> int:
        commits = 0
        while time.monotonic() < ends_at:
            await prepared[writer].fetch(1 + (commits * writers + writer) % NUMBERS)
            commits += 1
        return commits

    started = time.monotonic()
    ends_at = started + seconds
    commits = sum(await asyncio.gather(*(loop(writer) for writer in range(writers))))
    elapsed = time.monotonic() - started
    for connection in connections:
        await connection.close()
    return commits / elapsed


if __name__ == "__main__":
    print(uvloop.run(write(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4])))
