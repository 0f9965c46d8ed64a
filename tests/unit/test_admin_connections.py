"""Connections to the admin server that never ask, by a clock that the test moves."""

import asyncio

from postrider.admin.connections import PATIENCE_S, Connections
from tests.support.clock import FakeClock


async def turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_who_never_asks_is_hung_up_on_when_his_time_is_over() -> None:
    clock, loop = FakeClock(), asyncio.get_running_loop()
    connections = Connections(asyncio.Protocol, clock)
    server = await loop.create_server(connections, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
    while repr(connections) != "<Connections 1 open, 1 waiting>":
        await asyncio.sleep(0)
    for _ in range(int(PATIENCE_S) - 1):
        await turns()
        clock.advance(1.0)
    await turns()
    assert repr(connections) == "<Connections 1 open, 1 waiting>"
    clock.advance(1.0)
    await asyncio.wait({asyncio.ensure_future(reader.read())}, timeout=60)
    assert repr(connections) == "<Connections 0 open, 0 waiting>"
    writer.close()
    server.close()
    connections.close()
