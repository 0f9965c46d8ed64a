"""What people do with events and deliveries: noted in the audit log, and within their scope."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from postrider.domain.audit import EVERYWHERE, Scope
from postrider.domain.errors import PostriderError
from postrider.domain.lists import DeliveryFilter, DeliveryRow, EventFilter
from postrider.domain.model import (
    DeliveryKey,
    DeliveryState,
    delivery_public_id,
    endpoint_public_id,
    event_public_id,
    first_event_id,
)
from postrider.operations import deliveries, emit, events, status
from postrider.operations.delivery_absent import unlisted
from postrider.operations.emit import NewEvent
from postrider.operations.work import UnitOfWork
from tests.support.acting import ACTOR, backend_on, working_on
from tests.support.cli import Cli
from tests.support.daemon_process import add_endpoint, query, write_config

MINE, OTHERS = Scope("ws_1"), Scope("ws_2")
TABLES = ("outbox", "delivery", "attempt", "endpoint", "pending", "audit_log")


def add_delivery(dsn: str, state: str, *, hours: int = 0, endpoint_id: int | None = None) -> DeliveryKey:
    """A delivery of an event in `ws_1`, emitted so many hours ago."""
    if endpoint_id is None:
        endpoint_id = add_endpoint(dsn, "https://hooks.example/a", workspace_id="ws_1")
    event_id = first_event_id(datetime.now(UTC) - timedelta(hours=hours))
    query(
        dsn,
        """INSERT INTO postrider.outbox (id, workspace_id, type, object_type, object_id, data)
           VALUES ($1, 'ws_1', 'deal.updated', 'deal', 'dl_1', '{}')""",
        event_id,
    )
    query(
        dsn,
        """INSERT INTO postrider.delivery (event_id, endpoint_id, workspace_id, state, attempts, due, owner,
                                           updated_at)
           VALUES ($1, $2, 'ws_1', $3, 1, now(), 4711, now())""",
        event_id, endpoint_id, state,
    )  # fmt: skip
    query(
        dsn,
        """INSERT INTO postrider.attempt
             (event_id, endpoint_id, workspace_id, number, started_at, duration_ms, status)
           VALUES ($1, $2, 'ws_1', 1, now(), 1, 503)""",
        event_id, endpoint_id,
    )  # fmt: skip
    return event_id, endpoint_id


def audited(dsn: str) -> list[tuple[Any, ...]]:
    rows = query(
        dsn,
        """SELECT who, action, subject, workspace_id, before::text AS before, after::text AS after
           FROM postrider.audit_log ORDER BY id""",
    )
    return [tuple(row) for row in rows]


def stored(dsn: str) -> list[list[str]]:
    """Every row of every table that acts could change."""
    return [
        sorted(row[0] for row in query(dsn, f"SELECT t::text FROM postrider.{table} AS t"))
        for table in TABLES
    ]


async def refused(act: Awaitable[object]) -> str:
    with pytest.raises(PostriderError) as caught:
        await act
    return caught.value.message


async def test_another_workspaces_scope_sees_nothing_and_changes_nothing(database_dsn: str) -> None:
    loop = asyncio.get_running_loop()
    keys = [
        await loop.run_in_executor(None, partial(add_delivery, database_dsn, state, hours=hours))
        for hours, state in enumerate(DeliveryState)
    ]
    before = await loop.run_in_executor(None, stored, database_dsn)
    anybody: list[dict[str, Any]] = [{}, {"workspace_id": "ws_1"}, {"workspace_id": "ws_2"}]
    async with backend_on(database_dsn) as backend:
        for chosen in anybody:
            for ids in (
                {}, {"object_id": "dl_1"}, {"object_type": "deal", "type_pattern": "deal.*"},
                {"until": datetime.now(UTC) + timedelta(hours=1)},
            ):  # fmt: skip
                for after, newest_first in ((None, True), (keys[0][0], True), (keys[-1][0], False)):
                    async with backend.begin(ACTOR, OTHERS) as work:
                        found = await events.list_events(
                            work,
                            EventFilter(**chosen, **ids),
                            after=after,
                            newest_first=newest_first,
                            limit=9,
                        )
                        assert found.rows == []
        for state in (None, *DeliveryState):
            for chosen in (*anybody, {"event_id": keys[0][0]}, {"endpoint_id": keys[0][1]}):
                for after_key in (None, keys[0]):
                    async with backend.begin(ACTOR, OTHERS) as work:
                        wanted = DeliveryFilter(state=state, **chosen)
                        listed = await deliveries.list_deliveries(work, wanted, after=after_key, limit=9)
                        assert (listed.rows, listed.looked_to) == ([], None)
                        await unlisted(work, wanted.event_id, state, listed.rows)
                if state in deliveries.RETRIABLE:
                    assert await deliveries.count(backend, ACTOR, OTHERS, wanted) == 0
                    assert (await deliveries.retry_all(backend, ACTOR, OTHERS, wanted)).queued == []
        for key in keys:
            text, name = event_public_id(key[0]), delivery_public_id(*key)
            acts: list[tuple[Callable[[UnitOfWork], Awaitable[object]], str]] = [
                (partial(events.get, text=text), f"there is no event {text}"),
                (partial(events.show, text=text), f"there is no event {text}"),
                (partial(events.resend, text=text, endpoint_id=key[1]), f"there is no event {text}"),
                (partial(deliveries.show, key=key), f"there is no delivery {name}"),
                (partial(deliveries.cancel, key=key), f"there is no delivery {name}"),
                (status.look, "the status concerns all workspaces"),
                (
                    partial(emit.emit, new=NewEvent(type="a.b", data="{}", workspace_id="ws_1")),
                    "there is no workspace 'ws_1'",
                ),
            ]
            for act, said in acts:
                async with backend.begin(ACTOR, OTHERS) as work:
                    assert await refused(act(work)) == said
            async with backend.begin(ACTOR, OTHERS) as work:
                retried = await deliveries.retry(work, [key])
            assert (retried.queued, retried.refused) == ([], {key: "there is no such delivery"})
    assert await loop.run_in_executor(None, stored, database_dsn) == before


async def test_a_follower_sees_what_comes_in_his_workspace(database_dsn: str) -> None:
    stop = asyncio.Event()
    async with backend_on(database_dsn) as backend:

        async def announce() -> None:
            async with backend.begin(ACTOR, EVERYWHERE) as work:
                for workspace in ("ws_1", "ws_2"):
                    await emit.emit(work, NewEvent(type="a.b", data="{}", workspace_id=workspace))

        announced = asyncio.create_task(announce())
        seen = []
        async for each in events.follow(backend, ACTOR, OTHERS, EventFilter(), stop):
            seen.append(each.workspace_id)
            stop.set()
        await announced
    assert seen == ["ws_2"]


async def test_an_event_that_names_no_workspace_is_of_the_one_of_its_scope(database_dsn: str) -> None:
    async with backend_on(database_dsn) as backend:
        for scope, workspace in ((MINE, "ws_1"), (EVERYWHERE, "default")):
            async with backend.begin(ACTOR, scope) as work:
                name = await emit.emit(work, NewEvent(type="a.b", data="{}"))
                assert (await events.get(work, name)).workspace_id == workspace


async def test_the_own_workspace_is_seen(database_dsn: str) -> None:
    loop = asyncio.get_running_loop()
    key = await loop.run_in_executor(None, add_delivery, database_dsn, "failed")
    async with working_on(database_dsn, MINE) as work:
        shown = await events.show(work, event_public_id(key[0]))
        assert [each.key for each in shown.deliveries] == [key]
        for chosen in (
            DeliveryFilter(), DeliveryFilter(state=DeliveryState.FAILED), DeliveryFilter(endpoint_id=key[1]),
            DeliveryFilter(event_id=key[0], workspace_id="ws_1"),
        ):  # fmt: skip
            found = await deliveries.list_deliveries(work, chosen, after=None, limit=9)
            assert [each.key for each in found.rows] == [key], chosen
        for event_filter in (EventFilter(object_type="deal"), EventFilter(workspace_id="ws_1")):
            listed = await events.list_events(work, event_filter, after=None, newest_first=True, limit=9)
            assert [each.id for each in listed.rows] == [key[0]]
        (attempt,) = (await deliveries.show(work, key)).attempts
        assert attempt.number == 1
        assert (await emit.emit(work, NewEvent(type="a.b", data="{}", workspace_id="ws_1"))).startswith(
            "evt_"
        )


@pytest.mark.parametrize("state", ["waiting", "retrying"])
def test_a_delivery_that_waits_is_cancelled_and_may_be_sent_again(
    database_dsn: str, tmp_path: Path, state: str
) -> None:
    cli = Cli(write_config(tmp_path, database_dsn))
    key = add_delivery(database_dsn, state)
    name = delivery_public_id(*key)
    assert cli("delivery", "cancel", name) == f"cancelled {name}\n"
    shown = cli.json("delivery", "show", name)
    assert (shown["state"], shown["due"], shown["reason"]) == ("cancelled", None, "a person cancelled it")
    assert f"{name} is over already: it is cancelled" in cli.fails("delivery", "cancel", name)
    assert cli.json("delivery", "retry", name, name)["queued"] == [name]
    assert cli.json("delivery", "cancel", name)["state"] == "cancelled"
    evt, ep = event_public_id(key[0]), endpoint_public_id(key[1])
    assert cli.json("event", "resend", evt, "--endpoint", ep)["delivery"] == name
    assert [row[1:] for row in audited(database_dsn)] == [
        ("delivery.cancelled", name, "ws_1", f'{{"state":"{state}"}}', '{"state":"cancelled"}'),
        ("delivery.retried", name, "ws_1", '{"state":"cancelled"}', '{"state":"waiting"}'),
        ("delivery.cancelled", name, "ws_1", '{"state":"waiting"}', '{"state":"cancelled"}'),
        ("delivery.retried", name, "ws_1", '{"state":"cancelled"}', '{"state":"waiting"}'),
    ]


def test_what_is_over_or_was_never_there_is_not_cancelled(database_dsn: str, tmp_path: Path) -> None:
    cli = Cli(write_config(tmp_path, database_dsn))
    for hours, state in enumerate(("succeeded", "failed")):
        name = delivery_public_id(*add_delivery(database_dsn, state, hours=hours))
        assert f"it is {state}" in cli.fails("delivery", "cancel", name)
    name = delivery_public_id(*add_delivery(database_dsn, "sending", hours=3))
    assert "is being sent at this moment" in cli.fails("delivery", "cancel", name)
    assert "there is no delivery" in cli(
        "delivery", "cancel", delivery_public_id(UUID(int=7), 7), exit_code=2
    )
    assert "is not a delivery id" in cli("delivery", "cancel", "evt_1", exit_code=2)
    assert audited(database_dsn) == []


async def cancel_beside(dsn: str, key: DeliveryKey, change: str) -> asyncio.Task[DeliveryRow]:
    """Cancel a delivery while a transaction that has made a change of it, and commits it then, holds it."""
    other, onlooker = await asyncpg.connect(dsn), await asyncpg.connect(dsn)
    try:
        transaction = other.transaction()
        await transaction.start()
        await other.execute(change)

        async def cancel() -> DeliveryRow:
            async with working_on(dsn) as work:
                return await deliveries.cancel(work, key)

        cancelling = asyncio.create_task(cancel())
        while not await onlooker.fetchval(
            """SELECT EXISTS (SELECT FROM pg_stat_activity
                              WHERE datname = current_database() AND wait_event_type = 'Lock')"""
        ):
            await asyncio.sleep(0.01)
        await transaction.commit()
        await asyncio.wait([cancelling])
        return cancelling
    finally:
        await other.close()
        await onlooker.close()


async def test_what_a_daemon_takes_at_the_same_moment_is_not_cancelled(database_dsn: str) -> None:
    key = await asyncio.to_thread(add_delivery, database_dsn, "waiting")
    change = "UPDATE postrider.delivery SET state = 'sending', owner = 1"
    assert "is being sent at this moment" in await refused(await cancel_beside(database_dsn, key, change))
    rows = await asyncio.to_thread(query, database_dsn, "SELECT state FROM postrider.delivery")
    assert rows[0][0] == "sending"


async def test_the_line_of_a_cancellation_tells_what_was_cancelled(database_dsn: str) -> None:
    """Not what was read before."""
    key = await asyncio.to_thread(add_delivery, database_dsn, "waiting")
    change = "UPDATE postrider.delivery SET state = 'retrying'"
    assert (await (await cancel_beside(database_dsn, key, change))).state is DeliveryState.CANCELLED
    (line,) = await asyncio.to_thread(audited, database_dsn)
    assert line[-2:] == ('{"state":"retrying"}', '{"state":"cancelled"}')


async def test_a_bulk_retry_leaves_one_line_with_its_filter_and_its_count(database_dsn: str) -> None:
    loop = asyncio.get_running_loop()
    endpoint_id = await loop.run_in_executor(
        None, lambda: add_endpoint(database_dsn, "https://hooks.example/a", workspace_id="ws_1")
    )
    for hours in range(3):
        add = partial(add_delivery, database_dsn, "failed", hours=hours + 1, endpoint_id=endpoint_id)
        await loop.run_in_executor(None, add)
    chosen = DeliveryFilter(
        endpoint_id=endpoint_id, state=DeliveryState.FAILED, since=datetime.now(UTC) - timedelta(hours=2.5)
    )
    async with backend_on(database_dsn) as backend:
        done = await deliveries.retry_all(backend, ACTOR, EVERYWHERE, chosen)
        assert len(done.queued) == 2
        assert (await deliveries.retry_all(backend, ACTOR, EVERYWHERE, chosen)).queued == []
        waiting = DeliveryFilter(state=DeliveryState.WAITING)
        assert "can be sent again" in await refused(deliveries.retry_all(backend, ACTOR, EVERYWHERE, waiting))
    ((who, action, subject, workspace, before, after),) = await loop.run_in_executor(
        None, audited, database_dsn
    )
    ep = endpoint_public_id(endpoint_id)
    assert (who, action, subject, before) == ("ada", "delivery.retried", ep, None)
    assert workspace == "ws_1", "whose people see it too"
    assert f'"filter":{{"endpoint":"{ep}","state":"failed","since":"' in after
    assert after.endswith('"deliveries":2}')


async def test_a_bulk_retry_that_dies_has_noted_what_it_did(
    database_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliveries, "RETRY_BATCH", 1)
    for hours in (1, 2, 3):
        await asyncio.to_thread(partial(add_delivery, database_dsn, "failed", hours=hours))
    chosen = DeliveryFilter(state=DeliveryState.FAILED)
    second = "CHECK (id < 2)"
    await asyncio.to_thread(query, database_dsn, f"ALTER TABLE postrider.audit_log ADD {second}")
    async with backend_on(database_dsn) as backend:
        with pytest.raises(asyncpg.CheckViolationError):
            await deliveries.retry_all(backend, ACTOR, EVERYWHERE, chosen)
    (line,) = await asyncio.to_thread(audited, database_dsn)
    assert line[-1].endswith('"deliveries":1}')
    states = "SELECT state FROM postrider.delivery ORDER BY event_id"
    rows = await asyncio.to_thread(query, database_dsn, states)
    assert [row[0] for row in rows] == ["waiting", "failed", "failed"]
