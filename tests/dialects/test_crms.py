"""The sample CRM of each dialect: its users' doings, captured, become every event type of the catalogue, and
single statements become the bodies that its document promises."""

import asyncio
import json
import tomllib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from postrider.domain.dialects import Dialect, render
from postrider.domain.model import Event
from postrider.edges.config import parse_config
from postrider.edges.dialect_files import load_dialects
from postrider.edges.resources import config_dir, sql_dir
from postrider.store.database import Connection, Database
from tests.dialects.rendering import DIALECTS
from tests.support.captures import Captures

CRMS = sorted(set(DIALECTS) - {"standard"})
SESSIONS = 3
ACTS = 50
ROUNDS = 60
"""Rounds of acts that the rarest event type may take; each is likely within a few."""

Body = dict[str, Any]


class Crm:
    """A sample CRM in a database, captured as its example of a configuration says."""

    def __init__(self, name: str, dialect: Dialect, connection: Connection, store: Captures) -> None:
        self.name = name
        self.dialect = dialect
        self.connection = connection
        self.store = store

    async def does(self, *statements: str) -> list[Body]:
        """Run statements in a transaction; return the bodies of their events."""
        await self.connection.execute("DELETE FROM postrider.outbox")
        async with self.connection.transaction():
            for statement in statements:
                await self.connection.execute(statement)
        assert await self.store.rejections() == []
        return await self.bodies()

    async def bodies(self) -> list[Body]:
        rows = await self.connection.fetch(
            """SELECT id, workspace_id, type, data::text, octet_length(data::text) AS data_bytes,
                 previous_attributes::text, object_type, object_id, actor::text, related::text, occurred_at
               FROM postrider.outbox ORDER BY id"""
        )
        return [json.loads(render(self.dialect, Event(**row))) for row in rows]


@asynccontextmanager
async def crm_of(dsn: str, name: str) -> AsyncIterator[Crm]:
    example = tomllib.loads((config_dir() / "crms" / f"{name}.toml").read_text())
    config = parse_config(example, name)
    tables = (sql_dir() / f"crm_{name}.sql").read_text()
    database = Database(dsn, pool_size=1, keyed=False)
    await database.open()
    connection = await asyncpg.connect(dsn)
    try:
        for _ in range(2):
            await connection.execute(tables)
        store = Captures(database)
        await store.apply(config.capture, datetime.now(UTC))
        yield Crm(name, load_dialects((), config.dialect.values)[name], connection, store)
    finally:
        await connection.close()
        await database.close()


async def acts(connection: Connection) -> None:
    for _ in range(ACTS):
        await connection.execute("SELECT crm.act()")


def same_form(got: Any, sample: Any) -> bool:
    """Whether objects have members of the same names in the same order, all the way down; what may be missing
    is null on either side, lists and scalars are one, and custom fields are anything."""
    if not isinstance(got, dict) or not isinstance(sample, dict):
        return got is None or sample is None or isinstance(got, dict) == isinstance(sample, dict)
    return list(got) == list(sample) and all(
        name in ("customFields", "data") or same_form(got[name], sample[name]) for name in got
    )


@pytest.mark.parametrize("name", CRMS)
async def test_every_event_type_comes_in_the_form_of_its_sample(database_dsn: str, name: str) -> None:
    catalogue = DIALECTS[name].catalogue
    sessions = [await asyncpg.connect(database_dsn) for _ in range(SESSIONS)]
    try:
        async with crm_of(database_dsn, name) as crm:
            seen: dict[str, Any] = {}
            for _ in range(ROUNDS):
                await asyncio.gather(*map(acts, sessions))
                rows = await crm.connection.fetch(
                    """SELECT DISTINCT ON (type) type, data::text, actor::text, related::text
                       FROM postrider.outbox"""
                )
                seen = {row["type"]: row for row in rows}
                if set(seen) == set(catalogue.types):
                    break
            assert set(seen) == set(catalogue.types)
            assert await crm.store.rejections() == []
            for event_type, row in seen.items():
                sample = catalogue.sample(event_type)
                for part in ("data", "actor", "related"):
                    if shown := getattr(sample, part):
                        assert same_form(json.loads(row[part]), json.loads(shown)), (event_type, part)
    finally:
        for session in sessions:
            await session.close()


def types(bodies: list[Body]) -> list[str]:
    return [body.get("type") or body["event"] for body in bodies]


