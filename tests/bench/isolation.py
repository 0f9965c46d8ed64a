"""What sick endpoints cost healthy ones. 35 of 50 endpoints are watched; of the other 15, five accept and
never answer, five answer after 5 s and five reset the connection. The floor is the same with all 50 healthy.

p99 in ms from the return of a commit to the arrival, at 1,000 events a second; and deliveries per second of a
daemon that finds events waiting. The daemon's limits are its defaults, 15 s for an attempt among them.
"""

import asyncio
import time

from tests.bench.report import Row, compared, percentile
from tests.bench.stage import Stage

ENDPOINTS = 50
EVENTS_PER_COMMIT, COMMITS_PER_S = 10, 100
SECONDS_FACTOR = 7
"""A run is so much longer than a floor run that by default it outlasts the 15 s of an attempt."""
DRAINED_PER_S = 10_000
"""Events that wait for a drain, per second of a floor run."""
_SICK = ("never", "slow", "reset")


def _groups(others: tuple[str, ...]) -> list[str]:
    """The groups of the endpoints: three of ten are others, spread evenly."""
    return [{2: others[0], 5: others[1], 8: others[2]}.get(number % 10, "ok") for number in range(ENDPOINTS)]


WELL, SICK = _groups(("other", "other", "other")), _groups(_SICK)


async def isolation(stage: Stage, rounds: int, seconds: float) -> list[Row]:
    p99s: dict[bool, list[float]] = {False: [], True: []}
    rates: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(rounds):
        for sick in (False, True):
            groups = SICK if sick else WELL
            p99s[sick].append(await _p99_ms(stage, groups, seconds * SECONDS_FACTOR))
        for sick in (False, True):
            groups = SICK if sick else WELL
            rates[sick].append(await _drain_rate(stage, groups, int(seconds * DRAINED_PER_S)))
    beside = "35 healthy endpoints beside 15 sick ones"
    return [
        compared(f"latency of {beside}, p99", "≤ 1.2", p99s[False], p99s[True], "{:.1f} ms"),
        compared(f"drain of {beside}", "≥ 0.9", rates[False], rates[True]),
    ]


async def _p99_ms(stage: Stage, groups: list[str], seconds: float) -> float:
    await stage.clear()
    await stage.subscribe(ENDPOINTS, groups=groups)
    committed: dict[str, float] = {}
    with stage.daemon() as daemon:
        await stage.asleep(daemon)
        stage.sink.reset(keep=True)
        started = time.monotonic()
        for commit in range(int(seconds * COMMITS_PER_S)):
            await asyncio.sleep(started + commit / COMMITS_PER_S - time.monotonic())
            first = commit * EVENTS_PER_COMMIT
            emitted = await stage.emit([n % ENDPOINTS for n in range(first, first + EVENTS_PER_COMMIT)])
            committed |= {event: at for event, (number, at) in emitted.items() if groups[number] == "ok"}
        await daemon.until(lambda: stage.sink.received() >= len(committed), "the healthy endpoints", 60)
    arrived = {event: at for (path, event), at in stage.sink.arrivals().items() if path.startswith("/ok/")}
    return percentile([(arrived[event] - at) * 1000 for event, at in committed.items()], 99)


async def _drain_rate(stage: Stage, groups: list[str], events: int) -> float:
    await stage.clear()
    await stage.subscribe(ENDPOINTS, groups=groups)
    events -= events % ENDPOINTS
    await stage.fill(events, types=ENDPOINTS)
    return await stage.drain_rate(events * groups.count("ok") // ENDPOINTS)
