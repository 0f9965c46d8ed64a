"""What a delivery costs, with one endpoint for an event and with 100.

Row versions are inserts and updates in the tables of Postrider: the event's own, and the daemon's. Statements
are those that PostgreSQL logs while a daemon drains, start and stop included, in a run of its own. WAL bytes
are of the whole server. CPU µs are of the daemon and of all of PostgreSQL between the first tenth of the
deliveries and the last; the floor is the CPU of a plain aiohttp loop for a POST.
"""

import statistics
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.processes import Daemon
from tests.bench.report import Row, compared, spread
from tests.bench.stage import Stage

CASES = (1, 100)
"""Endpoints of each event."""

_COUNTS = r"""
SELECT regexp_replace(relname, '_(\d{8}|default)$', '') AS name, sum(n_tup_ins)::bigint AS inserts,
  sum(n_tup_upd)::bigint AS updates, sum(n_tup_del)::bigint AS deletes
FROM pg_stat_user_tables WHERE schemaname = 'postrider' GROUP BY 1
"""


@dataclass
class Rows:
    """Changes so far, by table."""

    versions: Counter[str]
    deletes: Counter[str]

    def __sub__(self, other: "Rows") -> "Rows":
        return Rows(self.versions - other.versions, self.deletes - other.deletes)


@dataclass
class Costs:
    """One figure per round."""

    floor_cpu: list[float] = field(default_factory=list)
    daemon_cpu: list[float] = field(default_factory=list)
    database_cpu: list[float] = field(default_factory=list)
    wal: list[float] = field(default_factory=list)
    event_rows: list[Rows] = field(default_factory=list)
    daemon_rows: list[Rows] = field(default_factory=list)
    deliveries: int = 0
    """Of each round: as many as the first floor run made."""


async def cost(stage: Stage, rounds: int, seconds: float) -> list[Row]:
    rows = []
    for endpoints in CASES:
        await stage.clear()
        await stage.subscribe(endpoints, pattern="*")
        costs = Costs()
        for _ in range(rounds):
            floor = await stage.floor(seconds, endpoints=endpoints)
            costs.floor_cpu.append(floor["cpu_us"])
            events = max(1, int(floor["rate"] * seconds / endpoints))
            costs.deliveries = costs.deliveries or events * endpoints
            await _drain(stage, endpoints, costs)
        statements = await _statements(stage, endpoints, costs.deliveries)
        rows += _table(f"1:{endpoints}", costs, statements)
    return rows


async def _drain(stage: Stage, endpoints: int, costs: Costs) -> None:
    await stage.clear(endpoints=False)
    empty = await _changes(stage)
    await stage.fill(costs.deliveries // endpoints, types=1)
    filled = await _changes(stage)
    wal_before = await _wal(stage)
    stage.sink.reset()
    with stage.daemon() as daemon:
        share = await _cpu_us(stage, daemon, costs.deliveries)
        costs.daemon_cpu.append(share[0])
        costs.database_cpu.append(share[1])
        await stage.settled(daemon)
        daemon.stop()
    costs.wal.append((await _wal(stage) - wal_before) / costs.deliveries)
    costs.event_rows.append(filled - empty)
    costs.daemon_rows.append(await _changes(stage) - filled)


async def _cpu_us(stage: Stage, daemon: Daemon, deliveries: int) -> tuple[float, float]:
    """CPU µs of the daemon and of PostgreSQL per delivery."""

    async def at(share: float) -> tuple[int, float, float]:
        wanted = int(share * deliveries)
        await daemon.until(lambda: stage.sink.received() >= wanted, f"{wanted} deliveries", 180)
        return stage.sink.received(), daemon.cpu_s(), stage.database_cpu_s()

    first, last = await at(0.1), await at(0.9)
    received, own_s, database_s = (after - before for before, after in zip(first, last, strict=True))
    return own_s / received * 1e6, database_s / received * 1e6


async def _statements(stage: Stage, endpoints: int, deliveries: int) -> float:
    """Statements of a daemon per delivery."""
    await stage.clear(endpoints=False)
    await stage.fill(deliveries // endpoints, types=1)
    stage.sink.reset()
    await stage.connection.execute("SET log_statement = 'none'")
    await stage.connection.execute("ALTER DATABASE postgres SET log_statement = 'all'")
    log: Path = stage.postgres_log()
    begins_at = log.stat().st_size
    try:
        with stage.daemon() as daemon:
            await daemon.until(lambda: stage.sink.received() >= deliveries, f"{deliveries} deliveries", 180)
            await stage.settled(daemon)
            daemon.stop()
    finally:
        await stage.connection.execute("ALTER DATABASE postgres RESET log_statement")
    with log.open("rb") as lines:
        lines.seek(begins_at)
        count = sum(b"LOG:  statement: " in line or b"LOG:  execute " in line for line in lines)
    return count / deliveries


async def _changes(stage: Stage) -> Rows:
    """Once the sessions that ended have reported theirs, at their end, and this one too."""
    await stage.connection.execute("SELECT pg_stat_force_next_flush()")
    await stage.alone()
    counts = await stage.connection.fetch(_COUNTS)
    return Rows(
        Counter({row["name"]: row["inserts"] + row["updates"] for row in counts}),
        Counter({row["name"]: row["deletes"] for row in counts}),
    )


async def _wal(stage: Stage) -> int:
    position: int = await stage.connection.fetchval("SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint")
    return position


def _table(name: str, costs: Costs, statements: float) -> list[Row]:
    def each(counts: Counter[str]) -> str:
        shares = {table: count / costs.deliveries for table, count in sorted(counts.items())}
        return ", ".join(f"{table} {share:.2f}" for table, share in shares.items() if share >= 0.005)

    event, daemon = costs.event_rows[-1], costs.daemon_rows[-1]
    versions = statistics.median(
        (own.versions.total() + drained.versions.total()) / costs.deliveries
        for own, drained in zip(costs.event_rows, costs.daemon_rows, strict=True)
    )
    parts = f"event: {each(event.versions)}; daemon: {each(daemon.versions)}; deleted: {each(daemon.deletes)}"
    target = "≤ 3" if name == "1:1" else ""
    return [
        Row(f"row versions per delivery, {name}", target, "", f"{versions:.2f} ({parts})"),
        Row(f"statements per delivery, {name}", "", "", f"{statements:.3f}"),
        Row(f"WAL per delivery, {name}", "", "", spread(costs.wal, "{:,.0f}", " B")),
        compared(f"daemon's CPU per delivery, {name}", "", costs.floor_cpu, costs.daemon_cpu, "{:.0f} µs"),
        Row(f"PostgreSQL's CPU per delivery, {name}", "", "", spread(costs.database_cpu, "{:.0f}", " µs")),
    ]
