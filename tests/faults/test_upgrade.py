"""Programs of two releases beside one schema: the older one goes on, or is told to be upgraded and ends."""

import io
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from postrider.edges.resources import sql_dir
from postrider.store.migrations import read_schema
from tests.conftest import execute
from tests.support.cli import Cli
from tests.support.daemon_process import (
    ROOT,
    SECRET,
    DaemonProcess,
    Writers,
    add_endpoint,
    assert_settled,
    emit,
    query,
    write_config,
)
from tests.support.functions import functions_of
from tests.support.receiver_process import ReceiverProcess

PREVIOUS_RELEASE = "4bc66530e713176b3ecf6a141015b671d8445922"
KNOWN = read_schema(sql_dir()).number


@pytest.fixture
def previous(tmp_path: Path) -> Path:
    """The sources of the release before this one."""
    archive = subprocess.run(
        ["git", "archive", PREVIOUS_RELEASE, "daemon", "config", "sql"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if archive.returncode != 0:
        pytest.skip("the previous release is taken from git, and here is no checkout with its history")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(tmp_path / "previous", filter="data")
    return tmp_path / "previous"


def with_sql(directory: Path, *, last: int = KNOWN, more: str | None = None) -> tuple[str, ...]:
    """A program that knows the migrations up to `last`, and one `more`."""
    directory.mkdir()
    for path in sorted(sql_dir().glob("[0-9]*.sql"))[:last]:
        shutil.copy(path, directory)
    shutil.copytree(sql_dir() / "functions", directory / "functions")
    if more is not None:
        (directory / f"{last + 1:04}_more.sql").write_text(more)
    return ("tests.support.other_sql", str(directory))


def writing(dsn: str) -> Writers:
    return Writers(dsn, writers=4, each=100_000, pause_s=0.01)


def all_arrived(dsn: str, receiver: ReceiverProcess, writers: Writers) -> None:
    ids = writers.stop()
    receiver.wait_for(len(ids), key="distinct", timeout=60)
    assert set(receiver.ids("/a")) == set(ids)
    assert receiver.stats()["duplicates"] == 0
    assert_settled(dsn)


def test_the_previous_release_delivers_on_while_the_schema_and_then_the_daemon_is_upgraded(
    empty_database_dsn: str, tmp_path: Path, previous: Path
) -> None:
    dsn, config = empty_database_dsn, write_config(tmp_path, empty_database_dsn)
    old = ("env", f"PYTHONPATH={previous / 'daemon'}")
    Cli(config, within=old)("migrate")
    with ReceiverProcess(SECRET) as receiver:
        Cli(config, within=old)("endpoint", "add", "--url", receiver.url("/a"), "--events", "*",
                                "--secret-file", str(secret_file(tmp_path)))  # fmt: skip
        with DaemonProcess(config, within=old) as older:
            older.wait_for_log("daemon.started")
            writers = writing(dsn)
            receiver.wait_for(100)
            done = subprocess.run(Cli(config).command("migrate"), capture_output=True, text=True, check=True)
            assert "applied" in done.stdout
            assert "can't be started again before it is upgraded" in done.stderr
            before = receiver.stats()["accepted"]
            receiver.wait_for(before + 100)  # by the older program, beside the newer schema
            with DaemonProcess(config) as newer:
                newer.wait_for_log("daemon.started")
                receiver.wait_for(before + 200)
                assert older.terminate() == 0
                all_arrived(dsn, receiver, writers)
                assert not newer.logged("service.failed")
        assert not older.logged("service.failed")


def test_a_program_that_lacks_the_last_migration_starts_and_delivers(
    database_dsn: str, tmp_path: Path
) -> None:
    config = write_config(tmp_path, database_dsn)
    older = with_sql(tmp_path / "sql", last=KNOWN - 1)
    with ReceiverProcess(SECRET) as receiver:
        add_endpoint(database_dsn, receiver.url("/a"))
        with DaemonProcess(config, program=older) as one, DaemonProcess(config) as two:
            one.wait_for_log("daemon.started")
            two.wait_for_log("daemon.started")
            writers = writing(database_dsn)
            receiver.wait_for(500)
            all_arrived(database_dsn, receiver, writers)
            assert not one.logged("service.failed")
            rows = query(database_dsn, "SELECT schema FROM postrider.daemon ORDER BY schema")
            assert [row["schema"] for row in rows] == [KNOWN - 1, KNOWN]
            assert f"schema {KNOWN - 1}" in Cli(config)("check", "--no-endpoints")
        assert Cli(config, program=older)("status")


BREAKING = f"-- breaks: {KNOWN}\nALTER TABLE postrider.claim RENAME COLUMN recorded TO counted;\n"


def test_migrate_names_the_daemons_that_it_would_break_and_they_end_with_what_to_do(
    database_dsn: str, tmp_path: Path
) -> None:
    config = write_config(tmp_path, database_dsn)
    newer = Cli(config, program=with_sql(tmp_path / "sql", more=BREAKING))
    with ReceiverProcess(SECRET) as receiver:
        add_endpoint(database_dsn, receiver.url("/a"))
        with DaemonProcess(config) as daemon:
            daemon.wait_for_log("daemon.started")
            said = newer("migrate", exit_code=2)
            assert f"pid {daemon.process.pid}" in said
            assert f"would stop working with {KNOWN + 1:04}_more" in said
            assert "--yes" in said
            emit(database_dsn, 10)
            receiver.wait_for(10)
            assert "applied" in newer("migrate", "--yes")
            emit(database_dsn)
            assert daemon.process.wait(30) == 2
            assert "Upgrade" in daemon.wait_for_log("daemon.outdated")["hint"]
            assert "Traceback" not in daemon.log_path.read_text()
        with DaemonProcess(config) as again:
            assert again.process.wait(30) == 2
            text = again.log_path.read_text()
            assert f"knows schema {KNOWN}" in text
            assert "Upgrade Postrider on this host" in text
            assert "postrider migrate" not in text
        assert "too old" in Cli(config)("endpoint", "list", exit_code=2)


def test_a_daemon_that_notices_nothing_by_itself_looks_at_the_schema(
    database_dsn: str, tmp_path: Path
) -> None:
    """What breaks it need not be an error: a column may have another meaning."""
    config = write_config(tmp_path, database_dsn)
    with DaemonProcess(config) as daemon:
        daemon.wait_for_log("daemon.started")
        execute(
            database_dsn,
            f"""INSERT INTO postrider.migration (number, name, checksum, breaks)
                VALUES ({KNOWN + 2}, 'meaning', '', {KNOWN})""",
        )
        assert daemon.process.wait(30) == 2


def test_a_daemon_of_a_release_that_told_nothing_is_known_by_its_start(
    empty_database_dsn: str, tmp_path: Path
) -> None:
    """Such as one of schema 5, whose events migration 7 hides from it."""
    config = write_config(tmp_path, empty_database_dsn)
    Cli(config)("migrate", "--to", "5")
    execute(
        empty_database_dsn,
        """INSERT INTO postrider.daemon (hostname, pid, version, started_at, heartbeat_at, pooled)
           VALUES ('old', 1, '0.0.5', clock_timestamp(), clock_timestamp() + interval '1 min', true)""",
    )
    Cli(config)("migrate", "--to", "6")
    said = Cli(config)("migrate", exit_code=2)
    assert "pid 1 on old, Postrider 0.0.5, schema 5) would stop working with 0007" in said
    assert query(empty_database_dsn, "SELECT max(number) FROM postrider.migration")[0][0] == 6
    Cli(config)("migrate", "--yes")


def test_functions_of_an_upgraded_database_are_those_of_a_new_one(
    empty_database_dsn: str, database_dsn: str, tmp_path: Path, previous: Path
) -> None:
    config = write_config(tmp_path, empty_database_dsn)
    Cli(config, within=("env", f"PYTHONPATH={previous / 'daemon'}"))("migrate")
    released = len(list((previous / "sql").glob("[0-9]*.sql")))
    for number in range(released + 1, KNOWN):
        Cli(config)("migrate", "--to", str(number))
    Cli(config)("migrate")
    assert functions_of(empty_database_dsn) == functions_of(database_dsn)


def test_a_function_that_differs_from_the_previous_release_comes_with_a_migration(previous: Path) -> None:
    """Its number tells which of two programs has the newer text."""
    before = read_schema(previous / "sql")
    assert before.functions == read_schema(sql_dir()).functions or before.number < KNOWN


def test_no_migration_breaks_the_previous_release() -> None:
    released = 12
    for migration in read_schema(sql_dir()).migrations[released:]:
        assert migration.breaks is None or migration.breaks < released, migration.name


def secret_file(directory: Path) -> Path:
    path = directory / "secret"
    path.write_text(SECRET)
    return path


def units() -> Sequence[Path]:
    return sorted((ROOT / "systemd").glob("*.service"))


@pytest.mark.parametrize("unit", units(), ids=lambda path: path.name)
def test_systemd_does_not_start_again_what_has_to_be_upgraded(unit: Path) -> None:
    assert "RestartPreventExitStatus=2" in unit.read_text().splitlines()
