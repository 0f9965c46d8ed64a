"""postrider status: what it tells of a backlog, of endpoints in trouble, and of daemons dead or alive."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from postrider.domain.model import (
    EndpointState,
    delivery_public_id,
    endpoint_public_id,
    parse_event_id,
)
from postrider.domain.status import read_report
from postrider.store import totals
from postrider.store.database import Database
from tests.support.cli import Cli
from tests.support.daemon_process import (
    DaemonProcess,
    add_endpoint,
    emit,
    query,
    wait_until,
    write_config,
)
from tests.support.receiver_process import ReceiverProcess

REPORT = {
    "window_s": 5.0, "succeeded_per_s": 1.0, "retried_per_s": 2.0, "failed_per_s": 3.0, "in_flight": 4,
    "slots": 256, "queued": 5, "lanes": [],
}  # fmt: skip
LANE = {
    "endpoint_id": 7, "state": "broken", "concurrency": 1, "running": 0, "queued": 8, "latency_ms": 1500.0,
    "waiting": True, "reason": "no answer",
}  # fmt: skip


@pytest.fixture
def config(database_dsn: str, tmp_path: Path) -> Path:
    return write_config(tmp_path, database_dsn, retry={"schedule": ["0s", "1h"]})


@pytest.fixture
def cli(config: Path) -> Cli:
    return Cli(config)


def reported(cli: Cli, *, rates: bool = False) -> bool:
    """Whether a living daemon has left a report, and with `rates`, one that has measured them."""
    reports = [daemon["window_s"] for daemon in cli.json("status")["daemons"] if daemon["alive"]]
    return any(window_s is not None and (window_s > 0 or not rates) for window_s in reports)


def alive(cli: Cli) -> bool:
    return any(daemon["alive"] for daemon in cli.json("status")["daemons"])


def everything(cli: Cli, *arguments: str) -> str:
    """What a command says, on stdout and stderr."""
    done = subprocess.run(cli.command(*arguments), capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def enter_daemon(dsn: str, report: str | None) -> None:
    """Enter a daemon that lives behind a pooler, as another version of Postrider might."""
    query(
        dsn,
        """INSERT INTO postrider.daemon
             (hostname, pid, version, started_at, heartbeat_at, pooled, report, reported_at)
           VALUES ('elsewhere', 1, '9.9', now(), now(), true, $1::text::json, now())""",
        report,
    )


def test_an_empty_outbox_without_a_daemon(cli: Cli) -> None:
    said = cli("status")
    assert "0 events are queued, not yet fanned out; no daemon is running" in said
    assert "No daemon is running. Start one" in said
    assert "Endpoints in trouble" not in said


def test_a_backlog_without_a_daemon_is_told(cli: Cli, database_dsn: str) -> None:
    emit(database_dsn, 3)
    said = cli("status")
    assert "3 events are queued, not yet fanned out, the oldest from " in said
    assert "ago; no daemon is running" in said
    assert "No daemon is running, and nothing of what waits is delivered" in said
    facts = cli.json("status")
    assert (facts["events"], facts["events_queued"], facts["events_claimed"]) == (3, 3, 0)
    assert 0 <= facts["oldest_event_age_s"] < 60
    assert facts["succeeded_per_s"] is None


def test_a_running_daemon_and_its_endpoints(cli: Cli, config: Path, database_dsn: str) -> None:
    with ReceiverProcess() as receiver, DaemonProcess(config) as daemon:
        wait_until(lambda: reported(cli), "a first report")
        assert "Everything is in order." in cli("status")

        sick = endpoint_public_id(add_endpoint(database_dsn, receiver.url("/sick"), workspace_id="ws_1"))
        receiver.set_mode("500", "/sick")
        query(database_dsn, "SELECT postrider.emit('a.b', '{}', workspace_id => 'ws_1')")
        wait_until(lambda: cli.json("status")["endpoints_in_trouble_count"] == 1, "trouble")
        wait_until(lambda: reported(cli, rates=True), "rates")
        facts = cli.json("status")
        (endpoint,) = facts["endpoints_in_trouble"]
        assert (endpoint["id"], endpoint["workspace"], endpoint["state"]) == (sick, "ws_1", "failing")
        assert (endpoint["deliveries_waiting"], endpoint["deliveries_retrying"]) == (0, 1)
        assert (facts["events"], facts["deliveries_retrying"]) == (0, 1)
        assert facts["next_retry_at"] > facts["at"]
        (row,) = facts["daemons"]
        assert (row["pid"], row["alive"], row["slots"]) == (daemon.process.pid, True, 256)
        said = cli("status")
        assert "1 endpoint is in trouble." in said
        assert "1 are to be retried, the next in " in said
        assert "127.0.0.1" in said
        assert f"{daemon.process.pid}" in said
        assert "0/256" in said

        daemon.kill()
        assert "is dead; the next one takes over its work" in cli("status")


def test_deliveries_are_counted_into_the_rates(cli: Cli, config: Path, database_dsn: str) -> None:
    with ReceiverProcess() as receiver, DaemonProcess(config) as daemon:
        add_endpoint(database_dsn, receiver.url("/a"))
        daemon.wait_for_log("daemon.started")
        wait_until(lambda: reported(cli), "a first report")
        emit(database_dsn, 100)
        wait_until(lambda: (cli.json("status")["succeeded_per_s"] or 0) > 0, "a rate")


def test_what_a_slow_endpoint_makes_wait(cli: Cli, config: Path, database_dsn: str) -> None:
    with ReceiverProcess(mode="slow:3") as receiver, DaemonProcess(config):
        slow = endpoint_public_id(add_endpoint(database_dsn, receiver.url("/slow"), concurrency=1))
        emit(database_dsn, 60)

        def lanes() -> list[dict[str, Any]]:
            return [lane for each in cli.json("status")["endpoints_in_trouble"] for lane in each["lanes"]]

        wait_until(lambda: bool(lanes()), "a slow lane")
        (endpoint,) = cli.json("status")["endpoints_in_trouble"]
        (lane,) = endpoint["lanes"]
        assert (endpoint["id"], endpoint["state"], lane["state"]) == (slow, "slow", "slow")
        assert lane["concurrency"] == 1
        assert (lane["latency_ms"] or 3000) >= 3000
        assert "slow, 1/1 in flight" in cli("status")


def test_who_is_at_an_event_is_told(cli: Cli, config: Path, database_dsn: str) -> None:
    (event_id,) = emit(database_dsn)
    assert cli.json("event", "show", event_id)["progress"] == "queued"
    said = everything(cli, "event", "show", event_id)
    assert "the event is queued, not yet fanned out; no daemon is running" in said
    assert "a running daemon is at it" not in said
    for arguments in ([], ["--status", "waiting"]):
        said = everything(cli, "delivery", "list", *arguments)
        assert "not listed yet: 1 event is queued, not yet fanned out; no daemon is running" in said
    assert "not listed yet: the event is queued" in everything(cli, "delivery", "list", "--event", event_id)
    assert "not listed yet" not in everything(cli, "delivery", "list", "--status", "failed")

    write_config(config.parent, database_dsn, retry={"schedule": ["0s", "1h"]}, delivery={"timeout": "2m"})
    with ReceiverProcess(mode="never") as receiver, DaemonProcess(config) as daemon:
        endpoint = add_endpoint(database_dsn, receiver.url("/silent"))
        receiver.wait_for(1, key="received")
        assert cli.json("event", "show", event_id)["progress"] == "claimed"
        assert "a running daemon is at it" in everything(cli, "event", "show", event_id)
        assert "not listed yet: 1 event is under way" in everything(cli, "delivery", "list")
        delivery = delivery_public_id(parse_event_id(event_id), endpoint)
        assert "a running daemon is at it" in cli("delivery", "show", delivery, exit_code=2)
        daemon.kill()
        wait_until(lambda: not alive(cli), "its death")
        assert cli.json("event", "show", event_id)["progress"] == "stranded"
        assert "is dead, and no daemon is running" in everything(cli, "event", "show", event_id)
        assert "1 event is left by a dead daemon" in cli("status")
        assert cli.json("status")["events_stranded"] == 1

        receiver.set_mode("500")
        with DaemonProcess(config):
            wait_until(lambda: cli.json("status")["deliveries_retrying"] == 1, "a retry")
            assert cli.json("event", "show", event_id)["progress"] == "done"
            assert "no daemon" not in everything(cli, "delivery", "list")
    assert "no daemon is running" in everything(cli, "delivery", "list")
    assert "no daemon is running" in everything(cli, "event", "show", event_id)


def test_the_exit_code_tells_a_sick_service_from_an_endpoint_in_trouble(cli: Cli, database_dsn: str) -> None:
    cli("status")
    assert "No daemon is running" in cli("status", "--exit-code", exit_code=1)
    enter_daemon(database_dsn, json.dumps(REPORT))
    assert "Everything is in order." in cli("status", "--exit-code")
    ep = endpoint_public_id(add_endpoint(database_dsn, "https://example.com/h"))
    query(database_dsn, "UPDATE postrider.endpoint SET failing_since = now()")
    said = cli("status", "--exit-code", exit_code=3)
    assert "The service is in order." in said
    assert "1 endpoint is in trouble." in said
    facts = json.loads(cli("status", "--exit-code", "--json", exit_code=3))
    assert (facts["service_problems"], len(facts["endpoint_problems"])) == ([], 1)
    cli("endpoint", "pause", ep)
    assert "1 endpoint is paused" in cli("status", "--exit-code")
    cli("endpoint", "resume", ep)
    query(database_dsn, "UPDATE postrider.daemon SET reported_at = now() - interval '20 seconds'")
    cli("status", "--exit-code", exit_code=1)


def test_endpoints_that_get_nothing_are_listed_but_not_those_that_a_person_paused(
    cli: Cli, database_dsn: str
) -> None:
    ep = endpoint_public_id(add_endpoint(database_dsn, "https://example.com/h"))
    cli("endpoint", "pause", ep)
    query(
        database_dsn,
        """INSERT INTO postrider.delivery (event_id, endpoint_id, workspace_id, state, updated_at)
           SELECT postrider.new_event_id(), id, workspace_id, 'waiting', now()
           FROM postrider.endpoint, generate_series(1, 4)""",
    )
    facts = cli.json("status")
    assert facts["endpoints_in_trouble"] == []
    assert (facts["endpoints_paused"], facts["deliveries_waiting_for_paused"]) == (1, 4)
    assert "1 endpoint is paused; 4 of the deliveries that wait are kept for that" in cli("status")
    assert facts["deliveries_waiting"] == 4
    assert facts["oldest_waiting_age_s"] < 60
    query(database_dsn, "UPDATE postrider.endpoint SET state = 'disabled', disabled_reason = 'HTTP 410'")
    said = cli("status")
    assert "example.com" in said
    assert "HTTP 410" in said
    (disabled,) = cli.json("status")["endpoints_in_trouble"]
    assert (disabled["id"], disabled["state"], disabled["deliveries_waiting"]) == (ep, "disabled", 4)


def test_a_count_that_reached_its_limit_says_so(cli: Cli, database_dsn: str) -> None:
    add_endpoint(database_dsn, "https://example.com/h", state=EndpointState.DISABLED)
    query(
        database_dsn,
        """INSERT INTO postrider.delivery (event_id, endpoint_id, workspace_id, state, due, updated_at)
           SELECT postrider.new_event_id(), id, workspace_id, s, now(), now()
           FROM postrider.endpoint, generate_series(1, 100001), unnest(ARRAY['waiting', 'retrying']) AS s""",
    )
    summary, _, table = cli("status").partition("Endpoints in trouble")
    assert "100,000+ deliveries wait in the database" in summary
    assert "100,000+ are to be retried, the next now" in summary
    assert table.count("100,000+") == 2


def test_the_facts_have_stable_names(cli: Cli, database_dsn: str) -> None:
    add_endpoint(database_dsn, "https://example.com/h")
    query(database_dsn, "UPDATE postrider.endpoint SET id = 7")
    enter_daemon(database_dsn, json.dumps(REPORT | {"lanes": [LANE]}))
    facts = cli.json("status")
    assert set(facts) == {
        "at", "problems", "service_problems", "endpoint_problems", "count_limits", "events", "events_queued",
        "events_claimed", "events_stranded", "oldest_event_age_s", "deliveries_waiting", "endpoints_paused",
        "deliveries_waiting_for_paused", "captured_rows_set_aside",
        "oldest_waiting_age_s", "deliveries_retrying", "next_retry_at", "succeeded_per_s", "retried_per_s",
        "failed_per_s", "endpoints_in_trouble_count", "endpoints_in_trouble", "daemons",
    }  # fmt: skip
    (endpoint,) = facts["endpoints_in_trouble"]
    assert set(endpoint) == {
        "id", "workspace", "url", "state", "since", "disabled_reason", "deliveries_waiting",
        "deliveries_retrying", "lanes",
    }  # fmt: skip
    (lane,) = endpoint["lanes"]
    assert set(lane) == {"daemon"} | (set(LANE) - {"endpoint_id"})
    (daemon,) = facts["daemons"]
    assert set(daemon) == {
        "id", "host", "pid", "version", "started_at", "alive", "report_age_s", "window_s", "in_flight",
        "slots", "queued", "succeeded_per_s", "retried_per_s", "failed_per_s",
    }  # fmt: skip
    assert (endpoint["state"], facts["failed_per_s"]) == ("broken", 3.0)
    assert "answers take 1,500 ms (no answer)" in cli("status")


def test_a_daemon_that_lives_but_no_longer_reports_is_told(cli: Cli, database_dsn: str) -> None:
    enter_daemon(database_dsn, json.dumps(REPORT))
    assert cli.json("status")["problems"] == []
    query(database_dsn, "UPDATE postrider.daemon SET reported_at = now() - interval '20 seconds'")
    facts = cli.json("status")
    assert "is connected, but has not reported since" in facts["problems"][0]
    assert facts["succeeded_per_s"] is None


@pytest.mark.parametrize(
    "report",
    [
        "{}",
        "[]",
        "3",
        "null",
        json.dumps({key: value for key, value in REPORT.items() if key != "slots"}),
        json.dumps(REPORT | {"in_flight": "many"}),
        json.dumps(REPORT | {"lanes": [LANE | {"endpoint_id": 2**70}]}),
    ],
)
def test_a_report_of_unknown_shape_is_ignored(cli: Cli, database_dsn: str, report: str) -> None:
    enter_daemon(database_dsn, report)
    (daemon,) = cli.json("status")["daemons"]
    assert (daemon["alive"], daemon["slots"]) == (True, None)
    assert "elsewhere" in cli("status")


def test_a_later_version_may_add_to_a_report() -> None:
    report = read_report(json.dumps(REPORT | {"lanes": [LANE | {"mood": 1}], "weather": "fine"}))
    assert report is not None
    assert report.lanes[0].latency_ms == 1500


def test_mistakes_and_a_database_that_is_away(cli: Cli, tmp_path: Path) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text("[databse]\n")
    assert "databse" in Cli(bad)("status", exit_code=2)
    away = write_config(tmp_path, "postgresql://nobody@127.0.0.1:1/none", "away")
    Cli(away)("status", exit_code=1)


async def test_a_count_for_metrics_that_takes_too_long_is_given_up(database_dsn: str) -> None:
    database = Database(database_dsn, pool_size=2)
    await database.open()
    try:
        async with database.transaction() as locking, database.connection() as connection:
            await locking.execute("LOCK TABLE postrider.endpoint")
            assert await totals.count(connection, timeout_s=0.1) is None
            assert database.available
        async with database.connection() as connection:
            assert await totals.count(connection, timeout_s=5) is not None
    finally:
        await database.close()
