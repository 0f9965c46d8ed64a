"""postrider check: tests the live system, and says what is wrong and how to mend it."""

import asyncio
import os
import shlex
import ssl
import stat
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import click

from postrider.cli.check_promises import overruled_findings, sending_findings
from postrider.cli.common import config_option, json_option, print_json, printable, run_async
from postrider.cli.condition import EXIT_CODES, Scope, exit_code, running_problems
from postrider.cli.finding import Finding
from postrider.domain.dialects import Dialect
from postrider.domain.errors import PostriderError
from postrider.domain.model import Endpoint, EndpointState, endpoint_public_id
from postrider.domain.status import NO_DAEMON
from postrider.edges.config import Config, config_source, holds_password, load_config
from postrider.edges.dialect_files import default_dialect, load_dialects
from postrider.edges.dialing import tls_context
from postrider.edges.probe import Probe, probe
from postrider.edges.resources import sql_dir
from postrider.edges.settings import network_options, read_sealer
from postrider.edges.sources import SourceAddresses
from postrider.store import daemons, partitions
from postrider.store.captures import Captures
from postrider.store.database import Connection, Database, DatabaseUnavailable
from postrider.store.endpoints import Endpoints
from postrider.store.migrations import check_schema, read_migrations
from postrider.store.status import Status

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
  ('daemon', 'INSERT'), ('idempotency', 'DELETE'), ('last_delivery', 'INSERT')
) AS needed(name, need) WHERE NOT has_table_privilege('postrider.' || name, need)
"""

# One that a person paused is in order.
_NOTHING_SENT = {
    EndpointState.DISABLED: ("disabled", "resume"),
    EndpointState.UNVERIFIED: ("not verified", "verify"),
}
"""And the command that mends it."""


@click.command(
    help=f"""Check configuration, database, clock, schema, rights, partitions, LISTEN, captures, endpoints,
    and whether what their dialects promise is what happens.

    What fails is a matter of the service, or of one endpoint: the exit code and `scope` in --json tell them
    apart. Warnings don't fail. {EXIT_CODES}

    Example: postrider check --config /etc/postrider/postrider.toml
    """
)
@click.option("--no-endpoints", is_flag=True, help="Leave out state, name, address and TLS of the endpoints.")
@config_option
@json_option
@run_async
async def check(no_endpoints: bool, config_path: Path | None, as_json: bool) -> None:
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
    failed = Counter(finding.scope for finding in findings if finding.level == "fail")
    if not as_json:
        _print_verdict(failed[Scope.SERVICE], failed[Scope.ENDPOINT])
    raise click.exceptions.Exit(exit_code(failed))


def _print_verdict(sick: int, down: int) -> None:
    endpoints = f"; {down:,} {'endpoint is' if down == 1 else 'endpoints are'} not" if down else ""
    if sick:
        click.secho(f"The service is not in order, {sick} failed{endpoints}", fg="red")
    else:
        click.secho(f"The service is in order{endpoints}", fg="yellow" if down else "green")


async def _findings(config_path: Path | None, *, with_endpoints: bool) -> AsyncIterator[Finding]:
    """One check after the other; those that need what failed are left out."""
    try:
        config = load_config(config_path, os.environ)
        dialects = load_dialects(config.dialect.paths, config.dialect.values)
        spoken = default_dialect(dialects, config.dialect.default)
        sealer = read_sealer(config)
        tls = tls_context(config.network.ca_file)
        leave_from = SourceAddresses(network_options(config).source_addresses)
    except PostriderError as error:
        yield Finding("fail", "configuration", error.message, error.hint)
        return
    yield Finding("ok", "configuration", "valid")
    for finding in _permission_findings(config_path, config):
        yield finding
    database = Database(config.database.dsn, pool_size=2, keyed=False)
    try:
        try:
            await database.open()
            fits = True
            async with database.connection() as connection:
                async for finding in _database_findings(connection, config.database.safe_dsn):
                    yield finding
                    fits = fits and (finding.what, finding.level) != ("schema", "fail")
            if not fits:
                return
            async for finding in _guard_findings(database):
                yield finding
            yield await _listen_finding(database)
            async for finding in _daemon_findings(database):
                yield finding
            async for finding in _capture_findings(config, database):
                yield finding
            endpoints = await Endpoints(database, sealer).list_endpoints()
        except PostriderError as error:
            yield Finding("fail", "database", error.message, error.hint)
            return
        in_use = {spoken.name, *(row.endpoint.dialect for row in endpoints)} & dialects.keys()
        used = [dialects[name] for name in sorted(in_use)]
        for finding in overruled_findings(used, config):
            yield finding
        sources: dict[str, set[str]] = defaultdict(set)
        prober = _Prober(config, dialects, tls, leave_from, sources)
        probed = [row.endpoint for row in endpoints if with_endpoints]
        async for finding in _endpoint_findings(probed, prober):
            yield finding
        for finding in sending_findings(used, sources, config):
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
    async with database.connection() as connection:
        guarded = await partitions.guarded(connection)
    for parent, first in guarded.items():
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


async def _daemon_findings(database: Database) -> AsyncIterator[Finding]:
    async with database.connection() as connection:
        rows = await daemons.list_all(connection)
    alive = [row for row in rows if row.alive]
    situation = await Status(database).read((), {row.id for row in alive})
    problems = list(running_problems(situation, rows, datetime.now(UTC)))
    for problem in problems:
        yield Finding("fail", "service", problem, "`postrider status` tells more.")
    if not alive:
        yield Finding("warn", "daemon", NO_DAEMON, "Start it: systemctl start postrider")
        return
    who = ", ".join(f"pid {row.pid} on {row.hostname}" for row in alive)
    known = len(read_migrations(sql_dir()))
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
    captures = Captures(database)
    hint = "`postrider capture plan` shows it, `postrider capture apply` mends it."
    try:
        steps = await captures.plan(config.capture)
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


async def _endpoint_findings(endpoints: Sequence[Endpoint], prober: "_Prober") -> AsyncIterator[Finding]:
    unusable = [each for each in endpoints if each.unusable is not None]
    for endpoint in unusable[:MAX_ENDPOINTS]:
        hint = "Its deliveries wait. Restore the key file, or delete the endpoint and add it anew."
        yield Finding("fail", _named(endpoint), str(endpoint.unusable), hint)
    given_up = [each for each in endpoints if each.state in _NOTHING_SENT and each.unusable is None]
    for endpoint in given_up[:MAX_ENDPOINTS]:
        state, command = _NOTHING_SENT[endpoint.state]
        hint = f"Once it works: postrider endpoint {command} {endpoint_public_id(endpoint.id)}"
        yield Finding("fail", _named(endpoint), f"it is {state}, and gets nothing", hint, Scope.ENDPOINT)
    active = [each for each in endpoints if each.state is EndpointState.ACTIVE and each.unusable is None]
    probed = active[:MAX_ENDPOINTS]
    results = await asyncio.gather(*map(prober.probe, probed))
    for endpoint, result in zip(probed, results, strict=True):
        yield _judged(endpoint, result)
    for count, what in (
        (len(unusable), "are unusable"),
        (len(given_up), "are disabled or unverified"),
        (len(active), "are active, and were not all probed"),
    ):
        if count > MAX_ENDPOINTS:
            yield Finding("warn", "endpoints", f"{count} {what}; only the first {MAX_ENDPOINTS} are shown")


def _judged(endpoint: Endpoint, result: Probe) -> Finding:
    """A connection is not all that it takes."""
    if endpoint.failing_since is None or result.level == "fail":
        return Finding(result.level, _named(endpoint), result.message, scope=Scope.ENDPOINT)
    message = f"{result.message}; but every attempt has failed since {printable(endpoint.failing_since)}"
    hint = f"`postrider delivery list --endpoint {endpoint_public_id(endpoint.id)}` shows why."
    return Finding("fail", _named(endpoint), message, hint, Scope.ENDPOINT)


def _named(endpoint: Endpoint) -> str:
    return f"endpoint {endpoint_public_id(endpoint.id)} ({urlsplit(endpoint.url).hostname})"


class _Prober:
    """Looks at endpoints as their deliveries would, and gathers by dialect where these leave from."""

    def __init__(
        self,
        config: Config,
        dialects: Mapping[str, Dialect],
        tls: ssl.SSLContext,
        leave_from: SourceAddresses,
        sources: Mapping[str, set[str]],
    ) -> None:
        self._config = config
        self._dialects = dialects
        self._tls = tls
        self._leave_from = leave_from
        self._sources = sources
        self._policy = network_options(config).policy
        self._gate = asyncio.Semaphore(PROBES_AT_A_TIME)

    async def probe(self, endpoint: Endpoint) -> Probe:
        dialect = self._dialects.get(endpoint.dialect)
        promised = dialect.connect_timeout if dialect is not None else None
        async with self._gate:
            result = await probe(
                endpoint.url,
                self._policy,
                https_only=self._config.network.https_only,
                tls=self._tls,
                sources=self._leave_from,
                timeout=promised or self._config.delivery.connect_timeout,
            )
        if result.source is not None:
            self._sources[endpoint.dialect].add(result.source)
        return result
