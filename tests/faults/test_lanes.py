"""Endpoints that ask for less, or do not answer at all: their lane holds back, and nothing is lost."""

from datetime import datetime
from itertools import pairwise
from pathlib import Path

from postrider.domain.pacing import BREAK_AFTER, RESTS_S
from postrider.edges.resources import config_dir
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

EVENTS = 40
PAUSE_S = 1.0
TIMEOUT_S = 1.0
STALL_S = 0.5
"""Requests that were under way when the lane began to pause may arrive so much later."""
BUSY_S = 10.0
"""So much the machine may delay an attempt; the rests that an endpoint gets else take longer together."""
INEXACT_S = 0.2
"""Timers may be so much early, measured by another clock than their own."""
PROBES = 2


def test_retry_after_keeps_all_deliveries_of_the_endpoint_waiting(database_dsn: str, tmp_path: Path) -> None:
    config = write_config(tmp_path, database_dsn, retry={"schedule": ["0s", *["1s"] * 50], "jitter": 0.0})
    with ReceiverProcess(SECRET, mode=f"429:{PAUSE_S:g}") as receiver:
        add_endpoint(database_dsn, receiver.url("/busy"))
        with DaemonProcess(config) as daemon:
            emit(database_dsn, EVENTS)
            receiver.wait_for(8, "received", timeout=60)
            receiver.set_mode("ok")
            receiver.wait_for(EVENTS, timeout=60)
            throttled = daemon.logged("lane.throttled")[0]
        assert_settled(database_dsn)
        assert throttled["reason"] == "HTTP 429"
        assert 0 < throttled["pause_s"] <= PAUSE_S
        requests = receiver.requests(1000)
        refused_at = [request["at"] for request in requests if request["status"] == 429]
        assert len(refused_at) >= 8
        for at in refused_at:
            assert not [r for r in requests if at + STALL_S < r["at"] < at + PAUSE_S]
        assert receiver.stats()["duplicates"] == 0


def test_an_endpoint_that_does_not_answer_is_probed_until_it_does(database_dsn: str, tmp_path: Path) -> None:
    config = write_config(
        tmp_path,
        database_dsn,
        delivery={"timeout": f"{TIMEOUT_S:g}s", "connect_timeout": f"{TIMEOUT_S:g}s"},
        retry={"schedule": ["0s", *["2s"] * 50], "jitter": 0.0},
    )
    with ReceiverProcess(SECRET, mode="never") as receiver:
        add_endpoint(database_dsn, receiver.url("/dead"))
        with DaemonProcess(config) as daemon:
            emit(database_dsn, EVENTS)
            broken = daemon.wait_for_log("lane.broken", 60)
            before = receiver.stats()["received"]
            receiver.wait_for(before + PROBES, "received", timeout=60)
            receiver.set_mode("ok")
            daemon.wait_for_log("lane.recovering", 120)
            receiver.wait_for(EVENTS, timeout=60)
            daemon.wait_for_log("lane.recovered", 60)
            assert len(daemon.logged("lane.broken")) == 1
        assert_settled(database_dsn)
        assert broken["reason"].startswith("timeout: ")
        assert receiver.stats()["duplicates"] == 0

    attempts = query(
        database_dsn, "SELECT started_at, status FROM postrider.every_attempt ORDER BY started_at"
    )
    broken_at = datetime.fromisoformat(broken["timestamp"])
    assert sum(attempt["started_at"] < broken_at for attempt in attempts) >= BREAK_AFTER
    probes = [attempt for attempt in attempts if attempt["started_at"] > broken_at]
    answered = next(number for number, attempt in enumerate(probes) if attempt["status"] == 200)
    assert answered >= PROBES
    assert (probes[0]["started_at"] - broken_at).total_seconds() >= RESTS_S[0] - INEXACT_S
    for (probe, following), rest_s in zip(
        pairwise(probes[: answered + 1]), RESTS_S[1 : answered + 1], strict=True
    ):
        gap = following["started_at"] - probe["started_at"]
        assert gap.total_seconds() >= TIMEOUT_S + rest_s - INEXACT_S


def starts(dsn: str, number: int) -> list[datetime]:
    rows = query(dsn, "SELECT started_at FROM postrider.every_attempt WHERE number = $1 ORDER BY 1", number)
    return [row["started_at"] for row in rows]


def test_an_endpoint_that_refuses_connections_delays_no_attempt(database_dsn: str, tmp_path: Path) -> None:
    with DaemonProcess(write_config(tmp_path, database_dsn)):
        add_endpoint(database_dsn, "http://127.0.0.1:2/away", dialect="workestra")
        emit(database_dsn, 30)
        wait_until(lambda: len(starts(database_dsn, 2)) == 30, "the second attempts")
    first, second = starts(database_dsn, 1), starts(database_dsn, 2)
    assert (first[-1] - first[0]).total_seconds() < BUSY_S
    assert (second[0] - first[0]).total_seconds() >= 5 - INEXACT_S
    assert (second[-1] - first[-1]).total_seconds() < 5 + BUSY_S


def test_a_promised_schedule_holds_where_attempts_time_out(database_dsn: str, tmp_path: Path) -> None:
    """As far as the lane's own slots go."""
    shipped = (config_dir() / "dialects" / "workestra.toml").read_text()
    own = shipped.replace("retry_delays = [0, 5, 30, 120, 600]", "retry_delays = [0, 1, 1, 1]\ntimeout = 1")
    # Else the first delivery that ends its schedule disables the endpoint before all have begun their last.
    own = own.replace("disable_when_exhausted = true", "disable_when_exhausted = false")
    assert own.count("\n") == shipped.count("\n") + 1 and "= false" in own
    (tmp_path / "workestra.toml").write_text(own)
    config = write_config(
        tmp_path,
        database_dsn,
        dialect={"paths": [str(tmp_path / "workestra.toml")]},
        delivery={"endpoint_concurrency": 16},
    )
    with ReceiverProcess(SECRET, mode="never") as silent, ReceiverProcess(SECRET) as healthy:
        add_endpoint(database_dsn, silent.url("/dead"), dialect="workestra")
        add_endpoint(database_dsn, healthy.url("/ok"))
        with DaemonProcess(config) as daemon:
            emit(database_dsn, 8)
            wait_until(lambda: len(starts(database_dsn, 4)) == 8, "the last attempts")
            assert not daemon.logged("lane.broken")
            assert healthy.wait_for(8)["distinct"] == 8
    for number in (2, 3, 4):
        gap = starts(database_dsn, number)[-1] - starts(database_dsn, number - 1)[-1]
        assert gap.total_seconds() < 2 + 5  # one at a time takes 8 s
