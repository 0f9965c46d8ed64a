"""PostgreSQL crashes beside a daemon that lives on: what a crash undoes is delivered again, nothing is lost.

The daemon commits results without waiting for the disk. A crash undoes the last of them, and the daemon's
memory has forgotten by then what they were about.
"""

import random
import time
from pathlib import Path

import pytest

from postrider.domain.model import EndpointState
from tests.support.daemon_process import (
    SECRET,
    DaemonProcess,
    Writers,
    add_endpoint,
    assert_settled,
    query,
    write_config,
)
from tests.support.own_server import own_server
from tests.support.receiver_process import ReceiverProcess

WRITERS = 8
BEHAVIOURS = {"/healthy": "ok", "/slow": "slow:0.3", "/failing": "500", "/paused": "ok"}
RECONCILED_S = 60.0
"""What only the comparison of memory and database finds is found within half of this."""


@pytest.mark.parametrize(
    ("events", "crashes"),
    [(3_000, 5), pytest.param(16_000, 20, marks=pytest.mark.soak)],
    ids=["short", "soak"],
)
def test_a_crash_of_postgresql_beside_a_living_daemon_loses_nothing(
    tmp_path: Path, events: int, crashes: int
) -> None:
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    print(f"seed {seed}")
    with own_server(wal_writer_delay="10s") as server, ReceiverProcess(SECRET) as receiver:
        config = write_config(tmp_path, server.dsn, retry={"schedule": ["0s", *["1s"] * 80], "jitter": 0.0})
        for path, behaviour in BEHAVIOURS.items():
            receiver.set_mode(behaviour, path)
            state = EndpointState.PAUSED if path == "/paused" else EndpointState.ACTIVE
            add_endpoint(server.dsn, receiver.url(path), state=state)
        with DaemonProcess(config) as daemon:
            daemon.wait_for_log("daemon.started")
            # Writers stop at times: as long as anybody commits, results are flushed with it.
            committed = set()
            for number in range(crashes):
                writers = Writers(
                    server.dsn, writers=WRITERS, each=events // WRITERS // crashes, name=f"{number}-"
                )
                time.sleep(chance.uniform(0.0, 0.5))
                if chance.random() < 0.5:
                    committed |= set(writers.join())
                    time.sleep(chance.uniform(0.0, 0.2))
                server.restart("immediate")
                committed |= set(writers.join())
            for path in BEHAVIOURS:
                receiver.set_mode("ok", path)
            query(server.dsn, "UPDATE postrider.endpoint SET state = 'active' WHERE state <> 'active'")
            for path in BEHAVIOURS:
                receiver.wait_for(len(committed), path=path, timeout=RECONCILED_S)
                assert committed <= receiver.ids(path).keys()
            assert_settled(server.dsn)
            assert daemon.process.poll() is None
        recorded = query(server.dsn, "SELECT count(*) FROM postrider.delivery WHERE state = 'succeeded'")[0][
            0
        ]
        assert recorded == len(committed) * len(BEHAVIOURS)
        assert receiver.stats()["bad_signatures"] == 0
        print(f"duplicates {receiver.stats()['duplicates']} of {recorded}")
