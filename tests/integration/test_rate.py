"""The rate limit of an endpoint: it holds, it changes while the daemon runs, and it delays nobody else."""

from datetime import datetime
from itertools import pairwise
from pathlib import Path

from postrider.domain.model import parse_endpoint_id
from tests.support.cli import Cli
from tests.support.daemon_process import (
    DaemonProcess,
    assert_settled,
    emit,
    query,
    wait_until,
    write_config,
)
from tests.support.receiver_process import ReceiverProcess

EVENTS = 40
RATE = 10.0
BURST = 1.0
"""Of this rate: max(1, rate * 0.1 s)."""
STALL_S = 1.0
"""Requests that went out as they should may reach the receiver closer together by so much."""


def burst(times: list[float]) -> float:
    """By how much any window holds more than `RATE` times its length: the bucket that was emptied."""
    most = level = 1.0
    for earlier, later in pairwise(times):
        level = max(0.0, level - (later - earlier) * RATE) + 1
        most = max(most, level)
    return most


def test_a_rate_limit_holds_and_changes_while_the_daemon_runs(database_dsn: str, tmp_path: Path) -> None:
    config = write_config(tmp_path, database_dsn)
    cli = Cli(config)
    with ReceiverProcess() as receiver:

        def add(path: str, *options: str) -> str:
            added = cli.json("endpoint", "add", "--url", receiver.url(path), "--events", "*", *options)
            return str(added["id"])

        limited = add("/limited", "--rate", f"{RATE:g}/s")
        add("/free")
        with DaemonProcess(config) as daemon:
            daemon.wait_for_log("daemon.started")
            emit(database_dsn, EVENTS)
            took = receiver.wait_for(EVENTS, path="/limited", timeout=60)
            assert took["last_at"] - took["first_at"] >= 3.5
            assert receiver.stats("/free")["last_at"] < took["last_at"]
            wait_until(lambda: len(sent_at(database_dsn, limited)) == EVENTS, "all attempts recorded")
            arrivals = [each["at"] for each in receiver.requests(1000) if each["path"] == "/limited"]
            assert burst(arrivals) <= BURST + RATE * STALL_S
            assert burst(sent_at(database_dsn, limited)) <= BURST + 0.1

            cli("endpoint", "update", limited, "--rate", "30/m")
            emit(database_dsn, EVENTS)
            receiver.wait_for(2 * EVENTS, path="/free")
            reason = "no more than 0.5 requests a second are allowed"
            wait_until(lambda: lanes(cli) == {limited: ("limited", reason)}, "a limited lane")
            accepted = receiver.stats("/limited")["accepted"]
            receiver.wait_for(accepted + 3, path="/limited")
            before_last, last = sent_at(database_dsn, limited)[-2:]
            assert last - before_last >= 1.9
            assert receiver.stats("/limited")["accepted"] < 2 * EVENTS

            cli("endpoint", "update", limited, "--rate", "none")
            receiver.wait_for(2 * EVENTS, path="/limited")
        assert_settled(database_dsn)
        assert receiver.stats("/limited")["duplicates"] == 0


def sent_at(dsn: str, ep: str) -> list[float]:
    """When the daemon started each request of an endpoint, in epoch seconds, earliest first."""
    rows = query(
        dsn,
        "SELECT started_at FROM postrider.every_attempt WHERE endpoint_id = $1 ORDER BY 1",
        parse_endpoint_id(ep),
    )
    times: list[datetime] = [row["started_at"] for row in rows]
    return [time.timestamp() for time in times]


def lanes(cli: Cli) -> dict[str, tuple[str, str]]:
    """What daemons report of endpoints in trouble: the state of their lane, and why."""
    return {
        endpoint["id"]: (lane["state"], lane["reason"])
        for endpoint in cli.json("status")["endpoints_in_trouble"]
        for lane in endpoint["lanes"]
    }
