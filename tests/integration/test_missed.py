"""Events while an endpoint is disabled: they are told as missed, counted, and sent when a person asks."""

import asyncio
import signal
import subprocess
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest

from postrider.domain.audit import EVERYWHERE
from postrider.domain.model import EndpointState, endpoint_public_id, parse_event_id
from postrider.edges.clock import SystemClock
from postrider.edges.resources import sql_dir
from postrider.engine.partitions import PartitionKeeper, Retention
from postrider.operations.recovery import Tally, count_missed, recover_missed, spans
from postrider.store import missed as missed_store
from postrider.store.database import Connection, Database
from postrider.store.migrations import read_schema
from postrider.store.missed import Period
from tests.support.acting import ACTOR, backend_on
from tests.support.cli import Cli
from tests.support.daemon_process import (
    QUEUED,
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
from tests.support.logins import login
from tests.support.receiver_process import ReceiverProcess

STATE = "UPDATE postrider.endpoint SET state = $2, disabled_reason = 'HTTP 410' WHERE id = $1"


def set_state(dsn: str, endpoint: int, state: str) -> None:
    query(dsn, STATE, endpoint, state)


def fanned_out(dsn: str) -> None:
    wait_until(lambda: query(dsn, QUEUED)[0][0] == 0, "an empty queue")


def test_what_a_410_costs_is_told_counted_and_sent(database_dsn: str, tmp_path: Path) -> None:
    """From the first event that was missed to its arrival, by what each command says."""
    cli = Cli(write_config(tmp_path, database_dsn))
    with ReceiverProcess(SECRET) as receiver:
        receiver.set_mode("410", "/a")
        endpoint = add_endpoint(database_dsn, receiver.url("/a"), "deal.*", exclusions=("deal.deleted",))
        ep = endpoint_public_id(endpoint)
        with DaemonProcess(cli.config) as daemon:
            emit(database_dsn)
            daemon.wait_for_log("endpoint.disabled")
            missed = emit(database_dsn, 3)
            other = emit(database_dsn, 1, "contact.created") + emit(database_dsn, 1, "deal.deleted")
            fanned_out(database_dsn)

            shown = cli("event", "show", missed[0])
            assert f"{ep} missed it: disabled since 20" in shown
            assert "HTTP 410" in shown
            facts = cli.json("event", "show", missed[0])
            assert [each["endpoint"] for each in facts["missed"]] == [ep]
            assert cli.json("event", "show", other[0])["missed"] == []
            assert cli.json("event", "show", other[1])["missed"] == []
            delivery = f"dlv_{missed[0].removeprefix('evt_')}{endpoint:016x}"
            assert "postrider event resend" in cli("delivery", "show", delivery, exit_code=2)
            assert "disabled since" in str(cli.fails("delivery", "retry", delivery))

            receiver.set_mode("ok", "/a")
            resumed = cli("endpoint", "resume", ep)
            assert "it missed 3 events while it was disabled" in resumed
            assert "--recover" in resumed
            after = emit(database_dsn, 2)
            receiver.wait_for(2, path="/a")
            assert cli.json("endpoint", "resume", ep, "--recover")["recovered"] == 3
            receiver.wait_for(5, path="/a")
            assert set(receiver.ids("/a")) >= {*missed, *after}
            again = cli.json("endpoint", "resume", ep, "--recover")
            assert (again["resumed"], again["missed"], again["recovered"]) == (False, 0, 0)
            assert cli.json("event", "show", missed[0])["missed"] == []
            assert_settled(database_dsn, ("succeeded", "failed"))
            assert all(count == 1 for each, count in receiver.ids("/a").items() if each in missed)


def test_what_had_a_delivery_when_it_was_disabled_waits_and_is_not_missed(
    database_dsn: str, tmp_path: Path
) -> None:
    cli = Cli(write_config(tmp_path, database_dsn))
    with ReceiverProcess(SECRET, mode="500") as receiver:
        endpoint = add_endpoint(database_dsn, receiver.url("/a"))
        with DaemonProcess(cli.config) as daemon:
            retried = emit(database_dsn)
            daemon.wait_for_log("delivery.retrying")
            set_state(database_dsn, endpoint, "paused")
            waiting = emit(database_dsn)
            fanned_out(database_dsn)
            set_state(database_dsn, endpoint, "disabled")
            emit(database_dsn)
            fanned_out(database_dsn)
            receiver.set_mode("ok")
            resumed = cli.json("endpoint", "resume", endpoint_public_id(endpoint))
            assert (resumed["waiting"], resumed["missed"]) == (2, 1)
            receiver.wait_for(2)
            assert set(receiver.ids("/a")) == {*retried, *waiting}


@pytest.mark.parametrize("state", ["active", "paused", "disabled"])
def test_any_event_is_sent_to_an_endpoint_that_matches_it(
    database_dsn: str, tmp_path: Path, state: str
) -> None:
    cli = Cli(write_config(tmp_path, database_dsn))
    event = emit(database_dsn)[0]
    with ReceiverProcess(SECRET) as receiver:
        if state == "active":
            with DaemonProcess(cli.config):
                fanned_out(database_dsn)
        else:
            query(database_dsn, "DELETE FROM postrider.pending")
        endpoint = add_endpoint(database_dsn, receiver.url("/a"), state=EndpointState(state))
        ep = endpoint_public_id(endpoint)
        if state != "active":
            assert cli.json("event", "resend", event, "--endpoint", ep)["endpoint_state"] == state
            assert query(database_dsn, "SELECT state FROM postrider.delivery")[0]["state"] == "waiting"
            assert "waits" in cli.fails("event", "resend", event, "--endpoint", ep)
            return
        with DaemonProcess(cli.config):
            for times in (1, 2):
                cli("event", "resend", event, "--endpoint", ep)
                receiver.wait_for(times, "received", path="/a")
                assert_settled(database_dsn)
        assert receiver.ids("/a") == {event: 2}


def test_resend_refuses_what_does_not_match(database_dsn: str, tmp_path: Path) -> None:
    cli = Cli(write_config(tmp_path, database_dsn))
    event = emit(database_dsn)[0]
    made_up = emit(database_dsn)[0]
    query(database_dsn, "UPDATE postrider.outbox SET test = true WHERE id = $1", parse_event_id(made_up))
    deals, contacts, elsewhere, unverified, active = (
        endpoint_public_id(add_endpoint(database_dsn, "http://127.0.0.1:9/", *patterns, **fields))
        for patterns, fields in (
            (("deal.*",), {"state": EndpointState.DELETED}),
            (("contact.*",), {}),
            ((), {"workspace_id": "other"}),
            ((), {"state": EndpointState.UNVERIFIED}),
            ((), {}),
        )
    )
    for ep, code, said in (
        (deals, 1, "deleted"),
        (contacts, 2, "not subscribed to deal.updated"),
        (elsewhere, 2, "another workspace"),
        (unverified, 1, "handshake"),
        (active, 1, "being delivered at this moment"),
        ("ep_" + "0" * 15 + "1", 2, "there is no endpoint"),
    ):
        assert said in cli.fails("event", "resend", event, "--endpoint", ep, exit_code=code)
    assert "a test event" in cli("event", "resend", made_up, "--endpoint", active, exit_code=2)
    assert query(database_dsn, "SELECT count(*) FROM postrider.delivery")[0][0] == 0


def test_an_id_by_which_an_event_is_shown_resends_it(database_dsn: str, tmp_path: Path) -> None:
    """Heffl's bodies have it so, and `event show` says how to send what was missed."""
    cli = Cli(write_config(tmp_path, database_dsn))
    ep = endpoint_public_id(add_endpoint(database_dsn, "http://127.0.0.1:9/", state=EndpointState.DISABLED))
    written = emit(database_dsn)[0].replace("evt_", "msg_")
    query(database_dsn, "DELETE FROM postrider.pending")
    assert cli.json("event", "show", written)["missed"]
    assert cli.json("event", "resend", written, "--endpoint", ep)["endpoint_state"] == "disabled"


def test_under_load_and_changes_of_state_every_event_is_delivered_or_missed_and_recovered_once(
    database_dsn: str, tmp_path: Path
) -> None:
    cli = Cli(write_config(tmp_path, database_dsn))
    with ReceiverProcess(SECRET) as receiver:
        endpoint = add_endpoint(database_dsn, receiver.url("/a"))
        with DaemonProcess(cli.config), DaemonProcess(cli.config):
            writers = Writers(database_dsn, writers=4, each=100_000)
            for _ in range(6):
                time.sleep(0.3)
                set_state(database_dsn, endpoint, "disabled")
                time.sleep(0.3)
                set_state(database_dsn, endpoint, "active")
            recovering = subprocess.Popen(
                cli.command("endpoint", "resume", endpoint_public_id(endpoint), "--recover"),
                stdout=subprocess.DEVNULL,
            )
            ids = writers.stop()
            assert recovering.wait(60) == 0
            fanned_out(database_dsn)
            recorded = query(database_dsn, "SELECT count(*) FROM postrider.delivery")[0][0]
            assert recorded == len(ids)
            receiver.wait_for(len(ids), key="distinct", path="/a", timeout=60)
            assert receiver.stats()["duplicates"] == 0
            assert set(receiver.ids("/a")) == set(ids)


def test_counting_ends_however_fast_events_come(database_dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = add_endpoint(database_dsn, "http://127.0.0.1:9/", state=EndpointState.DISABLED)
    emit(database_dsn)
    query(database_dsn, "DELETE FROM postrider.pending")

    looks = 0
    look = missed_store.events

    async def beside_writers(connection: Connection, *what: Any) -> list[tuple[UUID, str]]:
        nonlocal looks
        found = await look(connection, *what)
        await connection.execute("SELECT postrider.emit('deal.updated', '{}')")
        looks += 1
        assert looks < 10
        return found

    async def story() -> Tally:
        async with backend_on(database_dsn) as backend:
            return await count_missed(backend, ACTOR, EVERYWHERE, endpoint)

    monkeypatch.setattr(missed_store, "events", beside_writers)
    assert asyncio.run(story()).events == 1


def test_a_recovery_that_was_killed_goes_on(database_dsn: str, tmp_path: Path) -> None:
    cli = Cli(write_config(tmp_path, database_dsn))
    endpoint = add_endpoint(database_dsn, "http://127.0.0.1:9/", state=EndpointState.DISABLED)
    emit(database_dsn, 20_000)
    query(database_dsn, "DELETE FROM postrider.pending")
    command = cli.command("endpoint", "resume", endpoint_public_id(endpoint), "--recover")
    doomed = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    count = "SELECT count(*) FROM postrider.delivery"
    wait_until(lambda: query(database_dsn, count)[0][0] > 0, "the first page")
    doomed.send_signal(signal.SIGKILL)
    doomed.wait()
    before = query(database_dsn, count)[0][0]
    assert before % 1000 == 0
    again = cli.json("endpoint", "resume", endpoint_public_id(endpoint), "--recover")
    assert again["recovered"] == 20_000 - before
    assert query(database_dsn, count)[0][0] == 20_000
    rows = query(database_dsn, "SELECT DISTINCT state, bytes FROM postrider.delivery WHERE bytes < 100")
    assert {row["state"] for row in rows} == {"waiting"}


def test_who_recovers_is_told_that_the_endpoint_was_disabled_again(database_dsn: str, tmp_path: Path) -> None:
    cli = Cli(write_config(tmp_path, database_dsn))
    endpoint = add_endpoint(database_dsn, "http://127.0.0.1:9/", state=EndpointState.DISABLED)
    emit(database_dsn)
    query(database_dsn, "DELETE FROM postrider.pending")
    for statement in (
        """CREATE FUNCTION answer_410() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             UPDATE postrider.endpoint SET state = 'disabled'; RETURN NULL; END $$""",
        "CREATE TRIGGER answer_410 AFTER INSERT ON postrider.delivery EXECUTE FUNCTION answer_410()",
    ):
        query(database_dsn, statement)
    said = cli.fails("endpoint", "resume", endpoint_public_id(endpoint), "--recover", exit_code=0)
    assert "it is disabled" in said


def test_an_event_that_committed_or_was_fanned_out_after_the_change_is_no_gap(database_dsn: str) -> None:
    """It was emitted before the endpoint was disabled, and by then neither visible nor fanned out."""
    endpoint = add_endpoint(database_dsn, "http://127.0.0.1:9/")
    query(database_dsn, "UPDATE postrider.endpoint SET created_at = created_at - interval '1 day'")
    emit(database_dsn)
    old = UUID(int=int((datetime.now(UTC) - timedelta(hours=3)).timestamp() * 1000) << 80)
    for table, column in (("outbox", "id"), ("pending", "event_id")):
        query(database_dsn, f"UPDATE postrider.{table} SET {column} = $1", old)
    set_state(database_dsn, endpoint, "disabled")
    emit(database_dsn)

    async def missed() -> Tally:
        async with backend_on(database_dsn) as backend:
            return await count_missed(backend, ACTOR, EVERYWHERE, endpoint)

    assert asyncio.run(missed()).events == 0, "they may be delivered yet"
    query(database_dsn, "DELETE FROM postrider.pending WHERE event_id = $1", old)
    query(
        database_dsn,
        """WITH taken AS (DELETE FROM postrider.pending RETURNING event_id)
           INSERT INTO postrider.claim (owner, event_ids) SELECT 1, array_agg(event_id) FROM taken""",
    )
    tally = asyncio.run(missed())
    assert (tally.events, tally.under_way) == (1, 1)
    query(database_dsn, "DELETE FROM postrider.claim")
    set_state(database_dsn, endpoint, "active")
    assert asyncio.run(missed()) == Tally(2, old, 0)


def test_an_event_that_was_fanned_out_long_before_the_resumption_committed_is_missed(
    database_dsn: str, tmp_path: Path
) -> None:
    """Its transaction was left open, or a standby did not answer."""
    cli = Cli(write_config(tmp_path, database_dsn))
    endpoint = add_endpoint(database_dsn, "http://127.0.0.1:9/", state=EndpointState.DISABLED)
    event = parse_event_id(emit(database_dsn)[0])
    query(database_dsn, "DELETE FROM postrider.pending")
    set_state(database_dsn, endpoint, "active")
    later = UUID(int=event.int + (50 * 60_000 << 80))
    query(database_dsn, "UPDATE postrider.outbox SET id = $1 WHERE id = $2", later, event)
    assert cli.json("event", "show", f"evt_{later.hex}")["missed"]


def test_an_event_of_a_transaction_that_was_open_when_the_endpoint_was_disabled_is_missed(
    database_dsn: str, tmp_path: Path
) -> None:
    cli = Cli(write_config(tmp_path, database_dsn))
    endpoint = add_endpoint(database_dsn, "http://127.0.0.1:9/")
    query(database_dsn, "UPDATE postrider.endpoint SET created_at = created_at - interval '1 day'")
    with DaemonProcess(cli.config) as daemon, psycopg.connect(database_dsn) as crm:
        daemon.wait_for_log("daemon.started")
        row = crm.execute("SELECT postrider.emit('deal.updated', '{}')").fetchone()
        assert row is not None
        time.sleep(0.1)
        set_state(database_dsn, endpoint, "disabled")
        crm.commit()
        fanned_out(database_dsn)
    assert cli.json("event", "show", row[0])["missed"]


def test_recovery_waits_for_claims_that_are_older_than_the_resumption(database_dsn: str) -> None:
    endpoint = add_endpoint(database_dsn, "http://127.0.0.1:9/", state=EndpointState.DISABLED)
    event = parse_event_id(emit(database_dsn)[0])
    query(
        database_dsn,
        """WITH taken AS (DELETE FROM postrider.pending RETURNING event_id)
           INSERT INTO postrider.claim (owner, event_ids) SELECT 1, array_agg(event_id) FROM taken""",
    )
    set_state(database_dsn, endpoint, "active")

    async def story() -> Tally:
        async with backend_on(database_dsn) as backend:
            recovering = asyncio.create_task(recover_missed(backend, ACTOR, EVERYWHERE, endpoint))
            await asyncio.sleep(0.5)
            async with backend.database.connection() as connection:
                await connection.execute("DELETE FROM postrider.claim")
            return await recovering

    assert asyncio.run(story()) == Tally(1, event, 0)
    rows = query(database_dsn, "SELECT event_id, state FROM postrider.delivery")
    assert [tuple(row) for row in rows] == [(event, "waiting")]


def test_retention_forgets_periods_with_their_events(database_dsn: str) -> None:
    past, present = (add_endpoint(database_dsn, "http://127.0.0.1:9/") for _ in range(2))
    for endpoint in (past, present):
        set_state(database_dsn, endpoint, "disabled")
        set_state(database_dsn, endpoint, "active")
    query(
        database_dsn,
        """UPDATE postrider.disabled_period SET until = until - interval '9 days',
             last_event = postrider.first_id_at(now() - interval '9 days') WHERE endpoint_id = $1""",
        past,
    )

    async def story() -> None:
        database = Database(database_dsn, pool_size=2)
        await database.open()
        keeper = PartitionKeeper(
            database=database,
            retention=Retention(7 * 86_400.0, 7 * 86_400.0),
            clock=SystemClock(),
        )
        await keeper.drop_before("outbox", timedelta(days=7))
        await database.close()

    asyncio.run(story())
    assert [row[0] for row in query(database_dsn, "SELECT endpoint_id FROM postrider.disabled_period")] == [
        present
    ]


def test_a_login_of_the_daemons_may_change_states_and_recover(database_dsn: str, tmp_path: Path) -> None:
    endpoint = add_endpoint(database_dsn, "http://127.0.0.1:9/")
    event = emit(database_dsn)[0]
    with login(database_dsn, member_of=["postrider_daemon"]) as daemon_dsn:
        set_state(daemon_dsn, endpoint, "disabled")
        query(daemon_dsn, "DELETE FROM postrider.pending")
        cli = Cli(write_config(tmp_path, daemon_dsn))
        assert cli.json("event", "show", event)["missed"]
        assert cli.json("endpoint", "resume", endpoint_public_id(endpoint), "--recover")["recovered"] == 1


def test_an_endpoint_that_was_disabled_before_the_upgrade_has_a_period(
    empty_database_dsn: str, tmp_path: Path
) -> None:
    cli = Cli(write_config(tmp_path, empty_database_dsn))
    numbers = [each.number for each in read_schema(sql_dir()).migrations if each.name == "disabled_periods"]
    cli("migrate", "--to", str(numbers[0] - 1))
    endpoint = add_endpoint(empty_database_dsn, "http://127.0.0.1:9/", state=EndpointState.DISABLED)
    event = emit(empty_database_dsn)[0]
    query(empty_database_dsn, "DELETE FROM postrider.pending")
    query(
        empty_database_dsn,
        """UPDATE postrider.endpoint SET created_at = created_at - interval '9 days', failing_since = now(),
             updated_at = now() + interval '1 day'""",  # its URL was changed a day later
    )
    cli("migrate")
    missed = cli.json("event", "show", event)["missed"]
    assert [each["endpoint"] for each in missed] == [endpoint_public_id(endpoint)]


def test_periods_that_overlap_are_looked_through_once() -> None:
    def period(first: int, last: int | None) -> Period:
        return Period(UUID(int=first), None if last is None else UUID(int=last))

    found = spans([period(7, None), period(1, 3), period(2, 5), period(8, 9)])
    assert [(first.int, beyond.int) for first, beyond in found] == [(1, 5), (7, 2**128 - 1)]
