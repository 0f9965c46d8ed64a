"""Kept-alive connections between two requests. Each belongs to one endpoint: whatever comes on it can reach
no other's delivery.
"""

import resource
from collections import OrderedDict
from typing import TypeAlias

from postrider.edges.http1 import HttpConnection

_MAX_IDLE = 2048
"""With TLS a connection holds tens of kB, so the descriptors are not the only bound."""
_MAX_RESERVE = 256

Owner: TypeAlias = tuple[int, str]
"""An endpoint, and the origin that its connections lead to."""


def connection_budget() -> int:
    """How many connections the process may have open, leaving descriptors for all else: the database,
    name lookups, the admin server, files."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return _MAX_IDLE * 1024
    return soft - min(_MAX_RESERVE, soft // 2)


class IdleConnections:
    """The one used last is taken first; the one unused for longest is closed first, whosever it is."""

    def __init__(self) -> None:
        self._of: dict[Owner, list[HttpConnection]] = {}
        self._oldest_first: OrderedDict[HttpConnection, Owner] = OrderedDict()

    def __len__(self) -> int:
        return len(self._oldest_first)

    def take(self, owner: Owner) -> HttpConnection | None:
        while (connections := self._of.get(owner)) is not None:
            connection = connections[-1]
            self._remove(connection)
            if not connection.closed:
                return connection
        return None

    def put(self, owner: Owner, connection: HttpConnection, now: float) -> None:
        """`now` is in seconds, on the clock of `close_older_than`."""
        connection.idle_since = now
        self._of.setdefault(owner, []).append(connection)
        self._oldest_first[connection] = owner

    def shrink_to(self, count: int) -> None:
        """Close the oldest until at most so many are left, and at most what memory is meant for."""
        while len(self._oldest_first) > min(max(count, 0), _MAX_IDLE):
            self._close_oldest()

    def close_older_than(self, instant: float) -> None:
        while self._oldest_first and next(iter(self._oldest_first)).idle_since < instant:
            self._close_oldest()

    def _close_oldest(self) -> None:
        oldest = next(iter(self._oldest_first))
        self._remove(oldest)
        oldest.abort()

    def _remove(self, connection: HttpConnection) -> None:
        owner = self._oldest_first.pop(connection)
        connections = self._of[owner]
        if len(connections) == 1:
            del self._of[owner]
        else:
            connections.remove(connection)
