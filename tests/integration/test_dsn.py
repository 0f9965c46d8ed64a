"""Parameters of database.dsn, beside a real server: honoured, or refused with a sentence."""

import asyncio
import socket
import time
from pathlib import Path

import pytest

from postrider.store.database import Database, DatabaseError, DatabaseUnavailable
from tests.support.cli import Cli
from tests.support.daemon_process import write_config
from tests.support.stage import staged


def with_parameters(dsn: str, parameters: str) -> str:
    return f"{dsn}{'&' if '?' in dsn else '?'}{parameters}"


@pytest.mark.parametrize(
    "parameters",
    [
        "connect_timeout=5&channel_binding=prefer&keepalives=1&sslmode=prefer&application_name=crm",
        "target_session_attrs=read-write&pgbouncer=true&gssencmode=disable&client_encoding=utf8",
        "options=-c%20statement_timeout%3D5000",
    ],
)
def test_commands_work_with_them(database_dsn: str, tmp_path: Path, parameters: str) -> None:
    cli = Cli(write_config(tmp_path, with_parameters(database_dsn, parameters)))
    assert cli("emit", "a.b", "--data", "{}").startswith("evt_")


@pytest.mark.parametrize(
    ("parameters", "exit_code"),
    [
        ("channel_binding=require", 2),
        ("keepalives_idle=30", 2),
        ("sslmode=verify-full", 1),
        ("options=-c%20nonsense%3D1", 1),
        ("sslnegotiation=direct", 1),
        ("sslnegotiation=nonsense", 1),
    ],
)
def test_commands_end_with_a_sentence(
    database_dsn: str, tmp_path: Path, parameters: str, exit_code: int
) -> None:
    Cli(write_config(tmp_path, with_parameters(database_dsn, parameters)))("status", exit_code=exit_code)


async def test_sessions_have_the_name_that_was_given(database_dsn: str, tmp_path: Path) -> None:
    async with staged(with_parameters(database_dsn, "application_name=crm-hooks"), tmp_path) as stage:
        names = await stage.connection.fetch(
            """SELECT d.application_name, count(a.pid) AS sessions FROM postrider.daemon AS d
               JOIN pg_stat_activity AS a USING (application_name) GROUP BY 1"""
        )
        assert [row["application_name"].startswith("crm-hooks ") for row in names] == [True]


async def test_pgbouncer_means_polling(database_dsn: str) -> None:
    database = Database(with_parameters(database_dsn, "pgbouncer=true"), pool_size=2)
    await database.open()
    assert database.pooled
    await database.close()


async def test_connect_timeout_ends_the_wait_for_a_silent_server() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        dsn = f"postgresql://u@127.0.0.1:{silent.getsockname()[1]}/crm?connect_timeout=1"
        began = time.monotonic()
        with pytest.raises(DatabaseUnavailable):
            await Database(dsn, pool_size=2).open()
        assert time.monotonic() - began < 4


async def test_a_connection_that_can_not_be_is_said_to_be_the_dsn(database_dsn: str) -> None:
    database = Database(with_parameters(database_dsn, "options=-c%20nonsense%3D1"), pool_size=2)
    with pytest.raises(DatabaseError, match=r"database\.dsn can't be used: .*nonsense"):
        await asyncio.wait_for(database.open(), 10)
