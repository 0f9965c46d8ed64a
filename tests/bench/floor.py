"""The floor: a plain aiohttp loop that signs and POSTs the same bodies with the same headers, no database."""

import asyncio
import sys
import time

import aiohttp
import uvloop

from postrider.domain.signing import sign_v1

KEY = b"k" * 32
WORKERS = 64


async def post_for(url: str, data_bytes: int, seconds: float) -> float:
    """Requests per second."""
    body = b'{"type":"deal.updated","timestamp":"2026-03-15T10:30:00.000000Z","data":{"title":"%b"}}' % (
        b"x" * data_bytes
    )
    done = 0
    ends_at = time.monotonic() + seconds
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as session:

        async def work() -> None:
            nonlocal done
            while time.monotonic() < ends_at:
                now = int(time.time())
                headers = {
                    "content-type": "application/json",
                    "user-agent": "Postrider/0.1.0",
                    "webhook-id": f"evt_{done:032x}",
                    "webhook-timestamp": str(now),
                    "webhook-signature": sign_v1((KEY,), f"evt_{done:032x}", now, body),
                }
                async with session.post(url, data=body, headers=headers) as response:
                    await response.read()
                done += 1

        started = time.monotonic()
        await asyncio.gather(*(work() for _ in range(WORKERS)))
        return done / (time.monotonic() - started)


if __name__ == "__main__":
    print(uvloop.run(post_for(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))))
