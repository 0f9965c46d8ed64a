"""What people do with endpoints, whatever the surface: within a scope, and with a line in the audit log that
is written together with the change."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from msgspec import UNSET

from postrider.domain.audit import EVERYWHERE, Scope
from postrider.domain.endpoint_input import EndpointChange, NewEndpoint
from postrider.domain.errors import PostriderError, UsageError
from postrider.domain.model import EndpointState, endpoint_public_id
from postrider.operations import audit, endpoint_changes, endpoint_test, endpoints, recovery
from postrider.operations.work import Backend
from postrider.store.endpoint_rows import EndpointRow
from tests.support.acting import ACTOR, backend_on
from tests.support.cli import Cli
from tests.support.daemon_process import SECRET, add_endpoint, emit, query
from tests.support.receiver_process import ReceiverProcess

OURS, THEIRS = Scope("ours"), Scope("theirs")
TABLES = ("endpoint", "endpoint_secret", "delivery", "attempt", "outbox", "last_delivery", "audit_log")
NOWHERE = "http://127.0.0.1:8009/"

Act = Callable[[Backend, Scope, int], Awaitable[object]]


async def _pause(backend: Backend, scope: Scope, endpoint_id: int) -> object:
    async with backend.begin(ACTOR, scope) as work:
        return await endpoints.pause(work, endpoint_id)


async def _resume(backend: Backend, scope: Scope, endpoint_id: int) -> object:
    async with backend.begin(ACTOR, scope) as work:
        return await endpoints.resume(work, endpoint_id)


async def _get(backend: Backend, scope: Scope, endpoint_id: int) -> object:
    async with backend.begin(ACTOR, scope) as work:
        return await endpoints.get(work, endpoint_id)


async def _get_living(backend: Backend, scope: Scope, endpoint_id: int) -> object:
    async with backend.begin(ACTOR, scope) as work:
        return await endpoints.get_living(work, endpoint_id)


async def _waiting(backend: Backend, scope: Scope, endpoint_id: int) -> object:
    async with backend.begin(ACTOR, scope) as work:
        return await endpoints.waiting(work, endpoint_id)


async def _secret(backend: Backend, scope: Scope, endpoint_id: int) -> object:
    async with backend.begin(ACTOR, scope) as work:
        return await endpoints.secret(work, endpoint_id)


async def _delete(backend: Backend, scope: Scope, endpoint_id: int) -> object:
    return await endpoints.delete(backend, ACTOR, scope, endpoint_id)


async def _update(backend: Backend, scope: Scope, endpoint_id: int) -> object:
    change = EndpointChange(description="new", headers={"X-Api-Key": "hush-2"})
    return await endpoint_changes.update(backend, ACTOR, scope, endpoint_id, change)


async def _verify(backend: Backend, scope: Scope, endpoint_id: int) -> object:
    return await endpoint_changes.verify(backend, ACTOR, scope, endpoint_id)


async def _test(backend: Backend, scope: Scope, endpoint_id: int) -> object:
    return await endpoint_test.test(backend, ACTOR, scope, endpoint_id)


async def _count_missed(backend: Backend, scope: Scope, endpoint_id: int) -> object:
    return await recovery.count_missed(backend, ACTOR, scope, endpoint_id)


async def _recover_missed(backend: Backend, scope: Scope, endpoint_id: int) -> object:
    return await recovery.recover_missed(backend, ACTOR, scope, endpoint_id)


ACTS: dict[str, Act] = {
    "get": _get,
    "get living": _get_living,
    "waiting": _waiting,
    "secret": _secret,
    "update": _update,
    "verify": _verify,
    "test": _test,
    "pause": _pause,
    "resume": _resume,
    "count missed": _count_missed,
    "recover missed": _recover_missed,
    "delete": _delete,
}


def rows_of(dsn: str) -> dict[str, list[tuple[Any, ...]]]:
    """All that an operation could change."""
    return {
        table: sorted((tuple(row) for row in query(dsn, f"SELECT * FROM postrider.{table}")), key=repr)
        for table in TABLES
    }


def ask(dsn: str, act: Act, scope: Scope, endpoint_id: int) -> Any:
    async def run() -> object:
        async with backend_on(dsn) as backend:
            return await act(backend, scope, endpoint_id)

    return asyncio.run(run())


@pytest.mark.parametrize("name", ACTS)
def test_an_endpoint_of_another_workspace_is_not_there(database_dsn: str, name: str) -> None:
    theirs = [
        add_endpoint(database_dsn, NOWHERE, workspace_id="theirs", state=state) for state in EndpointState
    ]
    before = rows_of(database_dsn)

    async def story() -> None:
        async with backend_on(database_dsn) as backend:
            for endpoint in theirs:
                said = []
                for each in (endpoint, endpoint ^ 1):
                    with pytest.raises(UsageError) as refusal:
                        await ACTS[name](backend, OURS, each)
                    said.append(str(refusal.value).replace(endpoint_public_id(each), "it"))
                assert said[0].startswith("there is no endpoint it\n")
                assert said[0] == said[1], "as of one that nobody has"

    asyncio.run(story())
    assert rows_of(database_dsn) == before


def test_lists_know_the_workspace_of_their_scope_alone(database_dsn: str) -> None:
    ours = [add_endpoint(database_dsn, NOWHERE, workspace_id="ours") for _ in range(3)]
    for _ in range(3):
        add_endpoint(database_dsn, NOWHERE, workspace_id="theirs")

    async def story() -> None:
        async with backend_on(database_dsn) as backend:
            async with backend.begin(ACTOR, EVERYWHERE) as work:
                everything = await endpoints.list_endpoints(work, limit=5)
                assert len(everything.rows) == 5
            async with backend.begin(ACTOR, OURS) as work:
                listed = await endpoints.list_endpoints(work, limit=5)
                assert {row.endpoint.id for row in listed.rows} == set(ours)
                assert listed.next_cursor is None
                theirs = await endpoints.list_endpoints(work, workspace_id="theirs", limit=5)
                assert theirs.rows == []
                beyond = await endpoints.list_endpoints(work, cursor=everything.next_cursor, limit=5)
                assert beyond.rows == []
                assert await endpoints.described(work, "") == [(each, "") for each in sorted(ours)]
            with pytest.raises(UsageError, match="only be added to the workspace ours"):
                new = NewEndpoint(url=NOWHERE, patterns=("*",), workspace_id="theirs")
                await endpoint_changes.add(backend, ACTOR, OURS, new)
            added = await endpoint_changes.add(
                backend, ACTOR, OURS, NewEndpoint(url=NOWHERE, patterns=("*",))
            )
            assert added.row.endpoint.workspace_id == "ours"
            for scope, count in ((OURS, 1), (THEIRS, 0), (EVERYWHERE, 1)):
                async with backend.begin(ACTOR, scope) as work:
                    assert len((await audit.list_entries(work, limit=9)).rows) == count

    asyncio.run(story())


def test_pages_of_a_list_are_the_list(database_dsn: str) -> None:
    for number in range(7):
        add_endpoint(
            database_dsn,
            NOWHERE,
            workspace_id=f"ws_{number % 3}",
            state=EndpointState.PAUSED if number % 2 else EndpointState.ACTIVE,
        )
    add_endpoint(database_dsn, NOWHERE, state=EndpointState.DELETED)
    query(database_dsn, "UPDATE postrider.endpoint SET created_at = now()")  # the id decides

    async def story() -> None:
        async with backend_on(database_dsn) as backend, backend.begin(ACTOR, EVERYWHERE) as work:
            for state, deleted, count in (
                (None, False, 7),
                (None, True, 8),
                (EndpointState.PAUSED, False, 3),
                (EndpointState.DELETED, False, 1),
            ):
                found, cursor = [], None
                while True:
                    page = await endpoints.list_endpoints(
                        work, state=state, include_deleted=deleted, cursor=cursor, limit=2
                    )
                    assert len(page.rows) <= 2
                    found += page.rows
                    cursor = page.next_cursor
                    if cursor is None:
                        break
                whole = await endpoints.list_endpoints(work, state=state, include_deleted=deleted)
                assert found == whole.rows
                assert len(found) == count
            with pytest.raises(UsageError, match="is not a cursor"):
                await endpoints.list_endpoints(work, cursor="bm9uZQ", limit=2)

    asyncio.run(story())


LEFT = {
    "secret": "endpoint.secret_shown",
    "update": "endpoint.updated",
    "pause": "endpoint.paused",
    "resume": "endpoint.resumed",
    "recover missed": "endpoint.recovery_started",
    "delete": "endpoint.deleted",
}
"""What each act leaves in the audit log; the others change no configuration."""


@pytest.mark.parametrize("name", ACTS)
def test_an_act_leaves_one_line_and_no_secret_in_it(database_dsn: str, name: str) -> None:
    state = EndpointState.PAUSED if name == "resume" else EndpointState.ACTIVE
    endpoint = add_endpoint(
        database_dsn,
        "http://ada:hush-0@127.0.0.1:8009/",
        workspace_id="ours",
        state=state,
        headers={"X-Api-Key": "hush-1"},
        dialect="workestra",
    )
    ask(database_dsn, ACTS[name], OURS, endpoint)
    rows = query(
        database_dsn,
        "SELECT who, how, origin, workspace_id, action, subject, before, after FROM postrider.audit_log",
    )
    if name not in LEFT:
        assert rows == []
        return
    assert [tuple(row)[:6] for row in rows] == [
        ("ada", "cli", "host.example", "ours", LEFT[name], endpoint_public_id(endpoint))
    ]
    assert "hush" not in repr(rows)
    assert SECRET not in repr(rows)


def test_adding_says_all_that_is_no_secret(database_dsn: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with backend_on(database_dsn) as backend:
            new = NewEndpoint(
                url="http://127.0.0.1:8009/hook",
                patterns=("deal.*",),
                secret="hush, 16 bytes or more",
                headers={"X-Api-Key": "hush"},
                rate=2.5,
            )
            await endpoint_changes.add(backend, ACTOR, EVERYWHERE, new)
            made = await endpoint_changes.add(
                backend, ACTOR, EVERYWHERE, NewEndpoint(url=NOWHERE, patterns=("*",))
            )
            assert made.secret is not None
            assert made.secret not in repr(made)
            assert "hush" not in repr(new)

    asyncio.run(story())
    rows = query(database_dsn, "SELECT action, before, after FROM postrider.audit_log ORDER BY id")
    assert [(row["action"], row["before"]) for row in rows] == [("endpoint.added", None)] * 2
    assert orjson.loads(rows[0]["after"]) == {
        "url": "http://127.0.0.1:8009/hook",
        "description": "",
        "state": "active",
        "events": ["deal.*"],
        "exclude": [],
        "dialect": "standard",
        "concurrency": None,
        "rate_per_s": 2.5,
        "headers": ["X-Api-Key"],
    }


def test_a_change_says_what_differs(database_dsn: str) -> None:
    endpoint = add_endpoint(database_dsn, NOWHERE, concurrency=3, headers={"X-Api-Key": "one"})

    async def story() -> None:
        async with backend_on(database_dsn) as backend:
            for change in (
                EndpointChange(concurrency=None, rate=1.5, exclusions=("deal.deleted",)),
                EndpointChange(headers={"X-Api-Key": "two"}),
                EndpointChange(headers={}),
            ):
                await endpoint_changes.update(backend, ACTOR, EVERYWHERE, endpoint, change)

    asyncio.run(story())
    rows = query(database_dsn, "SELECT before, after FROM postrider.audit_log ORDER BY id")
    assert [(orjson.loads(row["before"]), orjson.loads(row["after"])) for row in rows] == [
        (
            {"exclude": [], "concurrency": 3, "rate_per_s": None},
            {"exclude": ["deal.deleted"], "concurrency": None, "rate_per_s": 1.5},
        ),
        ({"replaced": None}, {"replaced": ["headers"]}),
        ({"headers": ["X-Api-Key"]}, {"headers": []}),
    ]


@pytest.mark.parametrize(
    "change",
    [
        EndpointChange(url="ftp://127.0.0.1/"),
        EndpointChange(url="http://10.0.0.1/"),
        EndpointChange(description="new", patterns=("de al",)),
        EndpointChange(description="new", patterns=()),
        EndpointChange(description="new", exclusions=("*.*",)),
        EndpointChange(description="new", dialect="klingon"),
        EndpointChange(description="new", dialect="heffl", patterns=("never.heard",)),
        EndpointChange(description="new", headers={"Host": "elsewhere"}),
        EndpointChange(description="new", concurrency=0),
        EndpointChange(description="new", concurrency=10_001),
        EndpointChange(description="new", rate=0.0),
        EndpointChange(description="new", rate=float("nan")),
    ],
    ids=repr,
)
def test_what_breaks_a_rule_changes_nothing(database_dsn: str, change: EndpointChange) -> None:
    endpoint = add_endpoint(database_dsn, NOWHERE)
    before = rows_of(database_dsn)

    async def story() -> None:
        async with backend_on(database_dsn) as backend:
            with pytest.raises(UsageError):
                await endpoint_changes.update(backend, ACTOR, EVERYWHERE, endpoint, change)
            new = NewEndpoint(
                url=NOWHERE if change.url is UNSET else change.url,
                patterns=("*",) if change.patterns is UNSET else change.patterns,
                exclusions=() if change.exclusions is UNSET else change.exclusions,
                dialect=None if change.dialect is UNSET else change.dialect,
                headers={} if change.headers is UNSET else change.headers,
                concurrency=None if change.concurrency is UNSET else change.concurrency,
                rate=None if change.rate is UNSET else change.rate,
            )
            with pytest.raises(UsageError):
                await endpoint_changes.add(backend, ACTOR, EVERYWHERE, new)

    asyncio.run(story())
    assert rows_of(database_dsn) == before


@pytest.mark.parametrize("name", ["update", "pause", "delete", "secret"])
def test_a_change_whose_line_can_not_be_written_is_undone(database_dsn: str, name: str) -> None:
    endpoint = add_endpoint(database_dsn, NOWHERE, headers={"X-Api-Key": "one"})
    query(database_dsn, "ALTER TABLE postrider.audit_log ADD CHECK (action = 'nothing')")
    before = rows_of(database_dsn)
    with pytest.raises(Exception, match="violates check constraint"):
        ask(database_dsn, ACTS[name], EVERYWHERE, endpoint)
    assert rows_of(database_dsn) == before


def test_no_transaction_waits_for_a_handshake(database_dsn: str) -> None:
    """While a slow receiver thinks about it, others change endpoints, though one change waits for another."""
    other = add_endpoint(database_dsn, NOWHERE)
    with ReceiverProcess(SECRET, mode="slow:1") as receiver:

        async def story() -> endpoint_changes.Changed:
            async with backend_on(database_dsn) as backend:
                new = NewEndpoint(url=receiver.url("/a"), patterns=("*",), dialect="workestra", secret=SECRET)
                adding = asyncio.create_task(endpoint_changes.add(backend, ACTOR, EVERYWHERE, new))
                found: list[EndpointRow] = []
                while not found:
                    async with backend.begin(ACTOR, EVERYWHERE) as work:
                        unverified = EndpointState.UNVERIFIED
                        found = (await endpoints.list_endpoints(work, state=unverified)).rows
                with pytest.raises(PostriderError, match="has not answered the handshake"):
                    await _pause(backend, EVERYWHERE, found[0].endpoint.id)
                await _pause(backend, EVERYWHERE, other)
                assert not adding.done()
                return await adding

        added = asyncio.run(story())
    assert added.problem is None
    assert added.row.endpoint.state is EndpointState.ACTIVE
    states = "SELECT action, before ->> 'state', after ->> 'state' FROM postrider.audit_log ORDER BY id"
    assert [tuple(row) for row in query(database_dsn, states)] == [
        ("endpoint.added", None, "unverified"),
        ("endpoint.paused", "active", "paused"),
        ("endpoint.verified", "unverified", "active"),
    ]


def test_what_moved_while_it_was_asked_is_not_verified_by_the_old_answer(database_dsn: str) -> None:
    with ReceiverProcess(SECRET, mode="slow:0.5") as receiver:
        endpoint = add_endpoint(
            database_dsn, receiver.url("/a"), dialect="workestra", state=EndpointState.UNVERIFIED
        )

        async def story() -> None:
            async with backend_on(database_dsn) as backend:
                verifying = asyncio.create_task(_verify(backend, EVERYWHERE, endpoint))
                await asyncio.to_thread(receiver.wait_for, 1, "received", path="/a")
                query_now = "UPDATE postrider.endpoint SET url = 'https://elsewhere.example/'"
                async with backend.database.connection() as connection:
                    await connection.execute(query_now)
                with pytest.raises(PostriderError, match="was changed before it had answered"):
                    await verifying

        asyncio.run(story())
    assert query(database_dsn, "SELECT state FROM postrider.endpoint")[0][0] == "unverified"


def test_what_is_deleted_while_it_is_asked_is_not_verified(database_dsn: str) -> None:
    with ReceiverProcess(SECRET, mode="slow:0.5") as receiver:
        endpoint = add_endpoint(
            database_dsn, receiver.url("/a"), dialect="workestra", state=EndpointState.UNVERIFIED
        )

        async def story() -> None:
            async with backend_on(database_dsn) as backend:
                verifying = asyncio.create_task(_verify(backend, EVERYWHERE, endpoint))
                await asyncio.to_thread(receiver.wait_for, 1, "received", path="/a")
                await _delete(backend, EVERYWHERE, endpoint)
                with pytest.raises(PostriderError, match="is deleted"):
                    await verifying

        asyncio.run(story())


def test_who_needs_no_dialect_is_not_kept_by_a_damaged_one(
    database_dsn: str, config_file: Path, tmp_path: Path
) -> None:
    endpoint = endpoint_public_id(add_endpoint(database_dsn, NOWHERE))
    damaged = tmp_path / "mine.toml"
    damaged.write_text('name = "')
    with config_file.open("a") as file:
        file.write(f'[dialect]\npaths = ["{damaged}"]\n')
    cli = Cli(config_file)
    assert "paused" in cli("endpoint", "pause", endpoint)
    assert cli("emit", "deal.updated", "--data", "{}").startswith("evt_")
    cli("status")
    assert str(damaged) in cli("endpoint", "test", endpoint, exit_code=2)
    assert str(damaged) in cli("event", "show", "evt_0198c5b0c7e27a7f8a3c6d1e2f304152", exit_code=2)


def test_pausing_twice_is_one_change(database_dsn: str) -> None:
    endpoint = add_endpoint(database_dsn, NOWHERE)
    assert ask(database_dsn, _pause, EVERYWHERE, endpoint) is True
    assert ask(database_dsn, _pause, EVERYWHERE, endpoint) is False
    assert ask(database_dsn, _resume, EVERYWHERE, endpoint).changed
    assert not ask(database_dsn, _resume, EVERYWHERE, endpoint).changed
    actions = [row[0] for row in query(database_dsn, "SELECT action FROM postrider.audit_log ORDER BY id")]
    assert actions == ["endpoint.paused", "endpoint.resumed"]


def test_a_large_backlog_of_a_deleted_endpoint_is_cancelled_by_and_by(
    database_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoints, "CANCELLED_AT_A_TIME", 4)
    endpoint, other = (add_endpoint(database_dsn, NOWHERE) for _ in range(2))
    emit(database_dsn, 9)
    query(
        database_dsn,
        """INSERT INTO postrider.delivery (event_id, endpoint_id, workspace_id, state, due, updated_at)
           SELECT o.id, e.id, o.workspace_id, s.state, now(), now()
           FROM (SELECT id, workspace_id, row_number() OVER () AS n FROM postrider.outbox) AS o
           CROSS JOIN postrider.endpoint AS e
           CROSS JOIN (VALUES ('waiting', 0), ('retrying', 1), ('failed', 2)) AS s (state, n)
           WHERE o.n % 3 = s.n""",
    )
    assert ask(database_dsn, _waiting, EVERYWHERE, endpoint) == 6
    assert ask(database_dsn, _delete, EVERYWHERE, endpoint) == 6

    def states(endpoint_id: int) -> dict[str, int]:
        counted = "SELECT state, count(*) FROM postrider.delivery WHERE endpoint_id = $1 GROUP BY 1"
        return {row["state"]: row["count"] for row in query(database_dsn, counted, endpoint_id)}

    assert states(endpoint) == {"cancelled": 6, "failed": 3}
    assert states(other) == {"waiting": 3, "retrying": 3, "failed": 3}
    with pytest.raises(PostriderError, match="is deleted"):
        ask(database_dsn, _delete, EVERYWHERE, endpoint)


def test_people_read_who_changed_what(database_dsn: str, config_file: Path, tmp_path: Path) -> None:
    cli = Cli(config_file)
    assert "no changes" in cli.fails("audit", "list", exit_code=0)
    assert cli.json("audit", "list") == []
    ep = cli.json("endpoint", "add", "--url", NOWHERE, "--events", "deal.*", "--workspace", "ws_1")["id"]
    cli("endpoint", "update", ep, "--description", "the ERP's")
    cli("endpoint", "pause", ep)
    entries = cli.json("audit", "list", "--subject", ep, "--workspace", "ws_1")
    assert [each["action"] for each in entries] == ["endpoint.paused", "endpoint.updated", "endpoint.added"]
    assert entries[1]["before"] == {"description": ""}
    assert entries[1]["after"] == {"description": "the ERP's"}
    assert {each["how"] for each in entries} == {"cli"}
    assert all(each["who"] and each["origin"] and each["at"] for each in entries)
    assert cli.json("audit", "list", "--workspace", "ws_2") == []
    assert cli.json("audit", "list", "--subject", "ep_0000000000000001") == []
    table = cli("audit", "list")
    assert "state: active → paused" in table
    assert ep in table
    more = cli.fails("audit", "list", "--limit", "2", exit_code=0)
    cursor = more.removeprefix("more: --cursor ").strip()
    rest = cli.json("audit", "list", "--limit", "2", "--cursor", cursor)
    assert [each["action"] for each in rest] == ["endpoint.added"]
    assert "not a cursor" in cli("audit", "list", "--cursor", "nonsense", exit_code=2)
