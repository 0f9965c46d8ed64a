"""A long queue: deliveries per second with 50 thousand and with 2 million events waiting, and beside a
session that holds a snapshot from before the drain, so that nothing dead can be removed. Peak memory in MB.

Rates are of a window of the given seconds, after 2,000 deliveries; with the snapshot, after 200,000.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

from tests.bench.processes import Daemon
from tests.bench.report import Row, compared, spread
from tests.bench.stage import Stage

SMALL, LARGE = 50_000, 2_000_000
"""Events waiting."""
WARM_UP, UNDER_SNAPSHOT = 2_000, 200_000
"""Deliveries before the window."""
ENDPOINTS = 50


async def backlog(stage: Stage, rounds: int, seconds: float) -> list[Row]:
    small, large, held, peaks = [], [], [], []
    for _ in range(rounds):
        await _fill(stage, SMALL)
        with stage.daemon() as daemon:
            small.append(await _window_rate(stage, daemon, WARM_UP, seconds))
        await _fill(stage, LARGE)
        with stage.daemon() as daemon:
            large.append(await _window_rate(stage, daemon, WARM_UP, seconds))
            peaks.append(daemon.peak_rss_mb())
        async with _old_snapshot(stage):
            with stage.daemon() as daemon:
                held.append(await _window_rate(stage, daemon, UNDER_SNAPSHOT, seconds))
                peaks.append(daemon.peak_rss_mb())
    waiting = f"{LARGE * stage.scale:,.0f} events waiting"
    return [
        compared(f"drain, {waiting}, to {SMALL * stage.scale:,.0f}", "≥ 0.9", small, large),
        compared(f"drain, {waiting}, beside an old snapshot", "≥ 0.8", small, held),
        Row(f"peak memory, {waiting}", "< 200 MB", "", spread(peaks, "{:.0f}", " MB")),
    ]


async def _fill(stage: Stage, events: int) -> None:
    await stage.clear()
    await stage.subscribe(ENDPOINTS)
    await stage.fill(int(events * stage.scale), types=ENDPOINTS)


async def _window_rate(stage: Stage, daemon: Daemon, warm_up: int, seconds: float) -> float:
    """Deliveries per second from the one numbered `warm_up` to the last of the window, or of all."""
    begins_after = max(1, int(warm_up * stage.scale))
    stage.sink.reset()
    await daemon.until(lambda: stage.sink.received() >= begins_after, f"{begins_after} deliveries", 300)
    first, _, first_at = stage.sink.group()
    await asyncio.sleep(seconds)
    daemon.lives()
    last, _, last_at = stage.sink.group()
    return (last - first) / (last_at - first_at)


@asynccontextmanager
async def _old_snapshot(stage: Stage) -> AsyncIterator[None]:
    session = await asyncpg.connect(stage.dsn)
    try:
        await session.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM postrider.pending LIMIT 1")
        yield
    finally:
        session.terminate()