async def test_nodestash_tells_of_a_deal_that_goes_to_another_company(database_dsn: str) -> None:
    async with crm_of(database_dsn, "nodestash") as crm:
        (body,) = await crm.does("UPDATE crm.deals SET company_id = 'co_2' WHERE id = 'dl_1'")
        assert body["type"] == "deal.updated"
        assert list(body["data"]["attributes"]) == ["title", "stage_id", "closed_at", "company_id"]
        assert body["data"]["attributes"]["company_id"] == "co_2"
        assert body["previous_attributes"] == {"company_id": "co_1"}


async def test_nodestash_tells_nothing_of_what_its_precision_hides(database_dsn: str) -> None:
    async with crm_of(database_dsn, "nodestash") as crm:
        await crm.does("UPDATE crm.deals SET closed_at = '2026-03-15 10:30:00.1Z' WHERE id = 'dl_1'")
        assert not await crm.does(
            "UPDATE crm.deals SET closed_at = '2026-03-15 10:30:00.2Z' WHERE id = 'dl_1'"
        )
        (body,) = await crm.does("UPDATE crm.deals SET closed_at = '2026-03-15 10:30:01Z' WHERE id = 'dl_1'")
        assert body["previous_attributes"] == {"closed_at": "2026-03-15T10:30:00Z"}


async def test_stover_tells_of_a_contact_that_goes_to_another_company(database_dsn: str) -> None:
    async with crm_of(database_dsn, "stover") as crm:
        (body,) = await crm.does("UPDATE crm.contacts SET company_id = 'comp_1' WHERE id = 'con_2'")
        assert body["type"] == "contact.updated"
        assert list(body["data"]) == ["id", "first_name", "last_name", "email", "company_id"]
        assert body["data"]["company_id"] == "comp_1"


async def test_stover_tells_of_a_won_deal_in_addition_to_its_update(database_dsn: str) -> None:
    async with crm_of(database_dsn, "stover") as crm:
        bodies = await crm.does("UPDATE crm.deals SET stage = 'won' WHERE id = 'deal_1'")
        assert types(bodies) == ["deal.updated", "deal.stage_changed", "deal.closed_won"]
        assert {body["data"]["stage"] for body in bodies} == {"won"}
        bodies = await crm.does("UPDATE crm.deals SET stage = 'lost' WHERE id = 'deal_1'")
        assert types(bodies) == ["deal.updated", "deal.stage_changed", "deal.closed_lost"]
        new = "INSERT INTO crm.deals (title, value, stage, contact_id) VALUES ('a', 1, 'won', 'con_1')"
        assert types(await crm.does(new)) == ["deal.created", "deal.closed_won"]


async def test_workestra_tells_of_outcomes_in_addition_to_updates(database_dsn: str) -> None:
    rows = "(id, workspace_id, title, value) VALUES ('deal_1', 'ws', 'a', 1), ('deal_2', 'ws', 'b', 2)"
    async with crm_of(database_dsn, "workestra") as crm:
        await crm.does(
            f"INSERT INTO crm.deals {rows}",
            "INSERT INTO crm.tasks (id, workspace_id, title) VALUES ('task_1', 'ws', 'a')",
            "INSERT INTO crm.tickets (id, workspace_id, subject) VALUES ('tick_1', 'ws', 'a')",
        )
        assert types(await crm.does("UPDATE crm.deals SET status = 'won' WHERE id = 'deal_1'")) == [
            "deal.updated",
            "deal.won",
        ]
        assert types(await crm.does("UPDATE crm.deals SET status = 'lost' WHERE id = 'deal_2'")) == [
            "deal.updated",
            "deal.lost",
        ]
        done = "UPDATE crm.tasks SET status = 'done', completed_at = now()"
        assert types(await crm.does(done)) == ["task.updated", "task.completed"]
        bodies = await crm.does("UPDATE crm.tickets SET status = 'resolved', priority = 'urgent'")
        assert types(bodies) == ["ticket.updated", "ticket.resolved", "ticket.escalated"]


async def test_workestra_tells_of_every_increase_of_a_priority(database_dsn: str) -> None:
    async with crm_of(database_dsn, "workestra") as crm:
        escalated = ["ticket.updated", "ticket.escalated"]
        new = "INSERT INTO crm.tickets (workspace_id, subject, priority) VALUES ('ws', 'a', 'normal')"
        assert types(await crm.does(new)) == ["ticket.created"]
        for priority, expected in (
            ("high", escalated),
            ("high", []),
            ("urgent", escalated),
            ("normal", ["ticket.updated"]),
            ("urgent", escalated),
            ("high", ["ticket.updated"]),
        ):
            bodies = await crm.does(f"UPDATE crm.tickets SET priority = '{priority}'")
            assert types(bodies) == expected, priority
            assert {body["data"]["priority"] for body in bodies} <= {priority}
        new = new.replace("normal", "urgent")
        assert types(await crm.does(new)) == ["ticket.created"]


