"""Every statement that changes a state makes only the changes that the domain's tables permit."""

import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from postrider.domain.audit import EVERYWHERE
from postrider.domain.model import (
    Attempt,
    DeliveryState,
    EndpointState,
    ErrorKind,
    Event,
    Failure,
    Reply,
    first_event_id,
)
from postrider.domain.sealing import Sealer
from postrider.domain.transitions import DELIVERY, ENDPOINT, Transitions
from postrider.engine import rescue
from postrider.store import (
    deliveries,
    delivery_results,
    endpoint_deliveries,
    endpoint_health,
    endpoints,
    history,
    outbox,
    retention,
)
from postrider.store.database import Connection, Database
from postrider.store.deliveries import WaitingWanted
from postrider.store.delivery_results import ClaimProgress, DeliveryResult
from tests.support.daemon_process import ROOT, SECRET
from tests.support.endpoints import endpoint

NOW = datetime.now(UTC)
EVENT = first_event_id(NOW - timedelta(days=3))
OWNER, CLAIM = 7, 11
WORKSPACE = "default"
KEY = (EVENT, 1)

# Notes each statement that writes a state, whether it finds a row or not.
NOTE_STATEMENTS = """
CREATE TABLE public.noted (statement text);
GRANT ALL ON public.noted TO PUBLIC;
CREATE FUNCTION public.note() RETURNS trigger LANGUAGE plpgsql AS
  'BEGIN INSERT INTO public.noted VALUES (current_query()); RETURN NULL; END';
CREATE TRIGGER note AFTER INSERT OR UPDATE ON postrider.delivery EXECUTE FUNCTION public.note();
CREATE TRIGGER note AFTER INSERT OR UPDATE ON postrider.endpoint EXECUTE FUNCTION public.note();
"""


@dataclass
class Case:
    """A database with endpoint 1, and its delivery, in the states that a verb meets."""

    database: Database
    connection: Connection

    async def prepare(self, delivery: DeliveryState | None, of_endpoint: EndpointState | None) -> None:
        await self.connection.execute(
            """TRUNCATE postrider.outbox, postrider.pending, postrider.claim, postrider.delivery,
                        postrider.attempt, postrider.daemon, postrider.endpoint, postrider.endpoint_secret"""
        )
        await self.connection.execute(
            "INSERT INTO postrider.outbox (id, workspace_id, type, data) VALUES ($1, 'default', 'a.b', '{}')",
            EVENT,
        )
        await self.connection.execute(
            """INSERT INTO postrider.daemon (id, hostname, pid, version, started_at, heartbeat_at)
               OVERRIDING SYSTEM VALUE VALUES ($1, '', 1, '', now(), now())""",
            OWNER,
        )
        await self.connection.execute(
            "INSERT INTO postrider.claim (id, owner, event_ids) VALUES ($1, $2, $3)", CLAIM, OWNER, [EVENT]
        )
        if of_endpoint is not None:
            await self.connection.execute(
                """INSERT INTO postrider.endpoint
                     (id, workspace_id, url, patterns, dialect, state, created_at, updated_at)
                   VALUES (1, 'default', 'https://example.com', '{*}', 'standard', $1, now(), now())""",
                of_endpoint.value,
            )
        if delivery is not None:
            await self.connection.execute(
                """INSERT INTO postrider.delivery
                     (event_id, endpoint_id, workspace_id, state, owner, due, updated_at)
                   VALUES ($1, 1, 'default', $2, $3, $4, now())""",
                EVENT,
                delivery.value,
                OWNER if delivery is DeliveryState.SENDING else None,
                NOW if delivery is DeliveryState.RETRYING else None,
            )

    async def run(self, verb: "Verb") -> None:
        # What is there already can't be added.
        with suppress(asyncpg.UniqueViolationError):
            async with self.connection.transaction():
                await verb.run(self)

    async def state_of(self, table: str) -> str | None:
        state: str | None = await self.connection.fetchval(f"SELECT state FROM postrider.{table}")
        return state


Run = Callable[[Case], Awaitable[object]]


@dataclass(frozen=True)
class Verb:
    """Something of the store that changes states, and what it is in the domain's table."""

    move: str
    run: Run
    after: str
    before: frozenset[str | None] | None = None
    """Where it makes the move, if not wherever the table permits it."""
    endpoint: EndpointState = field(default=EndpointState.ACTIVE)
    """Of the delivery that it changes."""


