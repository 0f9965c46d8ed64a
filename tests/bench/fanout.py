"""Fan-out: deliveries per second where each waiting event goes to many endpoints, first to last arrival.

The floor posts the same bodies to as many URLs in a plain aiohttp loop.
"""

from tests.bench.report import Row, compared
from tests.bench.stage import Stage

ENDPOINTS = (100, 1_000)


async def fanout(stage: Stage, rounds: int, seconds: float) -> list[Row]:
    rows = []
    for endpoints in ENDPOINTS:
        await stage.clear()
        await stage.subscribe(endpoints, pattern="*")
        floors, rates = [], []
        for _ in range(rounds):
            floors.append((await stage.floor(seconds, endpoints=endpoints))["rate"])
            await stage.clear(endpoints=False)
            events = max(1, int(floors[-1] * seconds / endpoints))
            await stage.fill(events, types=1)
            rates.append(await stage.drain_rate(events * endpoints))
        rows.append(compared(f"fan-out, 1 event to {endpoints:,} endpoints", "≥ 0.9", floors, rates))
    return rows