INSERTED: tuple[tuple[str, str, str, list[str]], ...] = (
    ("cycles", "name, starts_on, ends_on, status", "'a', now(), now(), 'active'", ["cycle.started"]),
    ("cycles", "name, starts_on, ends_on, status", "'a', now(), now(), 'done'", ["cycle.ended"]),
    ("cycles", "name, starts_on, ends_on, status", "'a', now(), now(), 'planned'", []),
    ("tasks", "title, status", "'a', 'done'", ["task.created", "task.completed"]),
    ("deals", "title, value, status", "'a', 1, 'won'", ["deal.created", "deal.won"]),
    ("deals", "title, value, status", "'a', 1, 'lost'", ["deal.created", "deal.lost"]),
    ("invoices", "total, status", "1, 'paid'", ["invoice.created", "invoice.paid"]),
    ("invoices", "total, status", "1, 'overdue'", ["invoice.created", "invoice.overdue"]),
    ("tickets", "subject, status", "'a', 'resolved'", ["ticket.created", "ticket.resolved"]),
)


async def test_workestra_tells_of_the_state_in_which_a_row_is_inserted(database_dsn: str) -> None:
    async with crm_of(database_dsn, "workestra") as crm:
        for table, columns, row, expected in INSERTED:
            new = f"INSERT INTO crm.{table} (workspace_id, {columns}) VALUES ('ws_1', {row})"
            assert types(await crm.does(new)) == expected, new


async def test_heffl_tells_the_stage_of_a_contact(database_dsn: str) -> None:
    async with crm_of(database_dsn, "heffl") as crm:
        await crm.does(
            """INSERT INTO crm.contacts (id, first_name, last_name, client_id)
               VALUES ('ct_1', 'A', 'B', 'cl_1')"""
        )
        updated, moved = await crm.does("UPDATE crm.contacts SET stage_id = 22")
        assert types([updated, moved]) == ["contact.updated", "contact.stageChanged"]
        assert list(moved["payload"]) == [
            *("id", "firstName", "lastName", "email", "mobile", "designation", "clientId", "createdAt"),
            *("stage", "stageId"),
        ]
        assert (moved["payload"]["stage"], moved["payload"]["stageId"]) == ("Opportunity", 22)
        assert moved["payload"] == updated["payload"]


async def test_heffl_tells_of_an_invoice_that_is_inserted_as_paid(database_dsn: str) -> None:
    async with crm_of(database_dsn, "heffl") as crm:
        new = "INSERT INTO crm.invoices (client_id, total, status) VALUES ('cl_1', 5, '{}')"
        bodies = await crm.does(new.format("PAID"))
        assert types(bodies) == ["invoice.created", "invoice.paid"]
        assert {body["payload"]["status"] for body in bodies} == {"PAID"}
        assert types(await crm.does(new.format("SENT"))) == ["invoice.created"]
        paid = "UPDATE crm.invoices SET status = 'PAID' WHERE status = 'SENT'"
        assert types(await crm.does(paid)) == ["invoice.updated", "invoice.statusChanged", "invoice.paid"]


async def test_heffl_tells_the_client_of_a_deal_that_goes_with_it(database_dsn: str) -> None:
    new = "INSERT INTO crm.deals (id, title, price, client_id, owner_id) VALUES ('{}', 'a', 5, '{}', 42)"
    async with crm_of(database_dsn, "heffl") as crm:
        before = await crm.does(
            "INSERT INTO crm.clients (id, name, custom_fields) VALUES ('cl_2', 'Two', '{\"b\": [1]}')",
            *(new.format(f"dl_{number}", "cl_1" if number < 3 else "cl_2") for number in range(1, 5)),
        )
        created = {body["payload"]["id"]: body["payload"] for body in before}
        for statements in (
            ("DELETE FROM crm.clients",),
            ("DELETE FROM crm.clients WHERE id = 'cl_1'", "DELETE FROM crm.clients WHERE id = 'cl_2'"),
        ):
            transaction = crm.connection.transaction()
            await transaction.start()
            gone = await crm.does(*statements)
            await transaction.rollback()
            assert sorted(types(gone)) == ["client.deleted"] * 2 + ["deal.deleted"] * 4
            told = {body["payload"]["id"]: body["payload"] for body in gone}
            assert told == {**created, "cl_1": told["cl_1"]}
            assert told["dl_4"]["client"]["customFields"] == {"b": [1]}


