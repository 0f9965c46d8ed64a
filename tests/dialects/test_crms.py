"""The sample CRM of each dialect: its users' doings, captured, become every event type of the catalogue."""

import asyncio
import json
import tomllib
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest

from postrider.domain.capture import parse_captures
from postrider.edges.resources import config_dir, sql_dir
from postrider.store.captures import Captures
from postrider.store.database import Connection, Database
from tests.dialects.rendering import DIALECTS

CRMS = sorted(set(DIALECTS) - {"standard"})
SESSIONS = 3
ACTS = 50
ROUNDS = 60
"""Rounds of acts that the rarest event type may take; each is likely within a few."""


def keys(value: Any) -> Any:
    """The names of an object's members in their order, all the way down; lists and scalars are one."""
    return {name: keys(each) for name, each in value.items()} if isinstance(value, dict) else None


async def acts(connection: Connection) -> None:
    for _ in range(ACTS):
        await connection.execute("SELECT crm.act()")


@pytest.mark.parametrize("crm", CRMS)
async def test_every_event_type_comes_in_the_form_of_its_sample(database_dsn: str, crm: str) -> None:
    catalogue = DIALECTS[crm].catalogue
    section = tomllib.loads((config_dir() / "crms" / f"{crm}.toml").read_text())["capture"]
    captures, mistakes = parse_captures(section)
    assert not mistakes
    tables = (sql_dir() / f"crm_{crm}.sql").read_text()
    database = Database(database_dsn, pool_size=1, keyed=False)
    await database.open()
    sessions = [await asyncpg.connect(database_dsn) for _ in range(SESSIONS)]
    try:
        connection = sessions[0]
        for _ in range(2):
            await connection.execute(tables)
        store = Captures(database)
        await store.apply(captures, datetime.now(UTC))
        seen: set[str] = set()
        for _ in range(ROUNDS):
            await asyncio.gather(*map(acts, sessions))
            rows = await connection.fetch("SELECT DISTINCT type FROM postrider.outbox")
            seen = {row["type"] for row in rows}
            if seen == set(catalogue.types):
                break
        assert seen == set(catalogue.types)
        assert await store.list_rejections(10) == []
        for event_type in seen:
            data = await connection.fetchval(
                "SELECT data::text FROM postrider.outbox WHERE type = $1 LIMIT 1", event_type
            )
            sample = json.loads(catalogue.sample(event_type).data)
            shown = keys(sample) | {"customFields": None, "data": None} if crm == "heffl" else keys(sample)
            got = keys(json.loads(data))
            got |= {name: None for name in ("customFields", "data") if name in got and crm == "heffl"}
            assert json.dumps(got) == json.dumps({name: shown[name] for name in keys(sample)}), event_type
    finally:
        for session in sessions:
            await session.close()
        await database.close()
