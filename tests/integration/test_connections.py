import asyncio
import contextlib
import socket
import struct
import sys
import threading
from asyncio.subprocess import PIPE
from socket import SO_LINGER, SOL_SOCKET
from typing import Any

import pytest

from postrider.domain.model import ErrorKind, Reply
from postrider.edges.http1 import HttpConnection
from tests.support.loopback import (
    OK,
    Reader,
    Receiver,
    Writer,
    answer_ok,
    client,
    failure,
    post,
    read_request,
    receiver,
    reply,
    run,
    silence,
)


def test_connection_is_kept_and_only_its_first_request_has_a_connect_time() -> None:
    async def main() -> None:
        async with receiver() as server, client() as sender:
            times = [reply(await post(sender, server.url)).connect_ms for _ in range(3)]
            assert server.connections == 1
            assert times[0] is not None
            assert 0 < times[0] < 5000
            assert times[1:] == [None, None]

    run(main())


def test_no_request_fails_on_a_server_that_closes_idle_connections() -> None:
    async def main() -> None:
        async def handle(reader: Reader, writer: Writer) -> None:
            with contextlib.suppress(TimeoutError, ConnectionError):
                while await asyncio.wait_for(read_request(reader), idle_seconds):
                    writer.write(OK)
            writer.close()

        idle_seconds = 0.02
        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        results = []
        async with server, client() as sender:
            for number in range(300):
                results.append(await post(sender, url))
                # Around the very instant at which the server hangs up: the race is the subject.
                await asyncio.sleep(idle_seconds + (number % 21 - 10) * 0.0001)
        # On a machine so busy that connecting takes long, the server gives up on a fresh connection too.
        failed = [result for result in results if not isinstance(result, Reply)]
        assert [result for result in failed if (result.connect_ms or 0) < idle_seconds * 500] == []
        connected = sum(1 for result in results if result.connect_ms is not None)
        assert 1 < connected < 300  # some connections were kept, some had gone

    run(main())


@pytest.mark.parametrize("reset", [False, True])
def test_request_whose_kept_connection_is_closed_is_sent_again_once_on_a_fresh_one(reset: bool) -> None:
    async def main() -> None:
        async def hang_up_on_second(request: bytes, writer: Writer) -> None:
            if len(server.requests) == 1:
                writer.write(OK)
                return
            if reset:
                sock = writer.get_extra_info("socket")
                sock.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
            writer.close()

        async with receiver(hang_up_on_second) as server, client() as sender:
            assert reply(await post(sender, server.url)).status == 200
            failure(await post(sender, server.url, b"again"), ErrorKind.PROTOCOL)
            assert [request[-5:] for request in server.requests[1:]] == [b"again", b"again"]
            assert server.connections == 2

    run(main())


def test_answer_that_had_begun_on_a_kept_connection_is_not_asked_for_again() -> None:
    async def main() -> None:
        async def break_off_second(request: bytes, writer: Writer) -> None:
            if len(server.requests) == 1:
                writer.write(OK)
            else:
                writer.write(OK[:20])
                writer.close()

        async with receiver(break_off_second) as server, client() as sender:
            await post(sender, server.url)
            failure(await post(sender, server.url), ErrorKind.PROTOCOL)
            assert len(server.requests) == 2

    run(main())


def test_idle_connection_serves_no_other_endpoint() -> None:
    async def main() -> None:
        async with receiver() as server, client() as sender:
            for endpoint_id in (1, 2, 1, 2):
                assert reply(await post(sender, server.url, endpoint_id=endpoint_id)).status == 200
            assert server.connections == 2

    run(main())


