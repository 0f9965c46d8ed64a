"""Latency in ms from the return of a commit to the arrival at the receiver, at 200 events a second.

The floor is the sum of three medians, each measured alone in the same round on the daemon's core: a NOTIFY
that reaches another session, an UPDATE that claims a row, and a POST to the receiver on an open connection.
"""

import asyncio
import statistics
import time
from dataclasses import replace

from tests.bench.processes import DAEMON_CORE, output_of
from tests.bench.report import Row, compared, percentile, spread
from tests.bench.stage import Stage

EVENTS_PER_S = 200


async def latency(stage: Stage, rounds: int, seconds: float) -> list[Row]:
    await stage.clear()
    await stage.subscribe(1, concurrency=64)
    parts: dict[str, list[float]] = {"notify": [], "claim": [], "post": []}
    floors, p50s, p99s = [], [], []
    for _ in range(rounds):
        trips = await output_of(
            DAEMON_CORE, "-m", "tests.bench.roundtrips", stage.dsn, str(seconds / 3), timeout=seconds + 60
        )
        trips["post"] = (await stage.floor(seconds / 3, workers=1))["median_ms"]
        for name, part in trips.items():
            parts[name].append(part)
        floors.append(sum(trips.values()))
        spans = await _spans_ms(stage, seconds)
        p50s.append(percentile(spans, 50))
        p99s.append(percentile(spans, 99))
    medians = ", ".join(f"{name} {statistics.median(spans):.2f}" for name, spans in parts.items())
    median = compared("latency, median", "≤ 2", floors, p50s, "{:.2f} ms")
    return [
        replace(median, floor=f"{median.floor} ({medians} ms)"),
        Row("latency, p99", "≤ 10 ms", "", spread(p99s, "{:.1f}", " ms")),
    ]


async def _spans_ms(stage: Stage, seconds: float) -> list[float]:
    committed: dict[str, float] = {}
    with stage.daemon() as daemon:
        await stage.asleep(daemon)
        await stage.emit([0])  # opens the connections
        await stage.settled(daemon)
        stage.sink.reset(keep=True)
        started = time.monotonic()
        for number in range(int(seconds * EVENTS_PER_S)):
            await asyncio.sleep(started + number / EVENTS_PER_S - time.monotonic())
            committed |= {event: at for event, (_, at) in (await stage.emit([0])).items()}
        await daemon.until(lambda: stage.sink.received() >= len(committed), "all arrivals", 30)
    arrived = {event: at for (_, event), at in stage.sink.arrivals().items()}
    return [(arrived[event] - at) * 1000 for event, at in committed.items()]
