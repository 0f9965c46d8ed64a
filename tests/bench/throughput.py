"""Throughput: deliveries per second of one daemon that finds events waiting, first to last arrival.

Signing, recording, address guard and logging are on. The floor posts the same bodies in a plain aiohttp loop.
"""

from tests.bench.report import Row, compared
from tests.bench.stage import Stage

CASES = [(endpoints, data_bytes) for data_bytes in (300, 4_000, 20_000) for endpoints in (1, 50)]
"""(endpoints, bytes of text in an event's data)"""


async def throughput(stage: Stage, rounds: int, seconds: float) -> list[Row]:
    rows = []
    for endpoints, data_bytes in CASES:
        await stage.clear()
        await stage.subscribe(endpoints, concurrency=64 if endpoints == 1 else None)
        floors, rates = [], []
        for _ in range(rounds):
            floors.append((await stage.floor(seconds, endpoints=endpoints, data_bytes=data_bytes))["rate"])
            await stage.clear(endpoints=False)
            events = int(floors[-1] * seconds)
            await stage.fill(events, types=endpoints, data_bytes=data_bytes)
            rates.append(await stage.drain_rate(events))
        name = f"throughput, {data_bytes:,} B, {endpoints} endpoint{'s' * (endpoints > 1)}"
        rows.append(compared(name, "≥ 0.9", floors, rates))
    return rows
