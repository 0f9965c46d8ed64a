"""How many requests may begin in one turn of the event loop.

Whatever becomes possible meanwhile waits for the turn to end, such as the delivery of an endpoint that would
answer at once; and where the core is the limit, more requests at a time make nothing faster. So there are as
many as keep a turn short, which for new connections is a few, for open ones many.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from postrider.edges.clock import Clock


@dataclass(frozen=True, slots=True)
class LoopTurnTuning:
    turn_s: float = 0.002
    """A turn that takes longer has too many."""
    first_limit: float = 16.0


class LoopTurn:
    def __init__(self, tuning: LoopTurnTuning, clock: Clock, on_room: Callable[[int], bool]) -> None:
        """`on_room` is called at the end of a turn, after some were refused, with how many more of them may
        begin in the next; it returns whether others still want to."""
        self._clock = clock
        self._on_room = on_room
        self._turn_s = tuning.turn_s
        self._limit = tuning.first_limit
        self._begun = 0
        self._since = 0.0
        self.refusing = False
        """Some wait for a later turn; `on_room` wakes them."""
        self._under_way = False

    def __repr__(self) -> str:
        return f"<LoopTurn {self._begun}/{self._limit:.0f}>"

    def admits(self) -> bool:
        """Whether one more request may begin in this turn."""
        if self._begun < self._limit:
            return True
        self.refusing = True
        return False

    def begin(self, now: float) -> None:
        """A request begins."""
        self._begun += 1
        if not self._under_way:
            self._start(now)

    def _start(self, now: float) -> None:
        self._under_way = True
        self._since = now
        asyncio.get_running_loop().call_soon(self._end)

    def _end(self) -> None:
        now = self._clock.monotonic()
        begun, self._begun = self._begun, 0
        if now - self._since > self._turn_s:
            self._limit = max(1.0, self._limit * 0.75)
        elif begun >= self._limit:
            self._limit += 1.0
        self._under_way = False
        if self.refusing:
            # As many as began may come back with the next turn, and go on at once: that costs less than to
            # wake others in their place.
            self.refusing = self._on_room(int(self._limit) - begun)
            if self.refusing:
                self._start(now)
