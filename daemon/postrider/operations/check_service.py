"""What `postrider check` finds of the service: database, clock, schema, rights, partitions, LISTEN, daemons
and captures."""

import asyncio
from collections.abc import AsyncIterator

from postrider.domain.errors import PostriderError
from postrider.domain.status import NO_DAEMON
from postrider.edges.clock import Clock
from postrider.edges.config import Config
from postrider.edges.resources import sql_dir
from postrider.operations.finding import Finding
from postrider.operations.problems import running_problems
from postrider.store import captures, daemons, partitions, server, situation
from postrider.store.database import Connection, Database, DatabaseUnavailable
from postrider.store.migrations import check_schema, read_schema
from postrider.store.session import Session

OLDEST_POSTGRES = 140_000
SKEW_WARN_S, SKEW_FAIL_S = 1.0, 60.0
"""Receivers refuse a timestamp that is five minutes off."""
CHECKED_CHANNEL = "postrider_check"
NOTIFY_S = 2.0


async def service_findings(config: Config, database: Database, clock: Clock) -> AsyncIterator[Finding]:
    """One check after the other; without a schema that fits the others are left out. Raises PostriderError
    where the database does not answer."""
    async with database.connection() as connection:
        yield await _version_finding(connection, config.database.safe_dsn)
        yield await _clock_finding(connection, clock)
        schema = await _schema_finding(connection)
        yield schema
        if schema.level == "fail":
            return
        yield await _rights_finding(connection)
    async for finding in _partition_findings(database, clock):
        yield finding
    yield await _listen_finding(database, clock)
    async for finding in _daemon_findings(database, clock):
        yield finding
    async for finding in _capture_findings(config, database):
        yield finding


async def _version_finding(connection: Connection, dsn: str) -> Finding:
    number, name = await server.version(connection)
    if number < OLDEST_POSTGRES:
        return Finding("fail", "database", f"{name} is too old", "Postrider needs PostgreSQL 14 or later.")
    return Finding("ok", "database", f"{name} is reachable at {dsn}")


async def _clock_finding(connection: Connection, clock: Clock) -> Finding:
    before = clock.now()
    theirs = await server.clock(connection)
    ours = before + (clock.now() - before) / 2
    skew = abs((theirs - ours).total_seconds())
    return Finding(
        "fail" if skew > SKEW_FAIL_S else "warn" if skew > SKEW_WARN_S else "ok",
        "clock",
        f"{skew:.3f} s from the database's",
        "Let both hosts follow a time server; receivers check it.",
    )


async def _schema_finding(connection: Connection) -> Finding:
    try:
        schema = await check_schema(connection, read_schema(sql_dir()))
    except PostriderError as error:
        return Finding("fail", "schema", error.message, error.hint)
    return Finding("ok", "schema", f"version {schema}")


async def _rights_finding(connection: Connection) -> Finding:
    missing = await server.missing_rights(connection)
    if missing:
        hint = "GRANT postrider_daemon TO the user of database.dsn."
        return Finding("fail", "rights", f"missing on {missing}", hint)
    return Finding("ok", "rights", "may do all that the daemon does")


async def _partition_findings(database: Database, clock: Clock) -> AsyncIterator[Finding]:
    """Whether there are some for the days to come; and what a daemon that died while it made partitions left
    behind."""
    async with database.connection() as connection:
        days = await partitions.days(connection)
        guarded = await partitions.guarded(connection)
    if not days["outbox"].ahead:
        yield Finding("warn", "partitions", "there is none for tomorrow", "A running daemon makes them.")
    else:
        yield Finding("ok", "partitions", "made ahead")
    for parent, first in guarded.items():
        yield Finding(
            "fail" if first <= clock.now().date() else "warn",
            "partitions",
            f"the default partition of {parent} takes no events from {first} on, while partitions are made",
            "A daemon lifts that when it has made them, or within the hour after its start: start one.",
        )


async def _listen_finding(database: Database, clock: Clock) -> Finding:
    """Listen for real: a notification from one connection has to arrive on another."""
    hint = "Point database.dsn at PostgreSQL itself, not at the pooler."
    if database.pooled:
        return Finding(
            "warn", "LISTEN", "a pooler such as PgBouncer stands between; the daemon will poll", hint
        )
    arrived = asyncio.Event()
    session = await Session.begin(database, on_ended=lambda: None)
    try:
        await session.listen([CHECKED_CHANNEL], lambda _: arrived.set())
        async with database.connection() as connection:
            await server.notify(connection, CHECKED_CHANNEL)
        if await clock.wait(arrived, NOTIFY_S):
            return Finding("ok", "LISTEN", "notifications arrive")
    finally:
        await session.close()
    return Finding("warn", "LISTEN", "a notification did not arrive; the daemon will poll", hint)


async def _daemon_findings(database: Database, clock: Clock) -> AsyncIterator[Finding]:
    async with database.connection() as connection:
        rows = await daemons.list_all(connection)
    alive = [row for row in rows if row.alive]
    async with database.transaction() as connection:
        here = await situation.read(connection, (), {row.id for row in alive})
    problems = list(running_problems(here, rows, clock.now()))
    for problem in problems:
        yield Finding("fail", "service", problem, "`postrider status` tells more.")
    if not alive:
        yield Finding("warn", "daemon", NO_DAEMON, "Start it: systemctl start postrider")
        return
    who = ", ".join(f"pid {row.pid} on {row.hostname}" for row in alive)
    known = read_schema(sql_dir()).number
    older = [row for row in alive if row.schema is None or row.schema < known]
    if older:
        programs = ", ".join(
            f"pid {row.pid} on {row.hostname} (Postrider {row.version}, "
            + (f"schema {row.schema})" if row.schema is not None else "of an earlier release)")
            for row in older
        )
        hint = "They go on beside this schema, and not beside any later one: upgrade them."
        yield Finding("warn", "daemon", f"{who}; older than this program: {programs}", hint)
    elif not problems:
        yield Finding("ok", "daemon", who)


async def _capture_findings(config: Config, database: Database) -> AsyncIterator[Finding]:
    """Whether the captured tables still are what the triggers were made for."""
    hint = "`postrider capture plan` shows it, `postrider capture apply` mends it."
    try:
        async with database.transaction() as connection:
            steps = await captures.plan(connection, config.capture)
    except DatabaseUnavailable:
        raise
    except PostriderError as error:
        yield Finding("fail", "capture", error.message, error.hint)
        return
    for step in steps:
        what = f"capture {step.name} ({step.table})"
        if step.action == "keep":
            yield Finding("ok", what, "its triggers are as the configuration says")
        elif step.action == "change":
            yield Finding("fail", what, "; ".join(step.diff), hint)
        else:
            problem = "is not applied" if step.action == "create" else "is applied, but not configured"
            yield Finding("warn", what, problem, hint)
