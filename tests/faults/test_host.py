"""The daemon's own host runs short of something: that is no failure of any endpoint."""

from pathlib import Path

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

ENDPOINTS = 150
DESCRIPTORS = 100


def test_lack_of_descriptors_uses_up_no_attempt(database_dsn: str, tmp_path: Path) -> None:
    config = write_config(
        tmp_path, database_dsn, retry={"schedule": ["0s", "1h"]}, delivery={"timeout": "60s"}
    )
    with ReceiverProcess(SECRET, mode="never") as receiver:
        for number in range(ENDPOINTS):
            add_endpoint(database_dsn, receiver.url(f"/{number}"))
        emit(database_dsn)
        with DaemonProcess(config, within=["prlimit", f"--nofile={DESCRIPTORS}"]) as daemon:
            daemon.wait_for_log("host.exhausted")
            put_off = "SELECT attempts, reason FROM postrider.delivery WHERE state = 'retrying'"
            wait_until(lambda: bool(query(database_dsn, put_off)), "a delivery put off")
            assert all(row["attempts"] == 0 for row in query(database_dsn, put_off))
            receiver.set_mode("ok")
            # The connections of those that are never answered are let go of.
            daemon.kill()
        with DaemonProcess(config, within=["prlimit", f"--nofile={DESCRIPTORS}"]):
            receiver.wait_for(ENDPOINTS, timeout=60)
            assert_settled(database_dsn)
    attempts = query(database_dsn, "SELECT DISTINCT attempts FROM postrider.delivery")
    assert [row["attempts"] for row in attempts] == [1]