def result(state: DeliveryState) -> DeliveryResult:
    attempt = None
    if state is DeliveryState.SUCCEEDED:
        attempt = Attempt(1, NOW, Reply(200, "", "", None, None, 1.0))
    elif state is DeliveryState.FAILED:
        attempt = Attempt(1, NOW, Failure(ErrorKind.TIMEOUT, "", 1.0))
    due = NOW if state is DeliveryState.RETRYING else None
    return DeliveryResult(
        event_id=EVENT, endpoint_id=1, workspace_id="default", state=state, attempts=1, due=due,
        attempt=attempt, claim_id=CLAIM, bytes=2,
    )  # fmt: skip


def record(state: DeliveryState, *, first: bool) -> Run:
    made = [result(state)]

    async def run(case: Case) -> None:
        await delivery_results.record(
            case.connection,
            OWNER,
            first_results=made if first else [],
            later_results=[] if first else made,
            claims=[ClaimProgress(CLAIM, 0, 1, True)] if first else [],
            now=NOW,
        )

    return run


def record_test(state: DeliveryState) -> Run:
    async def run(case: Case) -> None:
        event = Event(EVENT, "default", "a.b", "{}", 2, None, None, None, None, None, NOW, test=True)
        await case.connection.execute("DELETE FROM postrider.outbox")
        await outbox.add_test(case.connection, event)
        await delivery_results.add_finished(case.connection, result(state), NOW)

    return run


def claim_waiting(case: Case) -> Awaitable[object]:
    floor = first_event_id(NOW - timedelta(days=30))
    wanted = [WaitingWanted(1, "default", 5, floor)]
    return deliveries.claim_waiting(
        case.connection, OWNER, wanted, NOW, most_bytes=2**30, most_bytes_each=2**30
    )


async def end_disabled(case: Case) -> None:
    for state in ("waiting", "retrying"):
        await retention.end_disabled(case.connection, NOW.date(), state)


NEW = frozenset[str | None]({None})
SENDING = frozenset[str | None]({"sending"})
STORED = frozenset[str | None]({"waiting", "retrying"})

DELIVERY_VERBS = {
    "record first: waiting": Verb("spill", record(DeliveryState.WAITING, first=True), "waiting"),
    "record first: succeeded": Verb("record", record(DeliveryState.SUCCEEDED, first=True), "succeeded", NEW),
    "record first: failed": Verb("record", record(DeliveryState.FAILED, first=True), "failed", NEW),
    "record first: retrying": Verb("record", record(DeliveryState.RETRYING, first=True), "retrying", NEW),
    "record first: cancelled": Verb("cancel", record(DeliveryState.CANCELLED, first=True), "cancelled", NEW),
    "record later: waiting": Verb("give back", record(DeliveryState.WAITING, first=False), "waiting"),
    "record later: succeeded": Verb(
        "record", record(DeliveryState.SUCCEEDED, first=False), "succeeded", SENDING
    ),
    "record later: failed": Verb("record", record(DeliveryState.FAILED, first=False), "failed", SENDING),
    "record later: retrying": Verb(
        "record", record(DeliveryState.RETRYING, first=False), "retrying", SENDING
    ),
    "record later: cancelled": Verb(
        "cancel", record(DeliveryState.CANCELLED, first=False), "cancelled", SENDING
    ),
    "claim_waiting": Verb("claim", claim_waiting, "sending"),
    "promote_due": Verb("promote", lambda case: deliveries.promote_due(case.connection, NOW, 10), "waiting"),
    "release": Verb(
        "give back", lambda case: deliveries.release(case.connection, OWNER, {KEY: "default"}), "waiting"
    ),
    "leave": Verb("give back", lambda case: rescue.leave(case.connection, OWNER, NOW), "waiting"),
    "cancel_deleted": Verb(
        "cancel",
        lambda case: endpoint_deliveries.cancel_left(case.connection, 1, NOW, 10),
        "cancelled",
        STORED,
        EndpointState.DELETED,
    ),
    "end_disabled": Verb(
        "expire",
        end_disabled,
        "failed",
        endpoint=EndpointState.DISABLED,
    ),
    "retry": Verb("retry", lambda case: history.retry(case.connection, EVERYWHERE, [KEY], NOW), "waiting"),
    "send missed": Verb(
        "replay",
        lambda case: endpoint_deliveries.send(case.connection, WORKSPACE, 1, [EVENT], NOW),
        "waiting",
    ),
    "cancel": Verb(
        "cancel", lambda case: history.cancel(case.connection, WORKSPACE, KEY, NOW), "cancelled", STORED
    ),
    "record_test: succeeded": Verb("test", record_test(DeliveryState.SUCCEEDED), "succeeded"),
    "record_test: failed": Verb("test", record_test(DeliveryState.FAILED), "failed"),
}


def add(state: EndpointState) -> Run:
    async def run(case: Case) -> None:
        added = replace(endpoint(1), state=state)
        await endpoints.add(case.connection, Sealer(), added, [SECRET], NOW)

    return run


