"""Commits per second of a CRM with 1, 8 and 32 connections, each transaction one statement.

`emit` while a daemon delivers, to `emit` without any daemon; that in turn to a plain INSERT of the same
columns; and an UPDATE of one row with a capture trigger to one without. Writers and PostgreSQL share a core;
the daemon and its receiver have the other.
"""

import statistics
from dataclasses import replace

from tests.bench import processes
from tests.bench.capture import captured_crm
from tests.bench.processes import DAEMON_CORE, OTHER_CORE, Sink
from tests.bench.report import Row, compared
from tests.bench.stage import Stage

WRITERS = (1, 8, 32)
_PLAIN_TABLE = """
DROP TABLE IF EXISTS bench_plain;
CREATE TABLE bench_plain (id uuid NOT NULL DEFAULT gen_random_uuid(), workspace_id text, type text, data json,
  occurred_at timestamptz DEFAULT now(), PRIMARY KEY (id, workspace_id));
"""
_PLAIN = """
INSERT INTO bench_plain (workspace_id, type, data)
VALUES ('default', 'e0.updated', json_build_object('n', $1::int))
"""
_EMIT = "SELECT postrider.emit('e0.updated', json_build_object('n', $1::int))"
_UPDATE = "UPDATE crm.deals SET price = price + 1, updated_at = now() WHERE id = $1"


async def writers(stage: Stage, rounds: int, seconds: float) -> list[Row]:
    rows = []
    with processes.sink(DAEMON_CORE) as sink:
        await stage.connection.execute(_PLAIN_TABLE)
        await stage.clear()
        await stage.subscribe(1, concurrency=64, sink=sink)
        for count in WRITERS:
            rows += await _emitting(stage, sink, count, rounds, seconds)
    async with captured_crm(stage) as captured:
        for count in WRITERS:
            plain, triggered = [], []
            for _ in range(rounds):
                await captured(None)
                plain.append(await _commits(stage, count, seconds, _UPDATE))
                await captured("six columns")
                triggered.append(await _commits(stage, count, seconds, _UPDATE))
            name = f"commits of an UPDATE with a capture trigger, to one without; {_name(count)}"
            rows.append(compared(name, "", plain, triggered))
    return rows


async def _emitting(stage: Stage, sink: Sink, count: int, rounds: int, seconds: float) -> list[Row]:
    plain, alone, delivered, deliveries = [], [], [], []
    for _ in range(rounds):
        await stage.clear(endpoints=False)
        plain.append(await _commits(stage, count, seconds, _PLAIN))
        alone.append(await _commits(stage, count, seconds, _EMIT))
        await stage.clear(endpoints=False)
        with stage.daemon() as daemon:
            await stage.asleep(daemon)
            sink.reset()
            delivered.append(await _commits(stage, count, seconds, _EMIT))
            daemon.lives()
            deliveries.append(sink.received() / seconds)
    beside = compared(
        f"commits of emit beside a daemon, to emit alone; {_name(count)}", "≥ 0.9", alone, delivered
    )
    meanwhile = f"{beside.postrider}, and {statistics.median(deliveries):,.0f} deliveries/s"
    return [
        replace(beside, postrider=meanwhile),
        compared(f"commits of emit alone, to a plain INSERT; {_name(count)}", "", plain, alone),
    ]


async def _commits(stage: Stage, count: int, seconds: float, statement: str) -> float:
    arguments = (stage.dsn, str(count), str(seconds), statement)
    commits: float = await processes.output_of(OTHER_CORE, "-m", "tests.bench.writer", *arguments)
    return commits


def _name(count: int) -> str:
    return f"{count} writer{'s' * (count > 1)}"
