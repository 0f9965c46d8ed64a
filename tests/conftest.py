"""A PostgreSQL server for the whole run, and a fresh migrated database for each test that asks for one.

The server is the embedded one, or the one that POSTRIDER_TEST_DSN names (a superuser's DSN).
"""

import asyncio
import inspect
import itertools
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
import structlog

from postrider.edges.embedded import EmbeddedPostgres
from postrider.edges.resources import sql_dir
from postrider.store.migrations import read_schema
from tests.support.leaks import nothing_left, wait_for_no_sessions, watch_event_loops
from tests.support.migrating import migrate

_numbers = itertools.count()
watch_event_loops()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that is a coroutine function on an event loop of its own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True


def pytest_xdist_auto_num_workers() -> int:
    """Two test files at a time, each with a server of its own; roles are of a whole server."""
    return 0 if os.environ.get("POSTRIDER_TEST_DSN") else 2


@pytest.fixture(autouse=True)
def leaves_nothing() -> Iterator[None]:
    """A test that leaves a task, a socket or a process behind fails."""
    with nothing_left():
        yield


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    """Logging is of the process: put back what was configured before."""
    structlog_before = structlog.get_config()
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    structlog.configure(**structlog_before)
    root.handlers = handlers
    root.setLevel(level)


@pytest.fixture(scope="session")
def server_dsn() -> Iterator[str]:
    """DSN of a superuser's database on the test server."""
    outside = os.environ.get("POSTRIDER_TEST_DSN")
    if outside:
        yield outside
        return
    # As root the server runs as another user, who has to reach its directory.
    directory = Path(tempfile.mkdtemp(prefix="postrider-test-"))
    directory.chmod(0o755)
    try:
        with EmbeddedPostgres(directory) as server:
            # It is thrown away, so nothing has to reach the disk; making and dropping each test's database
            # would wait for that. What a crash of PostgreSQL does is tested on an `own_server`.
            execute(server.dsn, "ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()")
            yield server.dsn
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def on_database(dsn: str, name: str) -> str:
    """The DSN with another database name."""
    return urlunsplit(urlsplit(dsn)._replace(path=f"/{name}"))


def execute(dsn: str, *statements: str) -> None:
    async def run() -> None:
        connection = await asyncpg.connect(dsn)
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

    asyncio.run(run())


def drop_unused(dsn: str, name: str) -> None:
    """Drop a test's database; fail where the test left sessions in it."""

    async def run() -> list[str]:
        connection = await asyncpg.connect(dsn)
        try:
            left = await wait_for_no_sessions(connection, name)
            await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
            return left
        finally:
            await connection.close()

    assert not (left := asyncio.run(run())), f"sessions that never ended: {left}"


@pytest.fixture(scope="session")
def template_database(server_dsn: str) -> Iterator[str]:
    """A migrated database that tests copy."""
    name = f"postrider_template_{os.getpid()}"
    execute(server_dsn, f"CREATE DATABASE {name}")

    async def build() -> None:
        connection = await asyncpg.connect(on_database(server_dsn, name))
        try:
            await migrate(connection, read_schema(sql_dir()))
        finally:
            await connection.close()

    asyncio.run(build())
    yield name
    execute(server_dsn, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def empty_database_dsn(server_dsn: str) -> Iterator[str]:
    """A database without anything in it."""
    name = f"postrider_test_{os.getpid()}_{next(_numbers)}"
    execute(server_dsn, f"CREATE DATABASE {name}")
    yield on_database(server_dsn, name)
    drop_unused(server_dsn, name)


@pytest.fixture
def database_dsn(server_dsn: str, template_database: str) -> Iterator[str]:
    """A migrated database of the test's own."""
    name = f"postrider_test_{os.getpid()}_{next(_numbers)}"
    execute(server_dsn, f"CREATE DATABASE {name} TEMPLATE {template_database}")
    yield on_database(server_dsn, name)
    drop_unused(server_dsn, name)


@pytest.fixture
def config_file(database_dsn: str, tmp_path: Path) -> Path:
    """A configuration for the test's database that permits receivers on loopback."""
    path = tmp_path / "postrider.toml"
    path.write_text(
        f"""
[database]
dsn = "{database_dsn}"

[network]
https_only = false
allow = ["127.0.0.0/8", "::1/128"]

[admin]
listen = ""

[log]
format = "json"
"""
    )
    return path