async def test_nutshell_tells_times_as_of_now(database_dsn: str) -> None:
    columns = "(id, name, description, owner_id, creator_id, created_at)"
    now = datetime.now(UTC)
    async with crm_of(database_dsn, "nutshell") as crm:
        for days, expected in ((0, "Today"), (1, "Yesterday"), (400, None)):
            at = now - timedelta(days=days)
            date = f"{at:%B} {at.day}, {at.year}"
            (body,) = await crm.does(
                f"""INSERT INTO crm.leads {columns}
                    VALUES ('{days}-leads', 'a', 'b', '1-users', '1-users', '{at.isoformat()}')"""
            )
            (lead,) = body["payloads"]
            assert lead["createdTime"] == {
                "absoluteLocalizedString": date,
                "timestamp": int(at.timestamp()),
                "value": expected or date,
            }
            assert lead["closedTime"] is None
        (body,) = await crm.does("UPDATE crm.leads SET closed_at = now() WHERE id = '400-leads'")
        (lead,) = body["payloads"]
        assert list(lead["closedTime"]) == list(lead["createdTime"])
        assert lead["closedTime"]["value"] == "Today"
        assert body["events"][0]["changes"] == [
            {"attribute": "closedTime", "oldValue": None, "newValue": lead["closedTime"]}
        ]


async def test_nutshell_links_to_what_there_is(database_dsn: str) -> None:
    async with crm_of(database_dsn, "nutshell") as crm:
        await crm.does(
            "INSERT INTO crm.accounts (id, name, owner_id) VALUES ('1-accounts', 'a', '1-users')",
            """INSERT INTO crm.contacts (id, first_name, last_name, email, owner_id)
               VALUES ('1-contacts', 'a', 'b', 'a@b.example', '1-users')""",
        )
        (body,) = await crm.does(
            """INSERT INTO crm.leads (id, name, description, contact_id, owner_id, creator_id)
               VALUES ('1-leads', 'a', 'b', '1-contacts', '1-users', '1-users')"""
        )
        links = body["payloads"][0]["links"]
        assert list(links) == list(json.loads(crm.dialect.catalogue.sample("lead.created").data)["links"])
        assert (links["accounts"], links["contacts"]) == ([], ["1-contacts"])
        (body,) = await crm.does("UPDATE crm.contacts SET account_id = '1-accounts', email = 'c@d.example'")
        (contact,) = body["payloads"]
        assert (contact["links"]["accounts"], contact["emails"]) == (["1-accounts"], ["c@d.example"])
        (body,) = await crm.does("UPDATE crm.leads SET name = 'c'")
        assert body["payloads"][0]["links"]["accounts"] == ["1-accounts"]


USER = (
    *(
        "id",
        "type",
        "name",
        "firstName",
        "modifiedTime",
        "isEnabled",
        "isAdministrator",
        "isViewingRestricted",
    ),
    *("emails", "sendForUser", "emailSignature", "phonecallerType", "avatarUrl", "initials", "links"),
)


@pytest.mark.parametrize("kind", ["leads", "contacts", "accounts"])
async def test_nutshell_shows_people_whole_and_points_to_the_host_of_the_configuration(
    database_dsn: str, kind: str
) -> None:
    rows = {
        "leads": "(name, description, owner_id, creator_id) VALUES ('a', 'b', '2-users', '1-users')",
        "contacts": "(first_name, last_name, email, owner_id) VALUES ('a', 'b', 'c', '2-users')",
        "accounts": "(name, owner_id) VALUES ('a', '2-users')",
    }
    async with crm_of(database_dsn, "nutshell") as crm:
        (body,) = await crm.does("SET LOCAL crm.user_id = '1-users'", f"INSERT INTO crm.{kind} {rows[kind]}")
        (actor,), (owner,) = body["actors"], body["owners"]
        assert tuple(actor) == tuple(owner) == USER
        assert (actor["id"], owner["id"]) == ("1-users", "2-users")
        assert actor["sendForUser"] == [{"id": "1", "email": "bob@example.com"}]
        assert [each["id"] for each in owner["sendForUser"]] == ["2", "3"]
        assert (owner["emails"], owner["links"]) == (["ines@example.com"], {"teams": ["7-teams"]})
        assert "nutshell.com" not in json.dumps(body)
        hosts = {each["href"].split("/rest/")[0] for each in body["links"].values()}
        assert hosts == {"https://crm.example"}
