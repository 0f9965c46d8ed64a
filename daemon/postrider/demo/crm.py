"""What users of the sample CRMs do, each time in one transaction.

The CRM of the dialect `standard` has application code, here, that emits its events. The others know nothing
of Postrider: they act by a function of their own (`sql/crm_*.sql`), and capture triggers write the outbox.
"""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from uuid import UUID

import asyncpg
import orjson

from postrider.edges.resources import sql_dir

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]
else:
    Connection = asyncpg.Connection  # generic in its stubs only

EMITTING = "standard"
"""The dialect whose CRM emits its events itself; tables of the others are captured."""
STAGES = ("lead", "proposal", "negotiation", "won")
ROLLED_BACK = 0.05
"""The share of the CRM's transactions that change their mind: nothing of these may be sent."""


class Left(NamedTuple):
    """An event that a transaction leaves in the outbox."""

    id: UUID
    type: str
    workspace_id: str


async def make_tables(dsn: str, dialect: str) -> None:
    """Those of the CRM of that dialect; what is there stays."""
    file = "sample_crm.sql" if dialect == EMITTING else f"crm_{dialect}.sql"
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute((sql_dir() / file).read_text())
    finally:
        await connection.close()


@asynccontextmanager
async def session(dsn: str, dialect: str) -> AsyncIterator["Session"]:
    """A connection of the CRM's own, set as it likes."""
    connection = await asyncpg.connect(dsn)
    try:
        crm = EmittingCrm(connection) if dialect == EMITTING else CapturedCrm(connection)
        yield Session(crm, connection)
    finally:
        await connection.close()


class Session:
    def __init__(self, crm: "Crm", connection: Connection) -> None:
        self._crm = crm
        self._connection = connection

    async def transact(self) -> list[Left] | None:
        """Let a user do something; return the events that this left when its transaction was committed, or
        None if it was rolled back."""
        connection = self._connection
        transaction = connection.transaction()
        await transaction.start()
        started_at: datetime = await connection.fetchval("SELECT now()")
        await self._crm.act()
        if random.random() < ROLLED_BACK:
            await transaction.rollback()
            return None
        # What is not committed and can be seen is of this transaction; its ids are not older than that. The
        # demo's server is too young for a second epoch of transactions.
        oldest = UUID(int=(int(started_at.timestamp() * 1000) - 1) << 80)
        rows = await connection.fetch(
            """SELECT id, type, workspace_id FROM postrider.outbox
               WHERE id > $1 AND NOT test AND pg_xact_status(xmin::text::xid8) = 'in progress'""",
            oldest,
        )
        await transaction.commit()
        return [Left(*row) for row in rows]


class Crm(Protocol):
    async def act(self) -> None:
        """Do something that a user does; the caller begins and ends the transaction."""


class CapturedCrm:
    """Works on the tables of one of sql/crm_*.sql."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def act(self) -> None:
        await self._connection.execute("SELECT crm.act()")


class EmittingCrm:
    """Works on the tables of sql/sample_crm.sql."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    async def act(self) -> None:
        actions = (self._add_company, self._add_contact, self._add_deal, self._move_deal, self._log_activity)
        action = random.choices(actions, weights=(1, 3, 3, 5, 3))[0]
        if not await action():
            await self._add_company()

    async def _add_company(self) -> bool:
        name = f"{random.choice(_NAMES)} {random.choice(('Ltd', 'GmbH', 'Inc.', 'SA'))}"
        row = await self._fetch(
            "INSERT INTO crm.companies (name, industry) VALUES ($1, $2) RETURNING *",
            name,
            random.choice(_INDUSTRIES),
        )
        return await self._emit("company.created", row)

    async def _add_contact(self) -> bool:
        company = await self._any("companies")
        if company is None:
            return False
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

    async def _add_deal(self) -> bool:
        company = await self._any("companies")
        if company is None:
            return False
        row = await self._fetch(
            "INSERT INTO crm.deals (company_id, title, amount) VALUES ($1, $2, $3) RETURNING *",
            company["id"],
            f"{company['name']}: {random.choice(('licence', 'renewal', 'pilot'))}",
            random.randrange(500, 50_000),
        )
        return await self._emit("deal.created", row)

    async def _move_deal(self) -> bool:
        deal = await self._any("deals", "WHERE stage NOT IN ('won', 'lost')")
        if deal is None:
            return False
        stage = random.choice((STAGES[STAGES.index(deal["stage"]) + 1], "lost"))
        row = await self._fetch(
            "UPDATE crm.deals SET stage = $2 WHERE id = $1 RETURNING *", deal["id"], stage
        )
        return await self._emit("deal.updated", row, {"stage": deal["stage"]})

    async def _log_activity(self) -> bool:
        deal = await self._any("deals")
        if deal is None:
            return False
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
    ) -> bool:
        await self.connection.execute(
            """SELECT postrider.emit($1, data => $2::json, previous_attributes => $3::json,
                                     object_type => $4, object_id => $5)""",
            event_type,
            orjson.dumps(dict(row), default=str).decode(),
            orjson.dumps(previous).decode() if previous else None,
            event_type.split(".", maxsplit=1)[0],
            str(row["id"]),
        )
        return True


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
