"""The floor: a plain aiohttp loop that signs and POSTs the same bodies with the same headers, no database.

    python -m tests.bench.floor URL ENDPOINTS DATA_BYTES SECONDS [WORKERS]

Prints JSON: requests per second, CPU µs per request, and the median ms of one request, which is a round
trip with 1 worker.
"""

import asyncio
import itertools
import json
import random
import resource
import statistics
import sys
import time

import aiohttp
import uvloop

from postrider.domain.signing import sign_v1

KEY = b"k" * 32
WORKERS = 64
_WORDS = ("deal", "client", "price", "stage", "owner", "offer", "meeting", "north", "wind", "garden")


def text(data_bytes: int) -> str:
    """Words, the same at every call: about as compressible as what people write."""
    chance = random.Random(data_bytes)
    return " ".join(chance.choice(_WORDS) for _ in range(data_bytes // 4))[:data_bytes]


def body_of(data_bytes: int) -> bytes:
    """What the standard dialect makes of an event with that text as its title."""
    head = '{"type":"deal.updated","timestamp":"2026-03-15T10:30:00.000000Z","data":{"title":"'
    return f'{head}{text(data_bytes)}"}}}}'.encode()


async def post_for(urls: list[str], body: bytes, seconds: float, workers: int) -> dict[str, float]:
    spans: list[float] = []
    next_url = itertools.cycle(urls)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as session:

        async def work() -> None:
            while time.monotonic() < ends_at:
                started = time.monotonic()
                now, webhook_id = int(time.time()), f"evt_{len(spans):032x}"
                headers = {
                    "content-type": "application/json",
                    "user-agent": "Postrider/0.1.0",
                    "webhook-id": webhook_id,
                    "webhook-timestamp": str(now),
                    "webhook-signature": sign_v1((KEY,), webhook_id, now, body),
                }
                async with session.post(next(next_url), data=body, headers=headers) as response:
                    await response.read()
                spans.append(time.monotonic() - started)

        cpu_before, started = _cpu_s(), time.monotonic()
        ends_at = started + seconds
        await asyncio.gather(*(work() for _ in range(workers)))
        elapsed, cpu = time.monotonic() - started, _cpu_s() - cpu_before
    return {
        "rate": len(spans) / elapsed,
        "cpu_us": cpu / len(spans) * 1e6,
        "median_ms": statistics.median(spans) * 1000,
    }


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main(url: str, endpoints: str, data_bytes: str, seconds: str, workers: str = str(WORKERS)) -> None:
    urls = [f"{url}/ok/{number}" for number in range(int(endpoints))]
    figures = uvloop.run(post_for(urls, body_of(int(data_bytes)), float(seconds), int(workers)))
    print(json.dumps(figures))


if __name__ == "__main__":
    main(*sys.argv[1:])
