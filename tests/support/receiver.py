"""A webhook receiver in a process of its own, which shares no code with Postrider.

    python -m tests.support.receiver --secret whsec_… --mode flaky:0.3

Prints its port as the first line. Every path is an endpoint; signatures are verified with the PyPI package
`standardwebhooks`. Behaviours (`--mode`, and per path with POST /_mode):

    ok              200
    500, 410, …     that status
    429:5           that status with `Retry-After: 5`
    302:URL         that status with `Location: URL`
    flaky:0.3       500 to that share of the requests, 200 to the rest
    slow:2          200 after so many seconds
    never           no answer
    garbage         bytes that are not HTTP
    reset           a TCP reset

Control, on the same port:

    GET  /_stats                  counts of all paths together, and of each under "paths"
    GET  /_ids                    {path: {webhook-id: requests}}, ids in order of first arrival
    GET  /_requests?limit=N       the last N requests, oldest first: at, path, status, headers, body
    GET  /_wait?key=K&count=N&timeout=S[&path=P]   stats once count K reached N; after S seconds 408 with
                                  the counts of that path, or of all together
    POST /_mode?mode=M[&path=P]   behave so from now on, everywhere or on one path
    POST /_reset                  forget all requests; modes stay
"""

import argparse
import asyncio
import random
import signal
import socket
import struct
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import uvloop
from aiohttp import web
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

UNANSWERED = 0
"""Status under which requests are recorded that get no HTTP response."""


@dataclass
class Stats:
    received: int = 0
    distinct: int = 0
    accepted: int = 0
    """Different ids that were answered with 2xx."""
    duplicates: int = 0
    """Requests whose id had been accepted before: a retry after a failure is none."""
    bad_signatures: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    first_at: float | None = None
    """Epoch seconds of the first request's arrival."""
    last_at: float | None = None


@dataclass
class Path:
    stats: Stats = field(default_factory=Stats)
    requests_of: Counter[str] = field(default_factory=Counter)
    accepted: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Recorded:
    at: float
    path: str
    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


