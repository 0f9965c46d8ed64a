"""How many requests may begin in one turn of the event loop.

Whatever becomes possible meanwhile waits for the turn to end, such as the delivery of an endpoint that would
answer at once; and where the core is the limit, more requests at a time make nothing faster. So there are as
many as keep a turn short, which for new connections is a few, for open ones many.

Requests to endpoints that are slow, or never answered, give way to the others: while there are a few to those
that answer, as many begin as keep a turn four times shorter. Where most are to those that answer, as when all
of a backlog is sent, turns are long anyway.
"""

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass

from postrider.edges.clock import Clock


@dataclass(frozen=True, slots=True)
class LoopTurnTuning:
    turn_s: float = 0.002
    """A turn that takes longer has too many."""
    first_limit: float = 16.0
    unproven_turn_s: float = 0.0005
    """The same for requests to unproven endpoints, while there are others."""
    alone_after_s: float = 0.5
    """Without a request to a proven endpoint there are none."""


class LoopTurn:
    def __init__(self, tuning: LoopTurnTuning, clock: Clock, on_room: Callable[[int], bool]) -> None:
        """`on_room` is called at the end of a turn, after some were refused, with how many more of them may
        begin in the next; it returns whether others still want to."""
        self._clock = clock
        self._on_room = on_room
        self._tuning = tuning
        self._limit = self._unproven_limit = tuning.first_limit
        self._begun = self._unproven_begun = 0
        self._proven_at = 0.0
        """When a request to a proven endpoint began last."""
        self._unproven_refused = False
        self._since = 0.0
        self.refusing = False
        """Some wait for a later turn; `on_room` wakes them."""
        self._under_way = False

    def __repr__(self) -> str:
        return (
            f"<LoopTurn {self._begun}/{self._limit:.0f} "
            f"unproven={self._unproven_begun}/{self._unproven_limit:.0f}>"
        )

    def admits(self) -> bool:
        """Whether one more request may begin in this turn."""
        if self._begun < self._limit:
            return True
        self.refusing = True
        return False

    @property
    def admits_unproven(self) -> bool:
        """Whether it may be one to an unproven endpoint."""
        return self._unproven_begun < self._unproven_limit

    def refuse_unproven(self) -> None:
        """Some to unproven endpoints wait for the next turn, in which workers are woken for them."""
        self._unproven_refused = True
        if not self._under_way:
            self._start(self._clock.monotonic())

    def begin(self, now: float, *, unproven: bool) -> None:
        """A request begins."""
        self._begun += 1
        if unproven:
            self._unproven_begun += 1
        else:
            self._proven_at = now
        if not self._under_way:
            self._start(now)

    def _start(self, now: float) -> None:
        self._under_way = True
        self._since = now
        asyncio.get_running_loop().call_soon(self._end)

    def _end(self) -> None:
        now, tuning = self._clock.monotonic(), self._tuning
        begun, self._begun = self._begun, 0
        unproven, self._unproven_begun = self._unproven_begun, 0
        took = now - self._since
        self._limit = _next_limit(self._limit, begun, took, tuning.turn_s)
        if unproven:
            alone = now - self._proven_at > tuning.alone_after_s
            few_others = 2 * unproven > begun and not alone
            most_s = tuning.unproven_turn_s if few_others else math.inf
            self._unproven_limit = _next_limit(self._unproven_limit, unproven, took, most_s)
        self._under_way = False
        if self.refusing:
            # As many as began may come back with the next turn, and go on at once: that costs less than to
            # wake others in their place.
            self.refusing = self._on_room(int(self._limit) - begun)
            self._unproven_refused = False
        elif self._unproven_refused:
            self._unproven_refused = self._on_room(max(1, int(self._unproven_limit) - unproven))
        if self.refusing or self._unproven_refused:
            self._start(now)


def _next_limit(limit: float, begun: int, took_s: float, most_s: float) -> float:
    if took_s > most_s:
        return max(1.0, limit * 0.75)
    return limit + 1.0 if begun >= limit else limit
