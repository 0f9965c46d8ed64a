"""Sick endpoints and payloads fail their own deliveries with a reason; the healthy notice nothing."""

from pathlib import Path

import asyncpg
import pytest

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

HEALTHY = 300


def test_each_sick_endpoint_fails_alone_and_says_why(database_dsn: str, tmp_path: Path) -> None:
    config = write_config(
        tmp_path,
        database_dsn,
        delivery={"timeout": "1s", "connect_timeout": "1s"},
        retry={"schedule": ["0s"]},
        network={"deny": ["127.9.0.0/16"]},
    )
    with ReceiverProcess(SECRET) as receiver:
        port = receiver.port
        receiver.set_mode("never", "/never")
        receiver.set_mode("garbage", "/garbage")
        receiver.set_mode("reset", "/reset")
        receiver.set_mode(f"302:http://127.9.0.1:{port}/target", "/redirect")
        sick = {
            add_endpoint(database_dsn, url, "sick.*"): (kind, reason)
            for url, kind, reason in (
                ("http://nonexistent.invalid/", "dns", "name lookup failed"),
                ("http://127.0.0.1:2/", "connect", "refused"),
                (receiver.url("/never"), "timeout", "within 1 s"),
                (receiver.url("/garbage"), "protocol", ""),
                (receiver.url("/reset"), "protocol", ""),
                (f"http://127.9.0.1:{port}/denied", "blocked", "the network policy forbids (denied)"),
                (receiver.url("/redirect"), "http", "redirects are not followed"),
            )
        }
        add_endpoint(database_dsn, receiver.url("/healthy"), "healthy.*", "sick.*")
        with DaemonProcess(config) as daemon:
            emit(database_dsn, 5, "sick.thing")
            emit(database_dsn, HEALTHY, "healthy.thing")
            receiver.wait_for(HEALTHY + 5, path="/healthy")
            assert_settled(database_dsn, ("succeeded", "failed"))
            assert daemon.process.poll() is None
            assert {line["address"] for line in daemon.logged("address.blocked")} == {"127.9.0.1"}
        rows = query(
            database_dsn,
            """SELECT d.endpoint_id, d.state, d.reason, a.error_kind
               FROM postrider.delivery AS d JOIN postrider.every_attempt AS a USING (event_id, endpoint_id)
               WHERE d.endpoint_id = ANY($1::bigint[])""",
            list(sick),
        )
        assert len(rows) == 5 * len(sick)
        for row in rows:
            kind, reason = sick[row["endpoint_id"]]
            assert (row["state"], row["error_kind"]) == ("failed", kind)
            assert reason in row["reason"]
        assert not {request["path"] for request in receiver.requests(10_000)} & {"/denied", "/target"}


def test_unusable_payloads_fail_their_own_deliveries(database_dsn: str, tmp_path: Path) -> None:
    config = write_config(tmp_path, database_dsn)
    with ReceiverProcess(SECRET) as receiver:
        add_endpoint(database_dsn, receiver.url("/a"))
        # Past emit(), which would refuse the first.
        query(
            database_dsn,
            """INSERT INTO postrider.outbox (type, data)
               VALUES ('too.large', json_build_object('x', repeat('y', 10 * 1024 * 1024)))""",
        )
        query(
            database_dsn,
            """INSERT INTO postrider.outbox (type, data)
               VALUES ('too.deep', (repeat('{"a":', 10000) || '1' || repeat('}', 10000))::json)""",
        )
        emit(database_dsn, 20)
        with DaemonProcess(config):
            receiver.wait_for(20)
            assert_settled(database_dsn, ("succeeded", "failed"))
        reasons = query(
            database_dsn, "SELECT reason FROM postrider.delivery WHERE state = 'failed' ORDER BY reason"
        )
        assert [row["reason"] for row in reasons] == [
            "payload: data is nested 10,000 levels deep; the limit is 512",
            "payload: its JSON has 10,485,770 bytes; the limit is 1,048,576",
        ]


def test_emit_refuses_ten_megabytes(database_dsn: str) -> None:
    with pytest.raises(asyncpg.ProgramLimitExceededError, match="10485770 bytes; the limit is 1048576"):
        query(database_dsn, "SELECT postrider.emit('a.b', json_build_object('x', repeat('y', 10485760)))")


def test_without_permission_loopback_never_gets_a_connection(database_dsn: str, tmp_path: Path) -> None:
    config = write_config(tmp_path, database_dsn, network={"allow": []}, retry={"schedule": ["0s"]})
    with ReceiverProcess(SECRET) as receiver:
        for host in ("127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "2130706433"):
            add_endpoint(database_dsn, f"http://{host}:{receiver.port}/a")
        with DaemonProcess(config):
            emit(database_dsn)
            wait_until(
                lambda: (
                    len(query(database_dsn, "SELECT FROM postrider.delivery WHERE state = 'failed'")) == 4
                ),
                "four failed deliveries",
            )
        attempts = query(database_dsn, "SELECT error_kind, error FROM postrider.every_attempt")
        assert {row["error_kind"] for row in attempts} == {"blocked"}
        assert all("loopback" in row["error"] for row in attempts)
        assert receiver.stats()["received"] == 0
