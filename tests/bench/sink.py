"""A receiver that only counts: the cheapest HTTP server that answers a POST, in a process of its own.

    python -m tests.bench.sink        prints its port

The path of a webhook is /GROUP/ANYTHING; requests are counted by group. The group names the behaviour:
`never` gets no answer, `slow` 200 after 5 s, `late` after 40 ms, `reset` a TCP reset, any other 200 at once.

    GET  /_stats        {"at": epoch s, "duplicates": N, "groups": {GROUP: {received, first_at, last_at}}}
    GET  /_arrivals     {"/GROUP/ANYTHING webhook-id": epoch s of the first arrival}
    POST /_reset        start over
    POST /_reset_keep   start over; keep arrivals, and count as duplicates ids that come again to a path
"""

import asyncio
import json
import socket
import struct
import time
from dataclasses import asdict, dataclass
from typing import cast

import uvloop

DELAYS_S = {b"slow": 5.0, b"late": 0.04}
_OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass(slots=True)
class Group:
    received: int
    first_at: float
    last_at: float


class Counts:
    def __init__(self, keep: bool) -> None:
        self.keep = keep
        self.groups: dict[bytes, Group] = {}
        self.arrivals: dict[bytes, float] = {}
        self.duplicates = 0

    def add(self, name: bytes, path: bytes, head: bytes) -> None:
        now = time.time()
        group = self.groups.get(name)
        if group is None:
            group = self.groups[name] = Group(0, now, now)
        group.received += 1
        group.last_at = now
        if self.keep:
            key = path + b" " + head[head.find(b"webhook-id:") + 11 :].split(b"\r", 1)[0].strip()
            if key in self.arrivals:
                self.duplicates += 1
            else:
                self.arrivals[key] = now

    def stats(self) -> bytes:
        groups = {name.decode(): asdict(group) for name, group in self.groups.items()}
        return json.dumps({"at": time.time(), "duplicates": self.duplicates, "groups": groups}).encode()


class Sink(asyncio.Protocol):
    counts = Counts(keep=False)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.buffer = b""

    def data_received(self, data: bytes) -> None:
        buffer = self.buffer + data if self.buffer else data
        while (head_end := buffer.find(b"\r\n\r\n")) >= 0:
            head = buffer[:head_end].lower()
            at = head.find(b"content-length:")
            end = head_end + 4 + (int(head[at + 15 :].split(b"\r", 1)[0]) if at >= 0 else 0)
            if len(buffer) < end:
                break
            buffer = buffer[end:]
            self.answer(head)
        self.buffer = buffer

    def answer(self, head: bytes) -> None:
        path = head.split(b" ", 2)[1]
        if path.startswith(b"/_"):
            body = self.control(path)
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
            return
        name = path[1 : path.find(b"/", 1)]
        self.counts.add(name, path, head)
        if name in DELAYS_S:
            asyncio.get_running_loop().call_later(DELAYS_S[name], self.answer_late)
        elif name == b"reset":
            connection: socket.socket = self.transport.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            self.transport.abort()
        elif name != b"never":
            self.transport.write(_OK)

    def answer_late(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(_OK)

    def control(self, path: bytes) -> bytes:
        if path == b"/_stats":
            return self.counts.stats()
        if path == b"/_arrivals":
            return json.dumps({key.decode(): at for key, at in self.counts.arrivals.items()}).encode()
        Sink.counts = Counts(keep=path == b"/_reset_keep")
        return b""


async def serve() -> None:
    server = await asyncio.get_running_loop().create_server(Sink, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve())
