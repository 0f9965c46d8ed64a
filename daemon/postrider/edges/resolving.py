"""Names to addresses: c-ares asks the name servers, no lookup holds a thread, answers are kept for their TTL.

/etc/hosts and resolv.conf (servers, search, ndots, timeout, attempts) hold as for the system's own resolver.
What else nsswitch.conf may name (mDNS, LDAP) is not asked.
"""

import asyncio
import socket
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import pycares

_TTL_S = 1.0, 300.0
"""An answer is kept for its TTL, but at least and at most for so long."""
_NEGATIVE_S = 5.0
"""How long it is known that a name does not exist,"""
_FAILED_S = 1.0
"""and that its name servers did not answer."""
_MAX_ANSWERS = 16_384
_FINAL = {pycares.errno.ARES_ENOTFOUND, pycares.errno.ARES_ENODATA, pycares.errno.ARES_EBADNAME}
_PROBLEMS = {
    pycares.errno.ARES_ENOTFOUND: "there is no such name",
    pycares.errno.ARES_ENODATA: "the name has no address",
    pycares.errno.ARES_EBADNAME: "it is not a host name",
    pycares.errno.ARES_ESERVFAIL: "the name server reports a failure",
    pycares.errno.ARES_EREFUSED: "the name server refuses to answer",
    pycares.errno.ARES_ECONNREFUSED: "no name server can be reached",
}


@dataclass(frozen=True, slots=True)
class _Answer:
    addresses: tuple[str, ...]
    error: OSError | None
    asked_at: float
    expires_at: float


class Resolver:
    """Looks each name up once at a time, whoever waits for it. It judges no address."""

    def __init__(self, *, timeout: float, servers: Sequence[str] = ()) -> None:
        """A lookup ends after `timeout` seconds. `servers` (address:port) replace those of resolv.conf."""
        self._timeout = timeout
        self._servers = tuple(servers)
        self._answers: OrderedDict[str, _Answer] = OrderedDict()
        self._lookups: dict[str, asyncio.Task[_Answer]] = {}

    async def look_up(self, host: str) -> tuple[str, ...]:
        """The addresses of a name, IPv4 and IPv6, best first (RFC 6724); at least one.

        Raises socket.gaierror, whose `strerror` a person can read, and OSError where this host has no
        descriptor left to ask with.
        """
        answer = self._answers.get(host)
        if answer is None or answer.expires_at <= time.monotonic():
            lookup = self._lookups.get(host)
            if lookup is None:
                lookup = self._lookups[host] = asyncio.create_task(self._ask(host))
            # Who stops waiting must not end it for the others.
            answer = await asyncio.shield(lookup)
        if answer.error is not None:
            raise answer.error.with_traceback(None)
        return answer.addresses

    async def is_outdated(self, host: str, since: float) -> bool:
        """Whether a name has other addresses than it had; asked anew if it was last asked before `since`."""
        before = self._answers.get(host)
        if before is None or before.asked_at >= since:
            return False
        del self._answers[host]
        try:
            return set(await self.look_up(host)) != set(before.addresses)
        except OSError:
            return False

    def close(self) -> None:
        for lookup in self._lookups.values():
            lookup.cancel()

    async def _ask(self, host: str) -> _Answer:
        asked_at = time.monotonic()
        addresses: tuple[str, ...] = ()
        error: OSError | None = None
        try:
            result = await _Lookup(self._servers).run(host, self._timeout)
            addresses = tuple(dict.fromkeys(node.addr[0].decode("ascii") for node in result.nodes))
            ttl = min([node.ttl for node in result.nodes] + [alias.ttl for alias in result.cnames])
            keep_s = min(max(ttl, _TTL_S[0]), _TTL_S[1])
        except pycares.AresError as failed:
            code = failed.args[0]
            keep_s = _NEGATIVE_S if code in _FINAL else _FAILED_S
            problem = _PROBLEMS.get(code) or f"no name server answered within {self._timeout:g} s"
            error = socket.gaierror(socket.EAI_NONAME if code in _FINAL else socket.EAI_AGAIN, problem)
        except OSError as failed:
            keep_s, error = 0.0, failed
        finally:
            del self._lookups[host]
        answer = _Answer(addresses, error, asked_at, time.monotonic() + keep_s)
        self._answers[host] = answer
        self._answers.move_to_end(host)
        if len(self._answers) > _MAX_ANSWERS:
            self._answers.popitem(last=False)
        return answer


class _Lookup:
    """One question to c-ares, on a channel of its own, which costs 50 µs.

    A lasting channel would answer from c-ares' own cache, and would not see that resolv.conf has changed.
    """

    def __init__(self, servers: Sequence[str]) -> None:
        self._loop = asyncio.get_running_loop()
        self._done: asyncio.Future[pycares.AddrInfoResult] = self._loop.create_future()
        self._timer: asyncio.TimerHandle | None = None
        self._servers = servers

    async def run(self, host: str, timeout: float) -> pycares.AddrInfoResult:
        """Raises AresError, ARES_ETIMEOUT after `timeout` seconds; and OSError without a descriptor left."""
        family = _family()
        self._channel = pycares.Channel(sock_state_cb=self._on_socket, servers=self._servers or None)
        try:
            self._channel.getaddrinfo(
                host, None, family=family, type=socket.SOCK_STREAM, callback=self._on_done
            )
            self._set_timer()
            async with asyncio.timeout(timeout):
                return await self._done
        except TimeoutError:
            raise pycares.AresError(pycares.errno.ARES_ETIMEOUT, "timeout") from None
        finally:
            if self._timer is not None:
                self._timer.cancel()
            self._channel.cancel()  # closes its sockets here and now; close() only frees it
            self._channel.close()
            del self._channel  # ends the circle of channel and callbacks

    def _on_done(self, result: pycares.AddrInfoResult, code: int | None) -> None:
        if self._done.done():
            return
        if code is not None:
            self._done.set_exception(pycares.AresError(code, pycares.errno.strerror(code)))
        else:
            self._done.set_result(result)

    def _on_socket(self, fd: int, readable: bool, writable: bool) -> None:
        process = self._channel.process_fd
        if readable:
            self._loop.add_reader(fd, process, fd, pycares.ARES_SOCKET_BAD)
        else:
            self._loop.remove_reader(fd)
        if writable:
            self._loop.add_writer(fd, process, pycares.ARES_SOCKET_BAD, fd)
        else:
            self._loop.remove_writer(fd)

    def _on_timer(self) -> None:
        self._channel.process_fd(pycares.ARES_SOCKET_BAD, pycares.ARES_SOCKET_BAD)
        self._set_timer()

    def _set_timer(self) -> None:
        """Let c-ares repeat a question that got no answer, when it wants to."""
        wait_s = self._channel.timeout(1.0)  # type: ignore[no-untyped-call]
        self._timer = self._loop.call_later(wait_s, self._on_timer)


def _family() -> socket.AddressFamily:
    """IPv4 alone where this host has no way to any IPv6 address, as getaddrinfo's AI_ADDRCONFIG.

    Raises OSError where no descriptor is left, which c-ares would not tell from a silent server.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM):
        pass
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            for address in ("2000::1", "fd00::1"):
                if probe.connect_ex((address, 53)) == 0:
                    return socket.AF_UNSPEC
    except OSError:
        pass
    return socket.AF_INET
