"""What every Python peer's job does: sign by Standard Webhooks and POST over kept-alive connections.

Runs in the peers' own virtual environment, so it imports nothing of Postrider.
"""

import hmac
import time
from binascii import b2a_base64

import aiohttp

DATA_BYTES = 300
"""Length of the text in `data`; the envelope around it adds about 90 bytes."""
CONCURRENCY = 64
"""Requests under way at a time, as Postrider's endpoint has."""

_KEY = b"k" * 32
_BODY = (
    '{"type":"deal.updated","timestamp":"2026-03-15T10:30:00.000000Z","data":{"title":"'
    + "x" * DATA_BYTES
    + '"}}'
)


def bodies(count: int) -> list[str]:
    """The JSON bodies to enqueue."""
    return [_BODY] * count


class Sender:
    """Posts bodies to one receiver; to be made inside the event loop."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=CONCURRENCY), cookie_jar=aiohttp.DummyCookieJar()
        )

    async def send(self, job_id: int, body: bytes) -> None:
        """Raises aiohttp.ClientResponseError unless the receiver accepts, so that the queue tries again."""
        event_id = f"evt_{job_id:032x}"
        timestamp = int(time.time())
        digest = hmac.digest(_KEY, b"%b.%d.%b" % (event_id.encode(), timestamp, body), "sha256")
        headers = {
            "content-type": "application/json",
            "webhook-id": event_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": "v1," + b2a_base64(digest, newline=False).decode(),
        }
        async with self._session.post(self._url, data=body, headers=headers) as response:
            await response.read()
            response.raise_for_status()

    async def close(self) -> None:
        await self._session.close()