def set_state(state: EndpointState) -> Run:
    return lambda case: endpoints.set_state(case.connection, WORKSPACE, 1, state, NOW)


ENDPOINT_VERBS = {
    "add": Verb("add", add(EndpointState.ACTIVE), "active"),
    "add: unverified": Verb("add", add(EndpointState.UNVERIFIED), "unverified"),
    "activate": Verb("verify", lambda case: endpoints.activate(case.connection, WORKSPACE, 1, NOW), "active"),
    "set_state: paused": Verb("pause", set_state(EndpointState.PAUSED), "paused"),
    "set_state: active": Verb("resume", set_state(EndpointState.ACTIVE), "active"),
    "disable": Verb(
        "disable",
        lambda case: endpoint_health.disable(case.connection, WORKSPACE, 1, "it failed", NOW),
        "disabled",
    ),
    "delete": Verb("delete", lambda case: endpoints.delete(case.connection, WORKSPACE, 1, NOW), "deleted"),
}


def permitted(verb: Verb, table: Transitions[Any]) -> set[tuple[str | None, str]]:
    return {
        (before, after)
        for before, after in table.of(verb.move)
        if after == verb.after and (verb.before is None or before in verb.before)
    }


async def run_all(dsn: str) -> tuple[dict[str, set[tuple[str | None, str]]], list[str]]:
    """Run each verb in each state; return what it changed, and the statements that were run for it."""
    found: dict[str, set[tuple[str | None, str]]] = {}
    database = Database(dsn, pool_size=2)
    await database.open()
    connection = await asyncpg.connect(dsn)
    await connection.execute(NOTE_STATEMENTS)
    case = Case(database, connection)
    try:
        for name, verb in DELIVERY_VERBS.items():
            found[name] = set()
            for state in (None, *DeliveryState):
                await case.prepare(state, verb.endpoint)
                await case.run(verb)
                if (after := await case.state_of("delivery")) != state:
                    assert after is not None
                    found[name].add((state, after))
        for name, verb in ENDPOINT_VERBS.items():
            found[name] = set()
            for of_endpoint in (None, *EndpointState):
                await case.prepare(None, of_endpoint)
                await case.run(verb)
                if (after := await case.state_of("endpoint")) != of_endpoint:
                    assert after is not None
                    found[name].add((of_endpoint, after))
        noted = [row["statement"] for row in await connection.fetch("SELECT statement FROM public.noted")]
    finally:
        await connection.close()
        await database.close()
    return found, noted


async def test_each_verb_changes_exactly_the_states_that_its_move_permits(database_dsn: str) -> None:
    found, noted = await run_all(database_dsn)
    expected = {name: permitted(verb, DELIVERY) for name, verb in DELIVERY_VERBS.items()}
    expected |= {name: permitted(verb, ENDPOINT) for name, verb in ENDPOINT_VERBS.items()}
    assert found == expected
    run = {_flat(statement) for statement in noted}
    unknown = [text for text in _written() if not any(text in statement for statement in run)]
    assert not unknown, "statements that change a state, and that no verb of this test runs"


@pytest.mark.parametrize(
    ("table", "verbs"), [(DELIVERY, DELIVERY_VERBS), (ENDPOINT, ENDPOINT_VERBS)], ids=["delivery", "endpoint"]
)
def test_each_move_of_a_table_is_made_by_some_verb(table: Transitions[Any], verbs: dict[str, Verb]) -> None:
    made = {pair for verb in verbs.values() for pair in permitted(verb, table)}
    assert made == table.all()


_STATEMENT = re.compile(r"(?:UPDATE|INSERT INTO) postrider\.(?:delivery|endpoint)\b[^_]")


def _written() -> list[str]:
    """The beginnings of all statements in the program that write a state."""
    found = []
    files = [*(ROOT / "daemon/postrider/store").glob("*.py"), *(ROOT / "sql").rglob("*.sql")]
    for path in files:
        text = path.read_text()
        for match in _STATEMENT.finditer(text):
            statement = text[match.start() : match.start() + 400]
            statement = re.split(r'"""|"\n|\bWHERE\b|\bFROM\b|\bVALUES\b|\bSELECT\b', statement)[0]
            if re.search(r"\bstate\b", statement):
                found.append(_flat(statement.split("{")[0])[:100])
    assert len(found) > 10
    return found


def _flat(text: str) -> str:
    return " ".join(text.split())


def test_the_readme_shows_the_tables() -> None:
    readme = (ROOT / "README.md").read_text()
    for table in (DELIVERY, ENDPOINT):
        assert f"```mermaid\n{table.diagram()}\n```" in readme
        assert table.table() in readme
