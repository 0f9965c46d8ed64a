"""Seconds from the start of a process to its first arrival. A daemon finds 10,000 endpoints and a million
events waiting, and is killed and started again each round; the floor is a plain aiohttp loop that starts."""

import time

from tests.bench.report import Row, compared
from tests.bench.stage import Stage

ENDPOINTS, EVENTS = 10_000, 1_000_000


async def restart(stage: Stage, rounds: int, _seconds: float) -> list[Row]:
    endpoints, events = int(ENDPOINTS * stage.scale), int(EVENTS * stage.scale)
    await stage.clear()
    await stage.subscribe(endpoints)
    await stage.fill(events, types=endpoints)
    floors, spans = [], []
    for _ in range(rounds):
        stage.sink.reset()
        started_at = time.time()
        await stage.floor(0.1)
        floors.append(stage.sink.group()[1] - started_at)
        stage.sink.reset()
        with stage.daemon() as daemon:
            await daemon.until(lambda: stage.sink.received() > 0, "the first arrival", 60)
            spans.append(stage.sink.group()[1] - daemon.started_at)
    name = f"start to first arrival, {endpoints:,} endpoints, {events:,} events waiting"
    return [compared(name, "≤ 2 s", floors, spans, "{:.2f} s")]
