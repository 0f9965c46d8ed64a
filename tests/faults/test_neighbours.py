"""One endpoint, workspace or payload beside a healthy one, which must not notice it; and memory."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from postrider.domain.model import EndpointState
from tests.conftest import execute, on_database
from tests.support.cli import Cli
from tests.support.daemon_process import (
    SECRET,
    DaemonProcess,
    add_endpoint,
    assert_settled,
    emit,
    query,
    wait_until,
    write_config,
)
from tests.support.receiver_process import ReceiverProcess

MB = 1_000_000
MEMORY_BOUND_MB = 250


def add_endpoints(dsn: str, urls: list[str], workspace_id: str = "many") -> None:
    """Many endpoints at once, with the secret of all tests."""
    first = add_endpoint(dsn, urls[0], workspace_id=workspace_id)
    query(
        dsn,
        """WITH copied AS (
             INSERT INTO postrider.endpoint
               (id, workspace_id, url, patterns, dialect, created_at, updated_at)
             SELECT n, e.workspace_id, u.url, e.patterns, e.dialect, now(), now()
             FROM postrider.endpoint AS e, unnest($2::text[]) WITH ORDINALITY AS u (url, n) WHERE e.id = $1
             RETURNING id, workspace_id)
           INSERT INTO postrider.endpoint_secret (endpoint_id, workspace_id, created_at, sealed)
           SELECT copied.id, copied.workspace_id, now(), s.sealed
           FROM copied, postrider.endpoint_secret AS s WHERE s.endpoint_id = $1""",
        first,
        urls[1:],
    )


def emit_large(dsn: str, events: int, size: int, workspace_id: str = "many", column: str = "data") -> None:
    value = "json_build_object('x', repeat('y', $2))"
    data = value if column == "data" else f"'{{}}', {column} => {value}"
    query(
        dsn,
        f"""SELECT postrider.emit('deal.updated', {data}, workspace_id => $3)
            FROM generate_series(1, $1)""",
        events,
        size,
        workspace_id,
    )


def peak_memory_mb(daemon: DaemonProcess) -> float:
    status = Path(f"/proc/{daemon.process.pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / MB


@contextmanager
def locked(dsn: str, table: str) -> Iterator[None]:
    with psycopg.connect(dsn) as connection:
        connection.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
        yield


def test_a_full_lane_that_moves_slowly_keeps_nobody_waiting(database_dsn: str, tmp_path: Path) -> None:
    config = write_config(tmp_path, database_dsn)
    with ReceiverProcess(SECRET) as receiver:
        receiver.set_mode("slow:0.04", "/slow")
        add_endpoint(database_dsn, receiver.url("/slow"), "deal.*", concurrency=1)
        add_endpoint(database_dsn, receiver.url("/healthy"), "contact.*")
        query(
            database_dsn,
            """SELECT postrider.emit(type, '{}')
               FROM generate_series(1, 600), unnest(ARRAY['deal.updated', 'contact.created']) AS type""",
        )
        with DaemonProcess(config):
            receiver.wait_for(600, path="/healthy", timeout=60)
            # The slow one takes 24 s for as many.
            assert receiver.stats("/slow")["received"] < 300


def test_a_large_fan_out_keeps_no_other_workspace_waiting(database_dsn: str, tmp_path: Path) -> None:
    endpoints = 3_000
    config = write_config(tmp_path, database_dsn)
    with ReceiverProcess(SECRET) as receiver:
        add_endpoints(database_dsn, [receiver.url(f"/many/{n}") for n in range(endpoints)])
        add_endpoint(database_dsn, receiver.url("/other"), workspace_id="other")
        with DaemonProcess(config) as daemon:
            daemon.wait_for_log("daemon.started")
            emit_large(database_dsn, 5, 10)
            receiver.wait_for(1, "received")
            emit_large(database_dsn, 1, 10, workspace_id="other")
            receiver.wait_for(1, path="/other", timeout=60)
            assert receiver.stats()["received"] < 2 * endpoints
            receiver.wait_for(5 * endpoints + 1, timeout=120)
        assert_settled(database_dsn)
        assert receiver.stats()["duplicates"] == 0


def test_silent_endpoints_leave_a_slot_to_one_that_may_answer(database_dsn: str, tmp_path: Path) -> None:
    """After a start no endpoint has answered yet."""
    config = write_config(tmp_path, database_dsn, delivery={"timeout": "5m", "drain_timeout": "100ms"})
    with ReceiverProcess(SECRET, mode="never") as receiver:
        receiver.set_mode("ok", "/healthy")
        add_endpoints(database_dsn, [receiver.url(f"/silent/{n}") for n in range(40)])
        emit_large(database_dsn, 20, 10)
        add_endpoint(database_dsn, receiver.url("/healthy"))
        emit(database_dsn, 20)
        with DaemonProcess(config):
            receiver.wait_for(20, path="/healthy")


@pytest.mark.parametrize("column", ["data", "previous_attributes"])
def test_large_payloads_of_slow_receivers_delay_nobody_and_fill_no_memory(
    database_dsn: str, tmp_path: Path, column: str
) -> None:
    config = write_config(tmp_path, database_dsn, delivery={"drain_timeout": "100ms"})
    with ReceiverProcess(SECRET, mode="slow:10") as receiver:
        receiver.set_mode("ok", "/healthy")
        add_endpoints(database_dsn, [receiver.url(f"/slow/{n}") for n in range(16)])
        add_endpoint(database_dsn, receiver.url("/healthy"), workspace_id="healthy")
        emit_large(database_dsn, 40, 900_000, column=column)
        with DaemonProcess(config) as daemon:
            daemon.wait_for_log("daemon.started")
            receiver.wait_for(1, "received")
            for _ in range(5):
                emit_large(database_dsn, 100, 100, workspace_id="healthy")
            receiver.wait_for(500, path="/healthy")
            # Of 640 requests of 10 s each, the first are under way.
            assert receiver.stats()["accepted"] < 500 + 100
            assert peak_memory_mb(daemon) < MEMORY_BOUND_MB


def test_a_backlog_of_large_events_fills_no_memory(database_dsn: str, tmp_path: Path) -> None:
    config = write_config(tmp_path, database_dsn)
    with ReceiverProcess(SECRET) as receiver:
        add_endpoint(database_dsn, receiver.url("/a"), workspace_id="many")
        emit_large(database_dsn, 400, MB)
        with DaemonProcess(config) as daemon:
            receiver.wait_for(400, timeout=120)
            assert peak_memory_mb(daemon) < MEMORY_BOUND_MB
        assert_settled(database_dsn)


@pytest.mark.parametrize("mode", ["ok", "never"])
def test_a_large_event_for_many_endpoints_fills_no_memory(
    database_dsn: str, tmp_path: Path, mode: str
) -> None:
    config = write_config(tmp_path, database_dsn, delivery={"drain_timeout": "100ms"})
    with ReceiverProcess(SECRET, mode=mode) as receiver:
        add_endpoints(database_dsn, [receiver.url(f"/{n}") for n in range(150)])
        with DaemonProcess(config) as daemon:
            daemon.wait_for_log("daemon.started")
            emit_large(database_dsn, 3, MB)
            if mode == "ok":
                receiver.wait_for(450, timeout=120)
            else:
                receiver.wait_for(20, "received", timeout=60)
            assert peak_memory_mb(daemon) < MEMORY_BOUND_MB


def test_rows_of_any_size_fail_their_own_deliveries_and_fill_no_memory(
    database_dsn: str, tmp_path: Path
) -> None:
    config = write_config(tmp_path, database_dsn)
    with ReceiverProcess(SECRET) as receiver:
        add_endpoint(database_dsn, receiver.url("/a"))
        # Past emit, which refuses them.
        for column in ("object_id", "object_type", "data", "related"):
            json = f"json_build_object('x', repeat('y', {70 * MB}))"
            data = json if column == "data" else "'{}'"
            names, values = ("", "") if column == "data" else (f", {column}", f", {json}")
            if column.startswith("object"):
                values = f", repeat('y', {50 * MB})"
            query(
                database_dsn,
                f"INSERT INTO postrider.outbox (type, data{names}) VALUES ('a.b', {data}{values})",
            )
        emit(database_dsn)
        with DaemonProcess(config) as daemon:
            wait_until(
                lambda: (
                    query(
                        database_dsn,
                        """SELECT count(*) FROM postrider.delivery WHERE state IN ('succeeded', 'failed')""",
                    )[0][0]
                    == 5
                ),
                "all of them",
            )
            assert peak_memory_mb(daemon) < MEMORY_BOUND_MB
        rows = query(database_dsn, "SELECT reason FROM postrider.delivery WHERE state = 'failed'")
        assert len(rows) == 2
        assert all("limit" in row["reason"] for row in rows)


def test_results_that_can_not_be_recorded_stop_claims(database_dsn: str, tmp_path: Path) -> None:
    events = 24_000
    config = write_config(tmp_path, database_dsn)
    with ReceiverProcess(SECRET) as receiver:
        add_endpoint(database_dsn, receiver.url("/a"))
        with DaemonProcess(config) as daemon:
            daemon.wait_for_log("daemon.started")
            with locked(database_dsn, "postrider.delivery"):
                emit(database_dsn, events)
                before, now = 0, receiver.wait_for(1, "received")["received"]
                while now != before:
                    time.sleep(2)
                    before, now = now, receiver.stats()["received"]
                assert now < 16_000
                assert peak_memory_mb(daemon) < MEMORY_BOUND_MB
            receiver.wait_for(events, timeout=120)
        assert_settled(database_dsn)


def test_an_event_that_can_not_be_read_fails_alone(server_dsn: str, tmp_path: Path) -> None:
    """A database in SQL_ASCII holds bytes that are no text."""
    name = f"postrider_ascii_{os.getpid()}"
    dsn = on_database(server_dsn, name)
    execute(server_dsn, f"CREATE DATABASE {name} ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0")
    try:
        with ReceiverProcess(SECRET) as receiver:
            config = write_config(tmp_path, dsn)
            Cli(config)("migrate")
            add_endpoint(dsn, receiver.url("/a"))
            emit(dsn)
            execute(
                dsn,
                """SELECT postrider.emit('deal.updated', ('{"x":"' || chr(200) || '"}')::json)""",
                """SELECT postrider.emit('deal.updated', '{}', object_id => 'o' || chr(200))""",
            )
            emit(dsn)
            with DaemonProcess(config) as daemon:
                receiver.wait_for(2)
                unsettled = (
                    "SELECT count(*) FROM postrider.delivery WHERE state NOT IN ('succeeded', 'failed')"
                )
                wait_until(lambda: query(dsn, unsettled)[0][0] == 0, "all of them")
                assert len(daemon.logged("event.unreadable")) >= 2
            reasons = query(dsn, "SELECT reason FROM postrider.delivery WHERE state = 'failed'")
            assert len(reasons) == 2
            assert all("can't be read" in row["reason"] for row in reasons)
    finally:
        execute(server_dsn, f"DROP DATABASE {name} WITH (FORCE)")


def test_a_herd_of_due_retries_does_not_hold_up_other_lanes(database_dsn: str, tmp_path: Path) -> None:
    config = write_config(tmp_path, database_dsn)
    with ReceiverProcess(SECRET) as receiver:
        herd = add_endpoint(database_dsn, receiver.url("/herd"), "herd.*", state=EndpointState.PAUSED)
        healthy = add_endpoint(database_dsn, receiver.url("/healthy"), "deal.*")
        emit(database_dsn, 50_000, "herd.run")
        emit(database_dsn, 100)
        query(
            database_dsn,
            """WITH queued AS (DELETE FROM postrider.pending RETURNING event_id)
               INSERT INTO postrider.delivery
                 (event_id, endpoint_id, workspace_id, state, attempts, due, updated_at)
               SELECT o.id, CASE o.type WHEN 'herd.run' THEN $1::bigint ELSE $2::bigint END, o.workspace_id,
                 CASE o.type WHEN 'herd.run' THEN 'retrying' ELSE 'waiting' END, 1,
                 CASE o.type WHEN 'herd.run' THEN now() END, now()
               FROM postrider.outbox AS o JOIN queued ON queued.event_id = o.id""",
            herd,
            healthy,
        )
        with DaemonProcess(config):
            receiver.wait_for(1, "received", path="/healthy")
            left = "SELECT count(*) FROM postrider.delivery WHERE state = 'retrying'"
            assert query(database_dsn, left)[0][0] > 0
            receiver.wait_for(100, path="/healthy")
            wait_until(lambda: query(database_dsn, left)[0][0] == 0, "all promoted")


def test_a_delivery_whose_event_is_gone_fails_with_that_reason(database_dsn: str, tmp_path: Path) -> None:
    config = write_config(tmp_path, database_dsn)
    with ReceiverProcess(SECRET) as receiver:
        endpoint_id = add_endpoint(database_dsn, receiver.url("/a"))
        query(
            database_dsn,
            """INSERT INTO postrider.delivery
                 (event_id, endpoint_id, workspace_id, state, attempts, updated_at)
               VALUES (postrider.first_id_of(current_date - 100), $1, 'default', 'waiting', 1, now())""",
            endpoint_id,
        )
        with DaemonProcess(config):
            failed = "SELECT reason FROM postrider.delivery WHERE state = 'failed'"
            wait_until(lambda: bool(query(database_dsn, failed)), "its failure")
            assert "retention removed it" in query(database_dsn, failed)[0]["reason"]


def test_a_large_event_reaches_very_many_endpoints_without_a_pause(database_dsn: str, tmp_path: Path) -> None:
    """Each of them has one delivery waiting in the database, and nothing else that would ask for it."""
    endpoints = 1_000
    config = write_config(tmp_path, database_dsn)
    with ReceiverProcess(SECRET) as receiver:
        add_endpoints(database_dsn, [receiver.url(f"/{n}") for n in range(endpoints)])
        with DaemonProcess(config) as daemon:
            daemon.wait_for_log("daemon.started")
            emit_large(database_dsn, 1, 100_000)
            # Looks for what nobody announced come every 5 s; with a few lanes at each it would take minutes.
            receiver.wait_for(endpoints)
        assert_settled(database_dsn)


def test_deliveries_under_way_keep_nothing_of_their_batch_in_memory(
    database_dsn: str, tmp_path: Path
) -> None:
    config = write_config(tmp_path, database_dsn, delivery={"timeout": "60s", "drain_timeout": "100ms"})
    with ReceiverProcess(SECRET, mode="never") as receiver:
        receiver.set_mode("ok", "/fast")
        add_endpoint(database_dsn, receiver.url("/fast"), workspace_id="fast")
        add_endpoints(database_dsn, [receiver.url(f"/silent/{n}") for n in range(20)])
        with DaemonProcess(config) as daemon:
            daemon.wait_for_log("daemon.started")
            for rounds in range(1, 31):
                emit_large(database_dsn, 1, 10)
                emit_large(database_dsn, 100, 60_000, workspace_id="fast")
                receiver.wait_for(100 * rounds, path="/fast", timeout=60)
            assert peak_memory_mb(daemon) < MEMORY_BOUND_MB
