"""How many requests may begin in a turn of the event loop."""

import asyncio

import pytest

from postrider.engine.loopturn import LoopTurn, LoopTurnTuning
from tests.support.clock import FakeClock

LONG_S, SHORT_S = 0.001, 0.0001
TUNING = LoopTurnTuning(turn_s=0.002, unproven_turn_s=0.0005, alone_after_s=0.5, first_limit=8.0)


class Turns:
    def __init__(self) -> None:
        self.clock = FakeClock()
        self.told: list[int] = []
        self.turn = LoopTurn(TUNING, self.clock, self._on_room)

    def _on_room(self, most: int) -> bool:
        self.told.append(most)
        return False

    async def take(self, seconds: float, *, proven: int = 0, unproven: int = 100) -> int:
        """A turn that takes so long, in which so many want to begin; return how many unproven ones may."""
        now = self.clock.monotonic()
        for _ in range(proven):
            assert self.turn.admits()
            self.turn.begin(now, unproven=False)
        begun = 0
        while begun < unproven and self.turn.admits() and self.turn.admits_unproven:
            self.turn.begin(now, unproven=True)
            begun += 1
        if begun < unproven:
            self.turn.refuse_unproven()
        self.clock.advance(seconds)
        await asyncio.sleep(0)
        return begun


@pytest.mark.parametrize("proven", [1, 0])
def test_requests_to_unproven_endpoints_keep_turns_short_while_there_are_others(proven: int) -> None:
    async def main() -> None:
        turns = Turns()
        for _ in range(20):
            if not proven:
                turns.clock.advance(TUNING.alone_after_s)
            last = await turns.take(LONG_S, proven=proven)
        assert last <= 2 if proven else last > 8

    asyncio.run(main())


def test_where_most_are_to_others_they_are_not_held_back() -> None:
    async def main() -> None:
        turns = Turns()
        for _ in range(20):
            last = await turns.take(LONG_S, proven=8, unproven=7)
        assert last == 7

    asyncio.run(main())


def test_one_begins_in_every_turn() -> None:
    async def main() -> None:
        turns = Turns()
        for _ in range(50):
            assert await turns.take(0.0019, proven=1) >= 1

    asyncio.run(main())


def test_more_of_them_begin_once_turns_are_short_again() -> None:
    async def main() -> None:
        turns = Turns()
        for _ in range(20):
            await turns.take(LONG_S, proven=1)
        for _ in range(10):
            last = await turns.take(SHORT_S, proven=1)
        assert last > 5

    asyncio.run(main())


def test_those_that_were_refused_are_told_of_the_next_turn() -> None:
    async def main() -> None:
        turns = Turns()
        for _ in range(20):
            await turns.take(LONG_S, proven=1)
        turns.told.clear()
        turns.turn.refuse_unproven()  # nothing begins in this turn
        await asyncio.sleep(0)
        assert turns.told and min(turns.told) >= 1

    asyncio.run(main())
