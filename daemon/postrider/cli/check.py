"""postrider check: tests the live system, and says what is wrong and how to mend it."""

import asyncio
import os
import re
import shlex
import ssl
import stat
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import click

from postrider.app import network_options, read_sealer
from postrider.cli.common import config_option, json_option, print_json, run_async
from postrider.domain.errors import PostriderError
from postrider.domain.model import Endpoint, EndpointState, endpoint_public_id
from postrider.edges.config import Config, config_source, holds_password, load_config
from postrider.edges.dialect_files import default_dialect, load_dialects
from postrider.edges.dialing import tls_context
from postrider.edges.probe import Probe, probe
from postrider.edges.resources import sql_dir
from postrider.store.captures import Captures
from postrider.store.daemons import Daemons
from postrider.store.database import Connection, Database, DatabaseUnavailable
from postrider.store.endpoints import Endpoints
from postrider.store.migrations import check_schema, read_migrations
from postrider.store.partitions import Partitions

OLDEST_POSTGRES = 140_000
MAX_ENDPOINTS = 200
PROBES_AT_A_TIME = 16
SKEW_WARN_S, SKEW_FAIL_S = 1.0, 60.0
"""Receivers refuse a timestamp that is five minutes off."""

_RIGHTS = """
SELECT string_agg(name || ' (' || need || ')', ', ') FROM (VALUES
  ('outbox', 'SELECT'), ('outbox', 'INSERT'), ('pending', 'INSERT'), ('pending', 'DELETE'),
  ('claim', 'INSERT'), ('claim', 'DELETE'),
  ('delivery', 'INSERT'), ('delivery', 'UPDATE'), ('attempt', 'INSERT'), ('endpoint', 'UPDATE'),
  ('daemon', 'INSERT'), ('idempotency', 'DELETE')
) AS needed(name, need) WHERE NOT has_table_privilege('postrider.' || name, need)
"""


@dataclass(frozen=True, slots=True)
class Finding:
    level: str
    """ok, warn or fail."""
    what: str
    message: str
    hint: str = ""


@click.command()
@click.option("--no-endpoints", is_flag=True, help="Leave out name, address and TLS of the endpoints.")
@config_option
@json_option
@run_async
async def check(no_endpoints: bool, config_path: Path | None, as_json: bool) -> None:
    """Check configuration, database, clock, schema, rights, partitions, LISTEN, captures and endpoints.

    Exit code 1 if anything fails; warnings don't fail.

    Example: postrider check --config /etc/postrider/postrider.toml
    """
    findings = []
    async for finding in _findings(config_path, with_endpoints=not no_endpoints):
        findings.append(finding)
        if not as_json:
            color = {"ok": "green", "warn": "yellow", "fail": "red"}[finding.level]
            click.echo(f"{click.style(f'{finding.level:<4}', fg=color)}  {finding.what}: {finding.message}")
            if finding.hint and finding.level != "ok":
                click.echo(f"      {finding.hint}")
    if as_json:
        print_json([asdict(finding) for finding in findings])
    if any(finding.level == "fail" for finding in findings):
        raise click.exceptions.Exit(1)


async def _findings(config_path: Path | None, *, with_endpoints: bool) -> AsyncIterator[Finding]:
    """One check after the other; those that need what failed are left out."""
    try:
        config = load_config(config_path, os.environ)
        spoken = default_dialect(
            load_dialects(config.dialect.paths, config.dialect.values), config.dialect.default
        )
        sealer = read_sealer(config)
        tls = tls_context(network_options(config).ca_file)
    except PostriderError as error:
        yield Finding("fail", "configuration", error.message, error.hint)
        return
    yield Finding("ok", "configuration", "valid")
    for finding in _permission_findings(config_path, config):
        yield finding
    if spoken.sending_addresses:
        promised = ", ".join(spoken.sending_addresses)
        yield Finding(
            "ok", f"dialect {spoken.name}", f"requests have to leave from {promised}, as it promises"
        )
    database = Database(config.database.dsn, pool_size=2, keyed=False)
    try:
        try:
            await database.open()
            async with database.connection() as connection:
                async for finding in _database_findings(connection, config.database.safe_dsn):
                    yield finding
            async for finding in _guard_findings(database):
                yield finding
            yield await _listen_finding(database)
            yield await _daemon_finding(database)
            async for finding in _capture_findings(config, database):
                yield finding
            endpoints = await Endpoints(database, sealer).list_endpoints()
        except PostriderError as error:
            yield Finding("fail", "database", error.message, error.hint)
            return
        if with_endpoints:
            async for finding in _endpoint_findings([row.endpoint for row in endpoints], config, tls):
                yield finding
    finally:
        await database.close()


