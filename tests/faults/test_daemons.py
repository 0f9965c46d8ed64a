"""Two daemons on one database, stops, signals, and a daemon that wakes up after it was taken for dead."""

import signal
from pathlib import Path
from typing import Any

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

EVENTS = 3_000


def agents(receiver: ReceiverProcess, limit: int = 10_000) -> set[str]:
    return {
        value
        for request in receiver.requests(limit)
        for name, value in dict(request["headers"]).items()
        if name.lower() == "user-agent"
    }


def test_two_daemons_share_the_work_and_double_nothing(database_dsn: str, tmp_path: Path) -> None:
    first = write_config(tmp_path, database_dsn, "first", delivery={"user_agent": "first"})
    second = write_config(tmp_path, database_dsn, "second", delivery={"user_agent": "second"})
    with ReceiverProcess(SECRET) as receiver:
        add_endpoint(database_dsn, receiver.url("/a"))
        add_endpoint(database_dsn, receiver.url("/b"))
        with DaemonProcess(first) as one, DaemonProcess(second) as two:
            one.wait_for_log("daemon.started")
            two.wait_for_log("daemon.started")
            for _ in range(EVENTS // 100):
                emit(database_dsn, 100)
            receiver.wait_for(EVENTS, timeout=60)
            assert agents(receiver) == {"first", "second"}
            # One is stopped in the middle of it.
            assert one.terminate() == 0
            receiver.wait_for(EVENTS * 2, timeout=60)
            assert_settled(database_dsn)
        assert receiver.stats()["duplicates"] == 0
        assert receiver.stats()["received"] == EVENTS * 2


def test_a_daemon_takes_over_what_a_killed_one_held(database_dsn: str, tmp_path: Path) -> None:
    config = write_config(tmp_path, database_dsn)
    with ReceiverProcess(SECRET, mode="slow:1") as receiver:
        add_endpoint(database_dsn, receiver.url("/a"))
        with DaemonProcess(config) as doomed:
            doomed.wait_for_log("daemon.started")
            ids = emit(database_dsn, 40)
            receiver.wait_for(10, key="received")
            with DaemonProcess(config) as heir:
                heir.wait_for_log("daemon.started")
                doomed.kill()
                receiver.set_mode("ok")
                # By the lock: for want of a heartbeat it would be taken for dead after 25 s.
                rescued = heir.wait_for_log("daemon.rescued", timeout=20)
                # The endpoint is slow: by now its deliveries may have places of their own in the database.
                assert rescued["events"] + rescued["deliveries"] > 0
                receiver.wait_for(40)
                assert_settled(database_dsn)
        assert set(receiver.ids("/a")) == set(ids)


def test_a_daemon_that_wakes_up_can_not_overwrite_its_rescuer(database_dsn: str, tmp_path: Path) -> None:
    sleeper_config = write_config(tmp_path, database_dsn, "sleeper", delivery={"user_agent": "sleeper"})
    rescuer_config = write_config(tmp_path, database_dsn, "rescuer", delivery={"user_agent": "rescuer"})
    with ReceiverProcess(SECRET, mode="slow:1") as receiver:
        add_endpoint(database_dsn, receiver.url("/a"))
        with DaemonProcess(sleeper_config) as sleeper:
            sleeper.wait_for_log("daemon.started")
            emit(database_dsn)
            receiver.wait_for(1, key="received")
            sleeper.signal(signal.SIGSTOP)
            query(
                database_dsn,
                """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                   WHERE datname = current_database() AND pid <> pg_backend_pid()""",
            )
            receiver.set_mode("500")
            with DaemonProcess(rescuer_config) as rescuer:
                rescuer.wait_for_log("delivery.retrying")
                current = "SELECT state, attempts, due FROM postrider.delivery"
                as_rescued = query(database_dsn, current)
                sleeper.signal(signal.SIGCONT)
                sleeper.wait_for_log("delivery.fenced")
                assert (
                    query(database_dsn, "SELECT state, attempts, due FROM postrider.delivery") == as_rescued
                )
                assert as_rescued[0]["state"] == "retrying"


def test_sigterm_lets_requests_under_way_finish(database_dsn: str, tmp_path: Path) -> None:
    config = write_config(tmp_path, database_dsn)
    with ReceiverProcess(SECRET, mode="slow:1") as receiver:
        add_endpoint(database_dsn, receiver.url("/a"))
        with DaemonProcess(config) as daemon:
            daemon.wait_for_log("daemon.started")
            emit(database_dsn, 30)
            receiver.wait_for(4, key="received")
            assert daemon.terminate() == 0
        sent = receiver.stats()["received"]
        assert 4 <= receiver.stats()["accepted"] == sent < 30
        recorded = query(database_dsn, "SELECT count(*) FROM postrider.delivery WHERE state = 'succeeded'")
        assert recorded[0][0] == sent
        assert query(database_dsn, "SELECT count(*) FROM postrider.daemon")[0][0] == 0
        receiver.set_mode("ok")
        with DaemonProcess(config):
            receiver.wait_for(30)
            assert_settled(database_dsn)
        assert receiver.stats()["duplicates"] == 0


def test_a_send_that_the_stop_cuts_off_is_no_attempt(database_dsn: str, tmp_path: Path) -> None:
    config = write_config(tmp_path, database_dsn, delivery={"drain_timeout": "100ms"})
    with ReceiverProcess(SECRET, mode="never") as receiver:
        add_endpoint(database_dsn, receiver.url("/a"))
        with DaemonProcess(config) as daemon:
            daemon.wait_for_log("daemon.started")
            emit(database_dsn)
            receiver.wait_for(1, key="received")
            assert daemon.terminate() == 0
            assert daemon.logged("daemon.stopped")[0]["cut_off"] == 1
        assert query(database_dsn, "SELECT count(*) FROM postrider.every_attempt")[0][0] == 0
        receiver.set_mode("ok")
        with DaemonProcess(config):
            receiver.wait_for(1)
            assert_settled(database_dsn)
        assert query(database_dsn, "SELECT number FROM postrider.every_attempt")[0]["number"] == 1


def test_a_second_signal_ends_at_once(database_dsn: str, tmp_path: Path) -> None:
    config = write_config(tmp_path, database_dsn)
    with ReceiverProcess(SECRET, mode="never") as receiver:
        add_endpoint(database_dsn, receiver.url("/a"))
        with DaemonProcess(config) as daemon:
            daemon.wait_for_log("daemon.started")
            emit(database_dsn)
            receiver.wait_for(1, key="received")
            daemon.signal(signal.SIGTERM)
            daemon.wait_for_log("daemon.stopping")
            assert daemon.terminate(timeout=20) == 1  # the grace is 30 s
            assert daemon.logged("daemon.killed")


def test_sighup_takes_a_good_configuration_and_refuses_a_bad_one(database_dsn: str, tmp_path: Path) -> None:
    config = write_config(tmp_path, database_dsn)
    with ReceiverProcess(SECRET) as receiver:
        add_endpoint(database_dsn, receiver.url("/a"))
        with DaemonProcess(config) as daemon:
            daemon.wait_for_log("daemon.started")
            write_config(tmp_path, database_dsn, delivery={"timeout": "soon"})
            daemon.signal(signal.SIGHUP)
            assert "delivery.timeout" in daemon.wait_for_log("config.refused")["reason"]
            emit(database_dsn)
            receiver.wait_for(1)
            write_config(tmp_path, database_dsn, delivery={"user_agent": "reloaded"}, admin={"listen": "x:1"})
            daemon.signal(signal.SIGHUP)
            assert daemon.wait_for_log("config.reloaded")["needs_restart"] == ["admin"]
            emit(database_dsn)
            receiver.wait_for(2)
            wait_until(lambda: "reloaded" in agents(receiver), "the new user agent")


def test_a_reload_changes_the_log_level_and_no_reload_forgets_that_a_restart_is_due(
    database_dsn: str, tmp_path: Path
) -> None:
    config = write_config(tmp_path, database_dsn)
    with ReceiverProcess(SECRET) as receiver, DaemonProcess(config) as daemon:
        add_endpoint(database_dsn, receiver.url("/a"))
        daemon.wait_for_log("daemon.started")
        changes: list[dict[str, Any]] = [
            {"admin": {"listen": "127.0.0.1:1"}, "log": {"level": "debug"}, "database": {"notify": True}},
            {"admin": {"listen": "127.0.0.1:1"}, "log": {"format": "text"}, "database": {"pool_size": 5}},
            {},
        ]
        for number, change in enumerate(changes, start=1):
            write_config(tmp_path, database_dsn, **change)
            daemon.signal(signal.SIGHUP)
            wait_until(lambda: len(daemon.logged("config.reloaded")) == number, "reload")  # noqa: B023
            if number == 1:
                emit(database_dsn)
                daemon.wait_for_log("delivery.succeeded")
        assert [line["needs_restart"] for line in daemon.logged("config.reloaded")] == [
            ["admin"],
            ["database.pool_size", "admin", "log.format"],
            [],
        ]
        emit(database_dsn)
        receiver.wait_for(2)
        assert daemon.terminate() == 0
        assert len(daemon.logged("delivery.succeeded")) == 1