class Prompter:
    """A receiver in a thread: it answers each request, and what `say` is told whenever it is told."""

    def __init__(self) -> None:
        self.accepted = threading.Event()
        self.requests = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/"
        self._connections: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._connections.append(connection)
                self.accepted.set()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while b"{}" in connection.recv(65536):
                self.requests += 1
                connection.sendall(b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n")

    def say(self, data: bytes) -> None:
        """On loopback it lies in the other end's buffer when this returns."""
        assert self.accepted.wait(5)
        self._connections[-1].sendall(data)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for each in (self._listener, *self._connections):
            each.close()


@pytest.mark.parametrize("piece", [OK, OK[:5], b"HTTP/1.1 100 Continue\r\n\r\n"])
def test_what_comes_unasked_on_an_idle_connection_is_no_answer_to_the_next_request(piece: bytes) -> None:
    async def main() -> None:
        prompter = Prompter()
        async with client() as sender:
            for number in range(1, 4):
                assert reply(await post(sender, prompter.url)).status == 500
                assert prompter.requests == number
                prompter.say(piece)  # the event loop can't have read it before the next request
        prompter.close()

    run(main())


def test_what_comes_before_the_first_request_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    class HeldUp(HttpConnection):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            prompter.say(OK)

    async def main() -> None:
        async with client() as sender:
            result = await post(sender, prompter.url)
            assert "before the request was out" in failure(result, ErrorKind.PROTOCOL)

    monkeypatch.setattr("postrider.edges.network.HttpConnection", HeldUp)
    prompter = Prompter()
    run(main())
    assert prompter.requests == 0
    prompter.close()


LARGE = b"x" * 32_000_000
"""More than the kernel buffers take."""


def test_final_answer_ends_the_sending_of_a_large_body() -> None:
    async def main() -> None:
        async def refuse(reader: Reader, writer: Writer) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
            with contextlib.suppress(ConnectionError):
                while await reader.read(65536):
                    received.append(65536)
                    await asyncio.sleep(0)
            hung_up.set()
            writer.close()

        received: list[int] = []
        hung_up = asyncio.Event()
        server = await asyncio.start_server(refuse, "127.0.0.1", 0)
        async with server, client() as sender:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
            result = reply(await post(sender, url, LARGE))
            assert (result.status, result.body) == (413, "no")
            await asyncio.wait_for(hung_up.wait(), 10)
            assert sum(received) < len(LARGE)

    run(main())


def test_answer_before_the_request_is_out_is_not_taken_on_a_kept_connection() -> None:
    async def main() -> None:
        async def handle(reader: Reader, writer: Writer) -> None:
            connections.append(writer)
            with contextlib.suppress(ConnectionError):
                while await reader.readuntil(b"\r\n\r\n"):
                    if len(connections) > 1:
                        await reader.readexactly(len(LARGE))
                    elif len(answered) == 0:
                        await reader.readexactly(2)
                    answered.append(len(connections))
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d" % len(connections))
                    if len(answered) == 2:
                        break  # reads no more
            await closed.wait()
            writer.close()

        connections: list[Writer] = []
        answered: list[int] = []
        closed = asyncio.Event()
        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        async with server, client() as sender:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
            assert reply(await post(sender, url)).body == "1"
            assert reply(await post(sender, url, LARGE)).body == "2"
            assert answered == [1, 1, 2]
            closed.set()

    run(main())


def test_connection_unused_for_longest_is_closed_first(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.setattr("postrider.edges.idle._MAX_IDLE", 3)
        async with receiver() as server, client() as sender:
            for endpoint_id in (1, 2, 3, 4, 1, 5):
                assert reply(await post(sender, server.url, endpoint_id=endpoint_id)).status == 200
            assert server.connections == 5
            for endpoint_id, connections in ((1, 5), (5, 5), (2, 6)):
                assert reply(await post(sender, server.url, endpoint_id=endpoint_id)).status == 200
                assert server.connections == connections

    run(main())


CROWDED = """
import asyncio, os, resource, sys, uvloop
from postrider.domain.errors import HostExhausted
from tests.support.loopback import client, post, reply

async def main(port):
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    async with client() as sender:
        def send(number):
            url = f"http://127.0.{number // 250}.{number % 250 + 1}:{port}/"
            return post(sender, url, endpoint_id=number)

        async def send_some(numbers):
            return [reply(await send(number)).status for number in numbers]

        answers = await asyncio.gather(*(send_some(range(start, 600, 40)) for start in range(40)))
        assert sum(answers, []) == [200] * 600

        taken = []
        try:
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            pass
        assert reply(await send(700)).status == 200  # in place of the idle ones

        for connection in [*sender._idle._oldest_first]:
            sender._busy.add(connection)  # as if all were in use
        sender._idle = type(sender._idle)()
        try:
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            pass
        for url in (f"http://127.0.3.1:{port}/", f"http://localhost:{port}/"):
            try:
                await post(sender, url)
            except HostExhausted as exhausted:
                assert "Too many open files" in exhausted.message, exhausted
            else:
                raise AssertionError("it found a descriptor")
        for descriptor in taken:
            os.close(descriptor)
        assert reply(await send(701)).status == 200
        print("done")

uvloop.run(main(int(sys.argv[1])))
"""


def test_lack_of_descriptors_costs_idle_connections_and_then_no_attempt() -> None:
    async def main() -> None:
        made = Receiver(answer_ok)
        server = await asyncio.start_server(made.handle, "0.0.0.0", 0, backlog=1000)
        async with server:
            port = str(server.sockets[0].getsockname()[1])
            crowded = await asyncio.create_subprocess_exec(
                sys.executable, "-c", CROWDED, port, stdout=PIPE, stderr=PIPE
            )
            out, err = await asyncio.wait_for(crowded.communicate(), 60)
        assert out == b"done\n", err.decode()

    run(main())


def test_closing_the_client_ends_the_requests_under_way() -> None:
    async def main() -> None:
        async with receiver(silence) as server:
            sender = client()
            async with sender:
                under_way = asyncio.ensure_future(post(sender, server.url))
                while not server.requests:
                    await asyncio.sleep(0.01)
            failure(await asyncio.wait_for(under_way, 5), ErrorKind.PROTOCOL)

    run(main())


def test_request_after_an_idle_while_ends_at_its_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async def answer_first(request: bytes, writer: Writer) -> None:
            if len(server.requests) == 1:
                writer.write(OK)

        monkeypatch.setattr("postrider.edges.network._IDLE_TICK_S", 60.0)
        async with receiver(answer_first) as server, client(timeout=0.3) as sender:
            assert reply(await post(sender, server.url)).status == 200
            await asyncio.sleep(0.2)  # by now the client looks at the clock only for idle connections
            failure(await asyncio.wait_for(post(sender, server.url), 20), ErrorKind.TIMEOUT)

    run(main())


def test_cookies_are_never_sent_back() -> None:
    async def main() -> None:
        answer = b"HTTP/1.1 200 OK\r\nSet-Cookie: sid=1; Path=/\r\nContent-Length: 0\r\n\r\n"
        async with receiver(answer) as server, client() as sender:
            for _ in range(2):
                await post(sender, server.url)
            assert b"cookie" not in server.requests[1].lower()

    run(main())