def _permission_findings(config_path: Path | None, config: Config) -> Iterator[Finding]:
    """Whether other users can read what is secret, or change what the daemon obeys."""
    source = config_source(config_path, os.environ)
    if source.exists():
        yield _permission_finding("configuration file", source, secret=holds_password(source))
    if config.secrets.key_file is not None:
        yield _permission_finding("key file", Path(config.secrets.key_file), secret=True)


def _permission_finding(what: str, path: Path, *, secret: bool) -> Finding:
    mode = path.stat().st_mode
    hint = f"chmod {'g-w,o=' if secret else 'go-w'} {shlex.quote(str(path))}"
    if mode & stat.S_IWOTH:
        return Finding("fail", what, f"every user can change {path}", hint)
    if secret and mode & stat.S_IROTH:
        return Finding("warn", what, f"{path} holds a secret, and every user can read it", hint)
    if mode & stat.S_IWGRP:
        return Finding("warn", what, f"the group of {path} can change it", hint)
    return Finding("ok", what, "its permissions are narrow enough")


async def _database_findings(connection: Connection, dsn: str) -> AsyncIterator[Finding]:
    version = connection.get_server_version()
    number = int(await connection.fetchval("SHOW server_version_num"))
    name = f"PostgreSQL {version.major}.{version.micro}"
    if number < OLDEST_POSTGRES:
        yield Finding("fail", "database", f"{name} is too old", "Postrider needs PostgreSQL 14 or later.")
    else:
        yield Finding("ok", "database", f"{name} is reachable at {dsn}")
    before = datetime.now(UTC)
    theirs: datetime = await connection.fetchval("SELECT clock_timestamp()")
    ours = before + (datetime.now(UTC) - before) / 2
    skew = abs((theirs - ours).total_seconds())
    level = "fail" if skew > SKEW_FAIL_S else "warn" if skew > SKEW_WARN_S else "ok"
    yield Finding(
        level,
        "clock",
        f"{skew:.3f} s from the database's",
        "Let both hosts follow a time server; receivers check it.",
    )
    try:
        schema = await check_schema(connection, read_migrations(sql_dir()))
    except PostriderError as error:
        yield Finding("fail", "schema", error.message, error.hint)
        return
    yield Finding("ok", "schema", f"version {schema}")
    missing = await connection.fetchval(_RIGHTS)
    if missing:
        hint = "GRANT postrider_daemon TO the user of database.dsn."
        yield Finding("fail", "rights", f"missing on {missing}", hint)
    else:
        yield Finding("ok", "rights", "may do all that the daemon does")
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).strftime("%Y%m%d")
    if await connection.fetchval("SELECT to_regclass('postrider.outbox_' || $1)", tomorrow) is None:
        yield Finding("warn", "partitions", "there is none for tomorrow", "A running daemon makes them.")
    else:
        yield Finding("ok", "partitions", "made ahead")


async def _guard_findings(database: Database) -> AsyncIterator[Finding]:
    """What a daemon that died while it made partitions left behind."""
    for parent, first in (await Partitions(database).guarded()).items():
        level = "fail" if first <= datetime.now(UTC).date() else "warn"
        yield Finding(
            level,
            "partitions",
            f"the default partition of {parent} takes no events from {first} on, while partitions are made",
            "A daemon lifts that when it has made them, or within the hour after its start: start one.",
        )


