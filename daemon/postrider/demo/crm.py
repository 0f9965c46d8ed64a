"""The sample CRM's application code: what its users do, each in one transaction with the event it emits."""

import random
from typing import Any

import asyncpg
import orjson

from postrider.store.database import Connection

STAGES = ("lead", "proposal", "negotiation", "won")


class SampleCrm:
    """Works on the tables of sql/sample_crm.sql; the caller begins and ends the transaction."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    async def act(self) -> tuple[str, str]:
        """Do something that a user of a CRM does; return the event's type and id."""
        actions = (self._add_company, self._add_contact, self._add_deal, self._move_deal, self._log_activity)
        action = random.choices(actions, weights=(1, 3, 3, 5, 3))[0]
        return await action() or await self._add_company()

    async def _add_company(self) -> tuple[str, str]:
        name = f"{random.choice(_NAMES)} {random.choice(('Ltd', 'GmbH', 'Inc.', 'SA'))}"
        row = await self._fetch(
            "INSERT INTO crm.companies (name, industry) VALUES ($1, $2) RETURNING *",
            name,
            random.choice(_INDUSTRIES),
        )
        return await self._emit("company.created", row)

    async def _add_contact(self) -> tuple[str, str] | None:
        company = await self._any("companies")
        if company is None:
            return None
        first, last = random.choice(_FIRST_NAMES), random.choice(_NAMES)
        row = await self._fetch(
            """INSERT INTO crm.contacts (company_id, first_name, last_name, email)
               VALUES ($1, $2, $3, $4) RETURNING *""",
            company["id"],
            first,
            last,
            f"{first}.{last}@example.com".lower(),
        )
        return await self._emit("contact.created", row)

    async def _add_deal(self) -> tuple[str, str] | None:
        company = await self._any("companies")
        if company is None:
            return None
        row = await self._fetch(
            "INSERT INTO crm.deals (company_id, title, amount) VALUES ($1, $2, $3) RETURNING *",
            company["id"],
            f"{company['name']}: {random.choice(('licence', 'renewal', 'pilot'))}",
            random.randrange(500, 50_000),
        )
        return await self._emit("deal.created", row)

    async def _move_deal(self) -> tuple[str, str] | None:
        deal = await self._any("deals", "WHERE stage NOT IN ('won', 'lost')")
        if deal is None:
            return None
        stage = random.choice((STAGES[STAGES.index(deal["stage"]) + 1], "lost"))
        row = await self._fetch(
            "UPDATE crm.deals SET stage = $2 WHERE id = $1 RETURNING *", deal["id"], stage
        )
        return await self._emit("deal.updated", row, {"stage": deal["stage"]})

    async def _log_activity(self) -> tuple[str, str] | None:
        deal = await self._any("deals")
        if deal is None:
            return None
        kind = random.choice(("call", "email", "meeting"))
        row = await self._fetch(
            "INSERT INTO crm.activities (deal_id, kind, subject) VALUES ($1, $2, $3) RETURNING *",
            deal["id"],
            kind,
            f"{kind} about {deal['title']}",
        )
        return await self._emit("activity.created", row)

    async def _any(self, table: str, where: str = "") -> asyncpg.Record | None:
        """One of the latest rows, locked by nobody else."""
        return await self.connection.fetchrow(
            f"""SELECT * FROM crm.{table} {where} ORDER BY id DESC
                OFFSET floor(random() * 20) LIMIT 1 FOR UPDATE SKIP LOCKED"""  # noqa: S608 (constants)
        )

    async def _fetch(self, statement: str, *arguments: object) -> asyncpg.Record:
        row = await self.connection.fetchrow(statement, *arguments)
        assert row is not None
        return row

    async def _emit(
        self, event_type: str, row: asyncpg.Record, previous: dict[str, Any] | None = None
    ) -> tuple[str, str]:
        event_id: str = await self.connection.fetchval(
            """SELECT postrider.emit($1, data => $2::json, previous_attributes => $3::json,
                                     object_type => $4, object_id => $5)""",
            event_type,
            orjson.dumps(dict(row), default=str).decode(),
            orjson.dumps(previous).decode() if previous else None,
            event_type.split(".", maxsplit=1)[0],
            str(row["id"]),
        )
        return event_type, event_id


_FIRST_NAMES = ("Ada", "Bruno", "Chen", "Dalia", "Emre", "Femi", "Greta", "Hugo", "Ines", "Jonas")
_NAMES = (
    "Abbott",
    "Brandt",
    "Castro",
    "Dubois",
    "Eriksen",
    "Fischer",
    "Gupta",
    "Haddad",
    "Ivanova",
    "Jensen",
)
_INDUSTRIES = ("software", "logistics", "retail", "energy", "health")
