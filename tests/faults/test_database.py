"""The database goes away under load: restarts and cut connections."""

import time
from functools import partial
from pathlib import Path

import pytest

from tests.support.daemon_process import (
    SECRET,
    DaemonProcess,
    Writers,
    add_endpoint,
    assert_settled,
    emit,
    query,
    wait_until,
    write_config,
)
from tests.support.own_server import own_server
from tests.support.receiver_process import ReceiverProcess

EVENTS = 2_000
WRITERS = 4


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_restart_of_postgresql_loses_nothing(tmp_path: Path, mode: str) -> None:
    with own_server() as server, ReceiverProcess(SECRET) as receiver:
        dsn = server.dsn
        config = write_config(tmp_path, dsn)
        add_endpoint(dsn, receiver.url("/a"))
        with DaemonProcess(config) as daemon:
            daemon.wait_for_log("daemon.started")
            writers = Writers(dsn, writers=WRITERS, each=EVENTS // WRITERS, pause_s=0.002)
            receiver.wait_for(200)
            server.restart(mode)
            back_at = time.time()
            before = receiver.stats()["received"]
            wait_until(lambda: receiver.stats()["received"] > before, "deliveries after the restart")
            print(f"deliveries flow {time.time() - back_at:.2f} s after the return")
            written = writers.join()
            receiver.wait_for(EVENTS, timeout=60)
            # An immediate stop may lose the last commits that did not wait for the disk: of results, not of
            # events, whose writers waited.
            present = query(dsn, "SELECT 'evt_' || replace(id::text, '-', '') AS id FROM postrider.outbox")
            assert {row["id"] for row in present} == set(receiver.ids("/a"))
            assert set(written) <= set(receiver.ids("/a"))
            assert_settled(dsn)
            assert daemon.process.poll() is None
            assert len(daemon.logged("database.lost")) == 1
            assert len(daemon.logged("database.restored")) == 1
            assert len(daemon.logged("listener.reconnected")) == 1
            assert not daemon.logged("service.failed")


def test_cut_connections_lose_nothing_and_are_replaced(database_dsn: str, tmp_path: Path) -> None:
    config = write_config(tmp_path, database_dsn)
    with ReceiverProcess(SECRET) as receiver:
        add_endpoint(database_dsn, receiver.url("/a"))
        with DaemonProcess(config) as daemon:
            daemon.wait_for_log("daemon.started")
            total = 0

            def reconnected(times: int) -> bool:
                return len(daemon.logged("listener.reconnected")) == times

            for cut in range(4):
                total += len(emit(database_dsn, 300))
                receiver.wait_for(total - 250)
                query(
                    database_dsn,
                    """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                       WHERE datname = current_database() AND pid <> pg_backend_pid()""",
                )
                wait_until(partial(reconnected, cut + 1), "a new connection")
            receiver.wait_for(total)
            assert_settled(database_dsn)
            # An event that is emitted into silence arrives, too.
            wait_until(
                lambda: query(database_dsn, "SELECT bool_or(idle) FROM postrider.daemon")[0][0],
                "idleness",
            )
            emit(database_dsn)
            receiver.wait_for(total + 1)
            assert daemon.process.poll() is None


def test_a_daemon_waits_for_a_database_that_is_not_there_yet(tmp_path: Path, database_dsn: str) -> None:
    query(database_dsn, "SELECT 1")
    absent = write_config(tmp_path, "postgresql://nobody@127.0.0.1:9/none")
    with DaemonProcess(absent) as daemon:
        line = daemon.wait_for_log("database.awaited")
        assert "can't be reached" in line["reason"]
        assert daemon.terminate() == 0