async def _listen_finding(database: Database) -> Finding:
    """Listen for real: a notification from one connection has to arrive on another."""
    hint = "Point database.dsn at PostgreSQL itself, not at the pooler."
    if database.pooled:
        return Finding(
            "warn", "LISTEN", "a pooler such as PgBouncer stands between; the daemon will poll", hint
        )
    arrived = asyncio.Event()
    listening = await database.dedicated()
    try:
        await listening.add_listener("postrider_check", lambda *_: arrived.set())
        async with database.connection() as connection:
            await connection.execute("NOTIFY postrider_check")
        async with asyncio.timeout(2):
            await arrived.wait()
    except TimeoutError:
        return Finding("warn", "LISTEN", "a notification did not arrive; the daemon will poll", hint)
    finally:
        await listening.close(timeout=2)
    return Finding("ok", "LISTEN", "notifications arrive")


async def _daemon_finding(database: Database) -> Finding:
    alive = [row for row in await Daemons(database).list_daemons() if row.alive]
    if not alive:
        return Finding("warn", "daemon", "none is running", "Start it: systemctl start postrider")
    return Finding("ok", "daemon", ", ".join(f"pid {row.pid} on {row.hostname}" for row in alive))


async def _capture_findings(config: Config, database: Database) -> AsyncIterator[Finding]:
    """Whether the captured tables still are what the triggers were made for."""
    captures = Captures(database)
    hint = "`postrider capture plan` shows it, `postrider capture apply` mends it."
    try:
        steps = await captures.plan(config.capture)
    except DatabaseUnavailable:
        raise
    except PostriderError as error:
        yield Finding("fail", "capture", error.message, await _schema_hint(error, database) or error.hint)
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
    rejected = await captures.list_rejections(1)
    if rejected:
        yield Finding(
            "warn",
            "capture",
            f"rows were set aside, the last at {rejected[0].at:%Y-%m-%d %H:%M} UTC: {rejected[0].reason}",
            "`postrider capture rejected` lists them.",
        )


async def _schema_hint(error: PostriderError, database: Database) -> str | None:
    """What to grant where a schema is closed to the daemon's login, so that it can't look at the tables."""
    closed = re.search(r"permission denied for schema (.+)", error.message)
    if closed is None:
        return None
    async with database.connection() as connection:
        grant: str = await connection.fetchval(
            "SELECT format('GRANT USAGE ON SCHEMA %I TO %I;', $1::text, current_user)", closed[1]
        )
    return f"Let the owner of the schema run: {grant}"


async def _endpoint_findings(
    endpoints: Sequence[Endpoint], config: Config, tls: ssl.SSLContext
) -> AsyncIterator[Finding]:
    unusable = [each for each in endpoints if each.unusable is not None]
    for endpoint in unusable[:MAX_ENDPOINTS]:
        hint = "Its deliveries wait. Restore the key file, or delete the endpoint and add it anew."
        yield Finding("fail", _named(endpoint), str(endpoint.unusable), hint)
    active = [each for each in endpoints if each.state is EndpointState.ACTIVE and each.unusable is None]
    gate = asyncio.Semaphore(PROBES_AT_A_TIME)
    probed = active[:MAX_ENDPOINTS]
    results = await asyncio.gather(*(_probe(each.url, config, tls, gate) for each in probed))
    for endpoint, result in zip(probed, results, strict=True):
        yield Finding(result.level, _named(endpoint), result.message)
    for count, what in (
        (len(unusable), "are unusable"),
        (len(active), "are active, and were not all probed"),
    ):
        if count > MAX_ENDPOINTS:
            yield Finding("warn", "endpoints", f"{count} {what}; only the first {MAX_ENDPOINTS} are shown")


def _named(endpoint: Endpoint) -> str:
    return f"endpoint {endpoint_public_id(endpoint.id)} ({urlsplit(endpoint.url).hostname})"


async def _probe(url: str, config: Config, tls: ssl.SSLContext, gate: asyncio.Semaphore) -> Probe:
    async with gate:
        return await probe(
            url,
            network_options(config).policy,
            https_only=config.network.https_only,
            tls=tls,
            timeout=config.delivery.connect_timeout,
        )
