"""What an operator does about captures: it and its line in the audit log commit together."""

import tomllib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from postrider.domain.audit import EVERYWHERE, Actor, AuditEntry, Scope
from postrider.domain.errors import PostriderError, UsageError
from postrider.edges.config import parse_config
from postrider.operations import captures
from postrider.operations.trigger import trigger
from postrider.operations.work import Backend, UnitOfWork, open_backend
from postrider.store import audit, outbox
from tests.integration.test_capture import SIMPLE, Crm, crm_of
from tests.integration.test_capture_set_aside import locked

ALICE = Actor("alice", "cli", "host-1")
NORTH = Scope("ws_north")
NO_PRICE = SIMPLE.replace('"id", "title", "price"', '"id", "title"')


@asynccontextmanager
async def backend_of(dsn: str, sections: str = "") -> AsyncIterator[Backend]:
    config = parse_config({"database": {"dsn": dsn}, **tomllib.loads(sections)}, "a test")
    async with open_backend(config) as backend:
        yield backend


async def done(dsn: str, sections: str, act: Callable[[UnitOfWork], Awaitable[Any]]) -> Any:
    async with backend_of(dsn, sections) as backend, backend.begin(ALICE, EVERYWHERE) as work:
        return await act(work)


async def lines(crm: Crm) -> list[AuditEntry]:
    """Oldest first."""
    return (await audit.entries(crm.connection, EVERYWHERE, limit=100))[::-1]


async def test_apply_leaves_a_line_for_what_it_changes_and_none_for_what_it_keeps(database_dsn: str) -> None:
    async with crm_of(database_dsn) as crm:
        for _ in range(2):
            await done(database_dsn, SIMPLE, captures.apply)
        (applied,) = await lines(crm)
        assert (applied.actor, applied.workspace_id) == (ALICE, None)
        assert (applied.action, applied.subject) == ("capture.applied", "deal")
        assert applied.after is not None
        assert applied.after["table"] == "crm.deals"
        await done(database_dsn, NO_PRICE, captures.apply)
        changed = (await lines(crm))[-1]
        assert changed.before is not None
        assert changed.after is not None
        assert set(changed.after) == {"columns", "checksum"}
        assert changed.before["columns"] == ["id", "title", "price"]
        assert changed.after["columns"] == ["id", "title"]
        await done(database_dsn, "", captures.apply)
        assert (await lines(crm))[-1].action == "capture.dropped"


async def test_drop_tells_how_many_rows_it_deleted(database_dsn: str) -> None:
    async with crm_of(database_dsn) as crm:
        await done(database_dsn, SIMPLE, captures.apply)
        async with locked(database_dsn, "postrider.outbox"):
            await crm.connection.execute("INSERT INTO crm.deals (id) VALUES (1), (2)")
        await done(database_dsn, "", lambda work: captures.drop(work, ["deal"], with_rejected=True))
        dropped = (await lines(crm))[-1]
        assert (dropped.action, dropped.subject) == ("capture.dropped", "deal")
        assert dropped.before is not None
        assert (dropped.before["rows_set_aside"], dropped.after) == (2, None)
        assert not await crm.rejected()


async def test_what_is_undone_leaves_neither_triggers_nor_a_line(database_dsn: str) -> None:
    async with crm_of(database_dsn) as crm:
        async with backend_of(database_dsn, SIMPLE) as backend:
            with pytest.raises(RuntimeError):
                async with backend.begin(ALICE, EVERYWHERE) as work:
                    await captures.apply(work)
                    raise RuntimeError
        assert await lines(crm) == []
        assert not await crm.connection.fetchval("SELECT count(*) FROM postrider.capture")
        assert not await crm.does("INSERT INTO crm.deals (id) VALUES (1)")


async def test_a_busy_table_leaves_no_line(database_dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("postrider.store.captures.APPLY_LOCK_TIMEOUT", "200ms")
    async with crm_of(database_dsn) as crm:
        async with locked(database_dsn, "crm.deals"):
            with pytest.raises(PostriderError, match="busy"):
                await done(database_dsn, SIMPLE, captures.apply)
        assert await lines(crm) == []


async def test_retry_makes_events_and_leaves_no_line(database_dsn: str) -> None:
    async with crm_of(database_dsn) as crm:
        await done(database_dsn, SIMPLE, captures.apply)
        async with locked(database_dsn, "postrider.outbox"):
            await crm.connection.execute("INSERT INTO crm.deals (id) VALUES (1), (2)")
        async with backend_of(database_dsn) as backend:
            retried = await captures.retry(backend, EVERYWHERE, None)
        assert (retried.rows, retried.events, retried.kept) == (2, 2, 0)
        assert [line.action for line in await lines(crm)] == ["capture.applied"]


async def test_captures_are_not_for_those_who_may_see_one_workspace(database_dsn: str) -> None:
    async with crm_of(database_dsn) as crm:
        await done(database_dsn, SIMPLE, captures.apply)
        acts: list[Callable[[UnitOfWork], Awaitable[Any]]] = [
            captures.plan,
            captures.apply,
            lambda work: captures.drop(work, None),
            lambda work: captures.rejections(work, 10),
        ]
        async with backend_of(database_dsn, SIMPLE) as backend:
            for act in acts:
                async with backend.begin(ALICE, NORTH) as work:
                    with pytest.raises(PostriderError, match="captures concern all workspaces"):
                        await act(work)
            with pytest.raises(PostriderError, match="captures concern all workspaces"):
                await captures.retry(backend, NORTH, None)
        assert [line.action for line in await lines(crm)] == ["capture.applied"]


async def test_a_sample_event_goes_to_a_workspace_within_the_scope_only(database_dsn: str) -> None:
    async with backend_of(database_dsn) as backend:
        async with backend.begin(ALICE, NORTH) as work:
            event_id = await trigger(work, "deal.created", workspace_id="ws_north", dialect="heffl")
        assert event_id.startswith("evt_")
        async with backend.begin(ALICE, NORTH) as work:
            with pytest.raises(UsageError, match="there is no workspace 'ws_south'"):
                await trigger(work, "deal.created", workspace_id="ws_south", dialect="heffl")
        async with backend.database.connection() as connection:
            assert (await outbox.backlog(connection)).events == 1
