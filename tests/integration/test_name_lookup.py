"""The name lookups of deliveries, against a real name server that is silent, slow, broken, or fickle."""

import asyncio
import socket
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop

from postrider.domain.model import AttemptResult, ErrorKind, Failure, Reply
from postrider.edges.addresses import AddressPolicy
from postrider.edges.dialing import BlockedAddressError
from postrider.edges.network import NetworkOptions, WebhookClient
from postrider.edges.resolving import Resolver
from tests.support.name_server import Name, NameServer, name_server

SILENT_HOSTS = 300
LOOPBACK = AddressPolicy(allow=["127.0.0.0/8", "::1/128"])
HERE = Name(("127.0.0.1",))


def run(main: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main)


async def listen(address: str = "127.0.0.1", port: int = 0) -> asyncio.Server:
    """A receiver that answers 200 to everything, one request a connection."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    return await asyncio.start_server(answer, address, port)


def port_of(server: asyncio.Server) -> int:
    return int(server.sockets[0].getsockname()[1])


def client(
    names: NameServer,
    *,
    policy: AddressPolicy = LOOPBACK,
    connect_timeout: float = 60,
    blocked: list[BlockedAddressError] | None = None,
) -> WebhookClient:
    options = NetworkOptions(
        policy, connect_timeout + 1, connect_timeout, 1000, name_servers=(names.address,)
    )
    return WebhookClient(options, blocked.append if blocked is not None else None)


async def post(sender: WebhookClient, host: str, server: asyncio.Server) -> AttemptResult:
    return await sender.post(f"http://{host}:{port_of(server)}/", {}, b"{}", endpoint_id=1, https_only=False)


def reason(result: AttemptResult, kind: ErrorKind) -> str:
    assert isinstance(result, Failure), result
    assert result.kind is kind, result
    return result.reason


def test_hosts_whose_names_are_never_answered_hold_up_no_other_host_and_no_thread() -> None:
    async def main() -> None:
        silent = {f"silent{number}.example": Name(silent=True) for number in range(SILENT_HOSTS)}
        healthy = {f"healthy{number}.example": HERE for number in range(20)}
        async with await listen() as server, name_server(silent | healthy) as names, client(names) as sender:
            threads = threading.active_count()
            stuck = [asyncio.ensure_future(post(sender, host, server)) for host in silent]
            while not names.asked:
                await asyncio.sleep(0.01)
            for host in healthy:
                assert isinstance(await post(sender, host, server), Reply)
            assert not any(task.done() for task in stuck)
            assert threading.active_count() <= threads + 1  # pycares' own, which frees channels
            for task in stuck:
                task.cancel()
            await asyncio.wait(stuck)

    run(main())


def test_name_that_is_never_answered_fails_with_a_sentence_before_the_time_to_connect_is_over() -> None:
    async def main() -> None:
        async with (
            await listen() as server,
            name_server({"a.example": Name(silent=True)}) as names,
            client(names, connect_timeout=0.5) as sender,
        ):
            said = reason(await post(sender, "a.example", server), ErrorKind.DNS)
            assert said == "the name lookup failed: no name server answered within 0.4 s"

    run(main())


@pytest.mark.parametrize(
    ("host", "problem"),
    [
        ("missing.example", "there is no such name"),
        ("empty.example", "the name has no address"),
        ("broken.example", "the name server reports a failure"),
        ("a..example", "it is not a host name"),
    ],
)
def test_failed_lookup_says_why(host: str, problem: str) -> None:
    async def main() -> None:
        zone = {"empty.example": Name(), "broken.example": Name(broken=True)}
        async with await listen() as server, name_server(zone) as names, client(names) as sender:
            said = reason(await post(sender, host, server), ErrorKind.DNS)
            assert said == f"the name lookup failed: {problem}"

    run(main())


def test_answer_is_kept_for_its_ttl_and_a_name_that_is_missing_for_a_moment() -> None:
    async def main() -> None:
        zone = {"lasting.example": HERE, "short.example": Name(("127.0.0.1",), ttl=1)}
        async with await listen() as server, name_server(zone) as names, client(names) as sender:
            for _ in range(20):
                assert isinstance(await post(sender, "lasting.example", server), Reply)
                await post(sender, "missing.example", server)
            assert names.asked["lasting.example"] == 1
            assert names.asked["missing.example"] < 20
            names.names["missing.example"] = HERE
            async with asyncio.timeout(30):
                while names.asked["short.example"] < 2:
                    assert isinstance(await post(sender, "short.example", server), Reply)
                while not isinstance(await post(sender, "missing.example", server), Reply):
                    await asyncio.sleep(0.1)

    run(main())


def test_name_is_looked_up_once_for_all_who_wait_and_one_of_them_may_leave() -> None:
    async def main() -> None:
        async with name_server({"slow.example": Name(("192.0.2.1",), delay_s=0.3)}) as names:
            resolver = Resolver(timeout=30, servers=[names.address])
            waiting = [asyncio.ensure_future(resolver.look_up("slow.example")) for _ in range(50)]
            while not names.asked:
                await asyncio.sleep(0.01)
            waiting[0].cancel()
            assert {await task for task in waiting[1:]} == {("192.0.2.1",)}
            assert names.asked["slow.example"] == 1
            resolver.close()

    run(main())


@pytest.mark.parametrize("what", [{"truncated": True}, {"delay_s": 0.5}, {"silent_for_ipv6": True}])
def test_awkward_name_servers_are_understood(what: dict[str, Any]) -> None:
    async def main() -> None:
        zone = {"a.example": Name(("127.0.0.1",), **what)}
        async with await listen() as server, name_server(zone) as names, client(names) as sender:
            assert isinstance(await post(sender, "a.example", server), Reply)

    run(main())


def test_host_that_moved_is_looked_up_anew_when_its_known_address_fails() -> None:
    async def main() -> None:
        zone = {"a.example": Name(("127.0.0.2",), ttl=300)}
        async with name_server(zone) as names, client(names) as sender:
            async with await listen("127.0.0.2") as before:
                port = port_of(before)
                assert isinstance(await post(sender, "a.example", before), Reply)
            zone["a.example"] = Name(("127.0.0.1",), ttl=300)
            async with await listen("127.0.0.1", port) as after:
                assert isinstance(await post(sender, "a.example", after), Reply)
                assert names.asked["a.example"] == 2

    run(main())


def test_host_that_is_down_is_looked_up_once_an_attempt() -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        async with name_server({"a.example": HERE}) as names, client(names) as sender:
            for attempt in (1, 2, 3):
                result = await sender.post(
                    f"http://a.example:{port}/", {}, b"{}", endpoint_id=1, https_only=False
                )
                assert reason(result, ErrorKind.CONNECT) == "the connection failed: Connection refused"
                assert names.asked["a.example"] == attempt

    run(main())


@pytest.mark.parametrize(
    ("addresses", "forbidden", "verdict"),
    [
        (("127.0.0.1", "10.0.0.1"), "10.0.0.1", "private"),
        (("10.0.0.1", "127.0.0.1"), "10.0.0.1", "private"),
        (("169.254.169.254",), "169.254.169.254", "cloud-metadata"),
    ],
)
def test_name_is_blocked_when_any_of_its_addresses_is_forbidden_and_a_kept_answer_too(
    addresses: tuple[str, ...], forbidden: str, verdict: str
) -> None:
    async def main() -> None:
        blocked: list[BlockedAddressError] = []
        async with (
            await listen() as server,
            name_server({"a.example": Name(addresses)}) as names,
            client(names, blocked=blocked) as sender,
        ):
            for _ in range(3):
                said = reason(await post(sender, "a.example", server), ErrorKind.BLOCKED)
                assert said == f"the host leads to an address that the network policy forbids ({verdict})"
        assert [(each.host, each.address, each.verdict) for each in blocked] == [
            ("a.example", forbidden, verdict)
        ] * 3
        assert names.asked["a.example"] == 1

    run(main())


def test_name_that_turns_to_a_forbidden_address_is_blocked_from_then_on() -> None:
    async def main() -> None:
        zone = {"a.example": Name(("127.0.0.1",), ttl=0)}
        async with await listen() as server, name_server(zone) as names, client(names) as sender:
            assert isinstance(await post(sender, "a.example", server), Reply)
            zone["a.example"] = Name(("10.0.0.1",), ttl=0)
            async with asyncio.timeout(30):
                while not isinstance(await post(sender, "a.example", server), Failure):
                    await asyncio.sleep(0.05)
            reason(await post(sender, "a.example", server), ErrorKind.BLOCKED)

    run(main())


def test_localhost_and_the_hosts_file_need_no_name_server() -> None:
    async def main() -> None:
        async with await listen() as server, name_server({}) as names, client(names) as sender:
            assert isinstance(await post(sender, "localhost", server), Reply)
            assert not names.asked

    run(main())


def test_lookups_leave_no_descriptor_behind() -> None:
    async def main() -> None:
        zone = {f"{number}.example": Name(silent=number % 2 == 0) for number in range(60)}
        async with name_server(zone) as names:
            resolver = Resolver(timeout=0.2, servers=[names.address])
            before = len(list(Path("/proc/self/fd").iterdir()))
            results = await asyncio.gather(*map(resolver.look_up, zone), return_exceptions=True)
            assert all(isinstance(result, socket.gaierror) for result in results)
            assert len(list(Path("/proc/self/fd").iterdir())) <= before
            resolver.close()

    run(main())
