"""How many requests may begin in one turn of the event loop.

Whatever becomes possible meanwhile waits for the turn to end, such as the delivery of an endpoint that would
answer at once; and where the core is the limit, more requests at a time make nothing faster. So there are as
many as keep a turn short, which for new connections is a few, for open ones many.
"""

import asyncio
from collections.abc import Callable

from postrider.edges.clock import Clock

TURN_S = 0.001
"""A turn that takes longer has too many."""
FIRST_LIMIT = 16.0


class LoopTurn:
    def __init__(self, clock: Clock, on_room: Callable[[int], None]) -> None:
        """`on_room` is called after a turn that was full, with how many requests may begin in the next."""
        self._clock = clock
        self._on_room = on_room
        self._limit = FIRST_LIMIT
        self._begun = 0
        self._since = 0.0

    def __repr__(self) -> str:
        return f"<LoopTurn {self._begun}/{self._limit:.0f}>"

    @property
    def full(self) -> bool:
        return self._begun >= self._limit

    def begin(self, now: float) -> None:
        """A request begins."""
        if not self._begun:
            self._since = now
            asyncio.get_running_loop().call_soon(self._end)
        self._begun += 1

    def _end(self) -> None:
        full = self.full
        if self._clock.monotonic() - self._since > TURN_S:
            self._limit = max(1.0, self._limit * 0.75)
        elif full:
            self._limit += 1.0
        self._begun = 0
        if full:
            self._on_room(int(self._limit))
