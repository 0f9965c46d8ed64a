"""kill -9 of the daemon under load: nothing lost, duplicates only for what was in flight or unrecorded."""

import random
import time
from pathlib import Path

import pytest

from tests.support.daemon_process import (
    SECRET,
    DaemonProcess,
    Writers,
    add_endpoint,
    assert_settled,
    query,
    wait_until,
    write_config,
)
from tests.support.receiver_process import ReceiverProcess

ENDPOINTS = 5
WRITERS = 8
UNRECORDED_PER_KILL = 2000
"""Requests under way (16 for each endpoint) and results that the recorder had not written yet."""


@pytest.mark.parametrize(
    ("events", "kills"), [(4_000, 4), pytest.param(20_000, 20, marks=pytest.mark.soak)], ids=["short", "soak"]
)
def test_nothing_is_lost_when_the_daemon_is_killed(
    database_dsn: str, tmp_path: Path, events: int, kills: int
) -> None:
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    print(f"seed {seed}")
    config = write_config(tmp_path, database_dsn)
    with ReceiverProcess(SECRET) as receiver:
        for number in range(ENDPOINTS):
            add_endpoint(database_dsn, receiver.url(f"/{number}"))
        writers = Writers(database_dsn, writers=WRITERS, each=events // WRITERS)

        def run_and_kill() -> float:
            """Start a daemon, kill it at a random instant; return the seconds to its first delivery."""
            before = receiver.stats()["received"]
            with DaemonProcess(config) as daemon:
                wait_until(lambda: receiver.stats()["received"] > before, "the first delivery")
                seconds = time.time() - daemon.started_at
                # A random instant of the work itself, not of the clock.
                target = before + chance.randrange(1, events * ENDPOINTS // (kills + 2))
                wait_until(
                    lambda: receiver.stats()["received"] >= target or not writers.writing,
                    f"{target} requests",
                )
                daemon.kill()
            return seconds

        restarts = [run_and_kill() for _ in range(kills)]
        with DaemonProcess(config):
            written = writers.join()
            assert len(set(written)) == events
            receiver.wait_for(events * ENDPOINTS, timeout=120)
            assert_settled(database_dsn)
        stats = receiver.stats()
        ids = receiver.ids("/0")
    print(f"duplicates {stats['duplicates']}, first delivery after start {max(restarts):.2f} s at most")
    assert set(ids) == set(written)
    assert stats["distinct"] == events * ENDPOINTS
    assert stats["bad_signatures"] == 0
    assert stats["duplicates"] <= kills * UNRECORDED_PER_KILL
    recorded = query(database_dsn, "SELECT count(*) FROM postrider.delivery WHERE state = 'succeeded'")[0][0]
    assert recorded == events * ENDPOINTS
