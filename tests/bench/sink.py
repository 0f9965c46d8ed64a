"""A receiver that only counts: the cheapest HTTP server that answers a POST, in a process of its own.

Prints its port. `GET /stats` gives {"received": N, "first_at": …, "last_at": …, "arrivals": {id: epoch s}};
arrivals are kept only with --keep-arrivals. `POST /reset` starts over.
"""

import argparse
import asyncio
import json
import time
from typing import cast

import uvloop

_OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


class Sink(asyncio.Protocol):
    received = 0
    first_at = last_at = 0.0
    arrivals: dict[str, float] = {}  # noqa: RUF012 (shared by all connections on purpose)
    keep_arrivals = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.buffer = b""

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (head_end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:head_end].lower()
            length = 0
            if (at := head.find(b"content-length:")) >= 0:
                length = int(head[at + 15 :].split(b"\r\n", 1)[0])
            end = head_end + 4 + length
            if len(self.buffer) < end:
                return
            self.buffer = self.buffer[end:]
            self.transport.write(self.answer(head))

    def answer(self, head: bytes) -> bytes:
        kind = type(self)
        if head.startswith(b"get /stats"):
            body = json.dumps(
                {
                    "received": kind.received,
                    "first_at": kind.first_at,
                    "last_at": kind.last_at,
                    "arrivals": kind.arrivals,
                }
            ).encode()
            return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        if head.startswith(b"post /reset"):
            kind.received, kind.first_at, kind.last_at = 0, 0.0, 0.0
            kind.arrivals.clear()
            return _OK
        kind.last_at = time.time()
        kind.first_at = kind.first_at or kind.last_at
        kind.received += 1
        if kind.keep_arrivals and (at := head.find(b"webhook-id:")) >= 0:
            kind.arrivals[head[at + 11 :].split(b"\r\n", 1)[0].strip().decode()] = kind.last_at
        return _OK


async def serve() -> None:
    server = await asyncio.get_running_loop().create_server(Sink, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--keep-arrivals", action="store_true")
    Sink.keep_arrivals = parser.parse_args().keep_arrivals
    uvloop.run(serve())
