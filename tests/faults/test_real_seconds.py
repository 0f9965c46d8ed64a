"""The retry schedule in real seconds, across a restart and a kill."""

from itertools import pairwise
from pathlib import Path

from tests.support.daemon_process import (
    SECRET,
    DaemonProcess,
    add_endpoint,
    emit,
    query,
    wait_until,
    write_config,
)
from tests.support.receiver_process import ReceiverProcess

DELAYS = (1.0, 2.0, 1.0)


def test_attempts_keep_their_schedule_across_a_restart_and_a_kill(database_dsn: str, tmp_path: Path) -> None:
    config = write_config(
        tmp_path,
        database_dsn,
        retry={"schedule": ["0s", *(f"{delay:.0f}s" for delay in DELAYS)], "jitter": 0},
        log={"level": "debug"},
    )
    with ReceiverProcess(SECRET, mode="500") as receiver:
        add_endpoint(database_dsn, receiver.url("/a"))
        emit(database_dsn)
        with DaemonProcess(config) as daemon:
            receiver.wait_for(2, key="received")
            daemon.wait_for_log("delivery.retrying")
            wait_until(lambda: len(daemon.logged("delivery.retrying")) == 2, "the second result")
            assert daemon.terminate() == 0
        with DaemonProcess(config) as daemon:
            receiver.wait_for(3, key="received")
            daemon.wait_for_log("delivery.retrying")
            daemon.kill()
        with DaemonProcess(config) as daemon:
            failed = daemon.wait_for_log("delivery.failed")
            assert (failed["attempt"], failed["reason"]) == (4, "HTTP 500")
        requests = receiver.requests(10)
    assert len(requests) == 4
    gaps = [after["at"] - before["at"] for before, after in pairwise(requests)]
    for gap, delay in zip(gaps, DELAYS, strict=True):
        # Never early; late by no more than a start of the daemon takes.
        assert delay - 0.01 <= gap < delay + 1.5
    assert len({request["body"] for request in requests}) == 1
    headers = [
        {name.lower(): value for name, value in dict(request["headers"]).items()} for request in requests
    ]
    assert len({each["webhook-id"] for each in headers}) == 1
    assert len({each["webhook-signature"] for each in headers}) == len(
        {each["webhook-timestamp"] for each in headers}
    )
    row = query(database_dsn, "SELECT state, attempts FROM postrider.delivery")[0]
    assert (row["state"], row["attempts"]) == ("failed", 4)
