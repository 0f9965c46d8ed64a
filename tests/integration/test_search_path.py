"""A login that may create in `public` gets nobody with more rights to call what it makes there."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import execute
from tests.support.cli import Cli
from tests.support.daemon_process import (
    SECRET,
    DaemonProcess,
    add_endpoint,
    assert_settled,
    emit,
    query,
    write_config,
)
from tests.support.logins import login, user_of
from tests.support.receiver_process import ReceiverProcess

# (name, arguments, result, what the built-in one would return)
_FUNCTIONS = [
    ("unnest", f"{kind}[]", f"SETOF {kind}", "SELECT * FROM pg_catalog.unnest($1)")
    for kind in ("uuid", "bigint", "text", "smallint", "real", "timestamptz")
] + [
    ("format", "text, text", "text", "SELECT pg_catalog.format($1, $2)"),
    ("format", "text, text, text", "text", "SELECT pg_catalog.format($1, $2, $3)"),
    ("cardinality", "uuid[]", "integer", "SELECT pg_catalog.cardinality($1)"),
    ("to_regclass", "text", "regclass", "SELECT pg_catalog.to_regclass($1)"),
    ("lpad", "text, integer, text", "text", "SELECT pg_catalog.lpad($1, $2, $3)"),
    ("to_hex", "bigint", "text", "SELECT pg_catalog.to_hex($1)"),
    ("repeat", "text, integer", "text", "SELECT pg_catalog.repeat($1, $2)"),
    ("now", "", "timestamptz", "SELECT pg_catalog.now()"),
    ("clock_timestamp", "", "timestamptz", "SELECT pg_catalog.clock_timestamp()"),
    ("octet_length", "text", "integer", "SELECT pg_catalog.octet_length($1)"),
    ("pg_backend_pid", "", "integer", "SELECT pg_catalog.pg_backend_pid()"),
    ("current_setting", "text", "text", "SELECT pg_catalog.current_setting($1)"),
    ("pg_listening_channels", "", "SETOF text", "SELECT pg_catalog.pg_listening_channels()"),
    ("pg_advisory_lock", "integer, integer", "void", "SELECT pg_catalog.pg_advisory_lock($1, $2)"),
    ("pg_advisory_xact_lock", "integer, integer", "void", "SELECT pg_catalog.pg_advisory_xact_lock($1, $2)"),
    ("pg_try_advisory_lock", "integer, integer", "boolean", "SELECT pg_catalog.pg_try_advisory_lock($1, $2)"),
    ("int8pl", "bigint, integer", "bigint", "SELECT $1 OPERATOR(pg_catalog.+) $2"),
]


def traps() -> Iterator[str]:
    yield "CREATE TABLE public.caught (role name, function text)"
    yield "GRANT INSERT, SELECT ON public.caught TO PUBLIC"
    for name, arguments, result, statement in _FUNCTIONS:
        answer = "RETURN QUERY " + statement if result.startswith("SETOF") else ""
        if not answer:
            answer = f"RETURN ({statement})" if result != "void" else statement.replace("SELECT", "PERFORM")
        yield f"""
            CREATE FUNCTION public.{name}({arguments}) RETURNS {result} LANGUAGE plpgsql AS $$
            BEGIN
              INSERT INTO public.caught VALUES (current_user, '{name}({arguments})');
              {answer};
            END $$"""
    yield """
        CREATE FUNCTION public.gathered(uuid[], uuid) RETURNS uuid[] LANGUAGE plpgsql AS $$
        BEGIN
          INSERT INTO public.caught VALUES (current_user, 'array_agg');
          RETURN pg_catalog.array_append($1, $2);
        END $$"""
    yield "CREATE AGGREGATE public.array_agg(uuid) (SFUNC = public.gathered, STYPE = uuid[], INITCOND = '{}')"
    yield "CREATE OPERATOR public.+ (LEFTARG = bigint, RIGHTARG = integer, FUNCTION = public.int8pl)"


def caught(dsn: str) -> list[tuple[str, str]]:
    rows = query(dsn, "SELECT DISTINCT role, function FROM public.caught")
    return [(row["role"], row["function"]) for row in rows]


@pytest.fixture
def trapped_dsn(database_dsn: str) -> Iterator[str]:
    """A migrated database with a neighbour's functions in `public`."""
    with login(database_dsn, "GRANT CREATE ON SCHEMA public TO {login}") as neighbour:
        execute(neighbour, *traps())
        yield database_dsn


@pytest.mark.parametrize("path", [None, "public, pg_catalog"])
def test_daemon_and_commands_call_nothing_that_a_neighbour_made(
    trapped_dsn: str, tmp_path: Path, path: str | None
) -> None:
    with (
        login(trapped_dsn, member_of=["postrider_daemon"]) as daemon_dsn,
        ReceiverProcess(SECRET) as receiver,
    ):
        if path:
            execute(trapped_dsn, f"ALTER ROLE {user_of(daemon_dsn)} SET search_path = {path}")
        config = write_config(tmp_path, daemon_dsn)
        add_endpoint(trapped_dsn, receiver.url("/a"))
        with DaemonProcess(config) as daemon:
            daemon.wait_for_log("daemon.started")
            daemon.wait_for_log("partitions.created")
            emit(trapped_dsn, 20)
            receiver.wait_for(20)
            assert_settled(trapped_dsn)
            cli = Cli(config)
            cli("status")
            cli("check", "--no-endpoints")
            cli("event", "list")
            cli("delivery", "list")
            cli("endpoint", "list")
            cli("emit", "deal.updated", "--data", "{}")
            receiver.wait_for(21)
            assert daemon.terminate() == 0
        # What the superuser called were this test's own questions.
        assert [each for each in caught(trapped_dsn) if each[0] == user_of(daemon_dsn)] == []


def test_the_functions_of_the_schema_call_nothing_that_a_neighbour_made(trapped_dsn: str) -> None:
    execute(
        trapped_dsn,
        """SET search_path = public, pg_catalog;
           SELECT postrider.first_id_of('2026-01-02'), postrider.new_event_id(),
                  postrider.partition_days('outbox');
           UPDATE postrider.endpoint SET state = 'active'""",
    )
    assert not caught(trapped_dsn)


@pytest.mark.parametrize("path", [None, "public, pg_catalog"])
def test_a_superuser_who_migrates_calls_nothing_that_a_neighbour_made(
    empty_database_dsn: str, tmp_path: Path, path: str | None
) -> None:
    with login(empty_database_dsn, "GRANT CREATE ON SCHEMA public TO {login}") as neighbour:
        execute(neighbour, *traps())
        if path:
            name = empty_database_dsn.partition("?")[0].rpartition("/")[2]
            execute(empty_database_dsn, f"ALTER DATABASE {name} SET search_path = {path}")
        config = write_config(tmp_path, empty_database_dsn)
        for arguments in (["--to", "3"], []):
            done = subprocess.run(
                [sys.executable, "-m", "postrider", "migrate", *arguments, "--config", str(config)],
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
        assert not caught(empty_database_dsn)