class Receiver:
    def __init__(self, mode: str, secret: str | None, secret_of: dict[str, str], keep: int) -> None:
        self._mode = mode
        self._mode_of: dict[str, str] = {}
        self._verifier = _verifier(secret) if secret else None
        self._verifier_of = {path: _verifier(secret) for path, secret in secret_of.items()}
        self._paths: dict[str, Path] = {}
        self._total = Stats()
        """Of all paths: a test that waits asks for it after every request."""
        self._requests: deque[Recorded] = deque(maxlen=keep)
        self._changed = asyncio.Event()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path.startswith("/_"):
            return await self._control(request)
        return await self._webhook(request)

    async def _webhook(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.content.read()
        at = time.time()
        path = self._paths.setdefault(request.path, Path())
        webhook_id = request.headers.get("webhook-id", "")
        self._count_arrival(path, webhook_id, at)

        counted = (path.stats, self._total)
        if not self._is_signed(request, body):
            for stats in counted:
                stats.bad_signatures += 1
            status, headers = 401, dict[str, str]()
        else:
            status, headers = await self._behave(request)

        first = 200 <= status < 300 and webhook_id not in path.accepted
        if first:
            path.accepted.add(webhook_id)
        for stats in counted:
            stats.statuses[status] += 1
            stats.accepted += first
        self._requests.append(Recorded(at, request.path, status, tuple(request.headers.items()), body))
        self._changed.set()
        return web.Response(status=status or 200, headers=headers)

    def _count_arrival(self, path: Path, webhook_id: str, at: float) -> None:
        path.requests_of[webhook_id] += 1
        for stats in (path.stats, self._total):
            stats.received += 1
            stats.first_at = at if stats.first_at is None else stats.first_at
            stats.last_at = at
            stats.distinct += path.requests_of[webhook_id] == 1
            stats.duplicates += webhook_id in path.accepted
        self._changed.set()

    def _is_signed(self, request: web.BaseRequest, body: bytes) -> bool:
        verifier = self._verifier_of.get(request.path, self._verifier)
        if verifier is None:
            return True
        try:
            verifier.verify(body, dict(request.headers), json_parse=False)
        except (WebhookVerificationError, ValueError):  # it lets a malformed signature out as ValueError
            return False
        return True

    async def _behave(self, request: web.BaseRequest) -> tuple[int, dict[str, str]]:
        """Status and headers of the answer; UNANSWERED where the connection got something else."""
        behaviour, _, argument = self._mode_of.get(request.path, self._mode).partition(":")
        match behaviour:
            case "ok":
                return 200, {}
            case "flaky":
                return (500 if random.random() < float(argument) else 200), {}
            case "slow":
                await asyncio.sleep(float(argument))
                return 200, {}
            case "never":
                await asyncio.Event().wait()
            case "garbage":
                assert request.transport
                request.transport.write(b"\x00\xff this is not HTTP\r\n\r\n")
                request.transport.close()
                return UNANSWERED, {}
            case "reset":
                _reset(request)
                return UNANSWERED, {}
        header = "Location" if behaviour.startswith("3") else "Retry-After"
        return int(behaviour), {header: argument} if argument else {}

    async def _control(self, request: web.BaseRequest) -> web.Response:
        query = request.query
        match request.method, request.path:
            case "GET", "/_stats":
                return web.json_response(self._stats())
            case "GET", "/_ids":
                return web.json_response({name: path.requests_of for name, path in self._paths.items()})
            case "GET", "/_requests":
                return web.json_response(self._last_requests(int(query.get("limit", "100"))))
            case "GET", "/_wait":
                return await self._wait(
                    query["key"], int(query["count"]), float(query["timeout"]), query.get("path")
                )
            case "POST", "/_mode":
                _check_mode(query["mode"])
                if "path" in query:
                    self._mode_of[query["path"]] = query["mode"]
                else:
                    self._mode, self._mode_of = query["mode"], {}
            case "POST", "/_reset":
                self._paths.clear()
                self._total = Stats()
                self._requests.clear()
            case _:
                return web.Response(status=404)
        return web.json_response({})

    async def _wait(self, key: str, count: int, timeout: float, path: str | None) -> web.Response:
        def stats() -> Stats:
            if path is None:
                return self._total
            return self._paths[path].stats if path in self._paths else Stats()

        try:
            async with asyncio.timeout(timeout):
                while getattr(stats(), key) < count:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return web.json_response(vars(stats()), status=408)
        return web.json_response(self._stats())

    def _stats(self) -> dict[str, Any]:
        return {**vars(self._total), "paths": {name: vars(path.stats) for name, path in self._paths.items()}}

    def _last_requests(self, limit: int) -> list[dict[str, Any]]:
        return [
            {
                "at": recorded.at,
                "path": recorded.path,
                "status": recorded.status,
                "headers": {name.lower(): value for name, value in recorded.headers},
                "body": recorded.body.decode(errors="replace"),
            }
            for recorded in list(self._requests)[-limit:]
        ]


def _verifier(secret: str) -> Webhook:
    return Webhook(secret if secret.startswith("whsec_") else secret.encode())


def _check_mode(mode: str) -> str:
    behaviour, _, argument = mode.partition(":")
    if behaviour in ("flaky", "slow"):
        float(argument)
    elif behaviour not in ("ok", "never", "garbage", "reset"):
        int(behaviour)
    return mode


def _reset(request: web.BaseRequest) -> None:
    assert request.transport
    linger_without_waiting = struct.pack("ii", 1, 0)
    request.transport.get_extra_info("socket").setsockopt(
        socket.SOL_SOCKET, socket.SO_LINGER, linger_without_waiting
    )
    request.transport.abort()


async def serve(receiver: Receiver, port: int, announce: Callable[[int], None]) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    server = web.Server(receiver.handle, access_log=None, handler_cancellation=True)
    runner = web.ServerRunner(server, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=1024).start()
    announce(runner.addresses[0][1])
    await stop.wait()
    await runner.cleanup()


def _print(port: int) -> None:
    print(port, flush=True)


def main(arguments: Sequence[str] | None = None, announce: Callable[[int], None] = _print) -> None:
    """`announce` is told the port."""
    parser = argparse.ArgumentParser(prog="receiver")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--secret", help="without one, signatures are not checked")
    parser.add_argument("--secret-for", action="append", default=[], metavar="PATH=SECRET")
    parser.add_argument("--mode", type=_check_mode, default="ok")
    parser.add_argument("--keep", type=int, default=20_000, help="requests that /_requests can show")
    options = parser.parse_args(arguments)
    secret_of = dict(pair.split("=", 1) for pair in options.secret_for)

    async def run() -> None:
        receiver = Receiver(options.mode, options.secret, secret_of, options.keep)
        await serve(receiver, options.port, announce)

    uvloop.run(run())


if __name__ == "__main__":
    main()
