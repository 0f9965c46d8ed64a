"""1, 2 and 4 daemons on one database and one core share a stream of events: CPU µs of PostgreSQL a delivery.

Every event has to arrive exactly once; the floor is what one daemon costs the database.
"""

from contextlib import ExitStack

from tests.bench.report import Row, compared
from tests.bench.stage import Stage

COUNTS = (1, 2, 4)
ENDPOINTS = 50
EVENTS_PER_S = 7_000
"""Events of a run, per second of a floor run."""


async def daemons(stage: Stage, rounds: int, seconds: float) -> list[Row]:
    costs: dict[int, list[float]] = {count: [] for count in COUNTS}
    duplicates = 0
    for _ in range(rounds):
        for count in COUNTS:
            cost, repeated = await _cost_us(stage, count, int(seconds * EVENTS_PER_S))
            costs[count].append(cost)
            duplicates += repeated
    rows = []
    for count in COUNTS[1:]:
        name = f"PostgreSQL's CPU per delivery, {count} daemons to 1"
        rows.append(compared(name, "< 1.2", costs[1], costs[count], "{:.0f} µs"))
    return [*rows, Row("duplicates, 1 to 4 daemons", "0", "", f"{duplicates}")]


async def _cost_us(stage: Stage, count: int, events: int) -> tuple[float, int]:
    """CPU µs of the database per delivery, and duplicates. The insert of the events does not count."""
    await stage.clear()
    await stage.subscribe(ENDPOINTS)
    with ExitStack() as running:
        started = [running.enter_context(stage.daemon()) for _ in range(count)]
        await stage.asleep(*started)
        stage.sink.reset(keep=True)
        await stage.insert(events, types=ENDPOINTS)
        before, received = stage.database_cpu_s(), stage.sink.received()
        for daemon in started:
            await daemon.until(lambda: stage.sink.received() >= events, f"{events} deliveries", 180)
            await stage.settled(daemon)
        cost = (stage.database_cpu_s() - before) / (events - received) * 1e6
    arrived = {event for _, event in stage.sink.arrivals()}
    assert len(arrived) == events, f"{events - len(arrived)} events did not arrive"
    return cost, stage.sink.stats()["duplicates"]
