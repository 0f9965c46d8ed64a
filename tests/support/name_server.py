"""A DNS server on loopback, over UDP and TCP, whose zone is a dictionary that tests change at will."""

import asyncio
import contextlib
import ipaddress
import struct
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

_A, _AAAA = 1, 28
_NXDOMAIN, _SERVFAIL = 3, 2


@dataclass
class Name:
    """What is answered for a name."""

    addresses: tuple[str, ...] = ()
    ttl: int = 60
    silent: bool = False
    silent_for_ipv6: bool = False
    """AAAA questions get no answer."""
    broken: bool = False
    """SERVFAIL."""
    truncated: bool = False
    """Over UDP: ask again by TCP."""
    delay_s: float = 0.0


@dataclass
class NameServer:
    names: dict[str, Name] = field(default_factory=dict)
    """By their lower-case names; NXDOMAIN for all others."""
    asked: Counter[str] = field(default_factory=Counter)
    """Questions for the A record of a name, repeated ones included."""
    port: int = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def answer(self, query: bytes, *, tcp: bool) -> bytes | None:
        name, kind, question = _question(query)
        self.asked[name] += kind == _A
        found = self.names.get(name)
        if found is None:
            return _message(query, question, 0, _NXDOMAIN, [])
        if found.silent or (found.silent_for_ipv6 and kind == _AAAA):
            return None
        await asyncio.sleep(found.delay_s)
        if found.broken:
            return _message(query, question, 0, _SERVFAIL, [])
        if found.truncated and not tcp:
            return _message(query, question, 0x0200, 0, [])
        packed = [ipaddress.ip_address(address).packed for address in found.addresses]
        size = {_A: 4, _AAAA: 16}.get(kind)
        records = [
            struct.pack("!HHHIH", 0xC00C, kind, 1, found.ttl, len(data)) + data
            for data in packed
            if len(data) == size
        ]
        return _message(query, question, 0, 0, records)


@contextlib.asynccontextmanager
async def name_server(names: dict[str, Name]) -> AsyncIterator[NameServer]:
    """Serves `names` while it is entered."""
    made = NameServer(names)
    tasks: set[asyncio.Task[None]] = set()

    class Datagrams(asyncio.DatagramProtocol):
        def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
            self.transport = transport

        def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
            async def reply() -> None:
                if (message := await made.answer(data, tcp=False)) is not None:
                    self.transport.sendto(message, addr)

            task = asyncio.ensure_future(reply())
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    async def stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                (size,) = struct.unpack("!H", await reader.readexactly(2))
                message = await made.answer(await reader.readexactly(size), tcp=True)
                if message is not None:
                    writer.write(struct.pack("!H", len(message)) + message)
        writer.close()

    server = await asyncio.start_server(stream, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
        Datagrams, local_addr=("127.0.0.1", made.port)
    )
    try:
        yield made
    finally:
        for task in tasks:
            task.cancel()
        transport.close()
        server.close()


def _question(query: bytes) -> tuple[str, int, bytes]:
    """Name in lower case, type, and the question as it stands."""
    labels = []
    at = 12
    while size := query[at]:
        labels.append(query[at + 1 : at + 1 + size])
        at += 1 + size
    (kind,) = struct.unpack_from("!H", query, at + 1)
    return b".".join(labels).decode("ascii").lower(), kind, query[12 : at + 5]


def _message(query: bytes, question: bytes, flags: int, code: int, records: list[bytes]) -> bytes:
    head = query[:2] + struct.pack("!HHHHH", 0x8180 | flags | code, 1, len(records), 0, 0)
    return head + question + b"".join(records)
