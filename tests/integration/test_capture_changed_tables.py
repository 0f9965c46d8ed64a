"""A migration of the CRM takes away what a section names: rows wait, people are told, and events come once it
fits again."""

import asyncio
import json
from pathlib import Path

import pytest

from postrider.app.tuning import Tuning
from postrider.domain.capture_steps import MAX_COUNTED
from postrider.engine.reporter import ReporterTuning
from tests.integration.test_capture import SIMPLE, crm_of, types
from tests.support.cli import Cli
from tests.support.stage import eventually, staged

MIGRATIONS = {
    "dropped": ("ALTER TABLE crm.deals DROP COLUMN price", '"title", "price"', '"title"'),
    "renamed": ("ALTER TABLE crm.deals RENAME price TO amount", '"price"', '"amount"'),
    "of another type": ("ALTER TABLE crm.deals ALTER price TYPE text", '"price"', '"price"'),
    "replaced": (
        "ALTER TABLE crm.deals DROP COLUMN price; ALTER TABLE crm.deals ADD cents integer DEFAULT 5",
        '"price"',
        '"cents"',
    ),
}


@pytest.mark.parametrize("migration", MIGRATIONS)
async def test_no_write_is_lost_by_a_migration_of_the_crm(database_dsn: str, migration: str) -> None:
    change, before, after = MIGRATIONS[migration]
    async with crm_of(database_dsn) as crm:
        await crm.apply(SIMPLE)
        await crm.does("INSERT INTO crm.deals (id, title) VALUES (1, 'a'), (2, 'b')")
        await crm.connection.execute(change)
        at_once = await crm.does(
            "INSERT INTO crm.deals (id, title) VALUES (3, 'c')",
            "UPDATE crm.deals SET title = 'x' WHERE id = 1",
            "DELETE FROM crm.deals WHERE id = 2",
        )
        assert len(at_once) == (3 if migration == "of another type" else 0)
        await crm.apply(SIMPLE.replace(before, after))
        await crm.store.recover(limit=100, after=0)
        assert not await crm.rejected()
        events = await crm.events()
        assert [(event["type"], event["object_id"]) for event in events] == [
            ("deal.created", "3"),
            ("deal.updated", "1"),
            ("deal.deleted", "2"),
        ]
        assert [event["data"]["title"] for event in events] == ["c", "x", "b"]
        assert events[1]["previous_attributes"] == {"title": "a"}
        if migration == "replaced":
            assert [event["data"]["cents"] for event in events] == [5, 5, 5]


async def test_only_columns_that_a_section_names_are_kept_where_all_of_them_are_there(
    database_dsn: str,
) -> None:
    async with crm_of(database_dsn) as crm:
        await crm.apply(SIMPLE)
        insert = "INSERT INTO crm.deals (id, title, notes) VALUES ({}, repeat('x', 2000000), 'private')"
        await crm.does(insert.format(1))
        await crm.connection.execute("ALTER TABLE crm.deals DROP COLUMN price")
        await crm.does(insert.format(2))
        rows = await crm.connection.fetch("SELECT new_row FROM postrider.capture_rejected ORDER BY id")
        first, second = [set(json.loads(row["new_row"])) for row in rows]
        assert first == {"id", "title", "price"}
        assert second >= {"id", "title", "notes"}


async def test_everybody_is_told_until_the_rows_are_events(
    database_dsn: str, config_file: Path, tmp_path: Path
) -> None:
    tuning = Tuning(reporter=ReporterTuning(interval_s=0.2))
    cli = Cli(config_file)
    async with crm_of(database_dsn) as crm, staged(database_dsn, tmp_path, tuning=tuning) as stage:

        async def gauge() -> float | None:
            return stage.daemon.metrics.registry.get_sample_value("postrider_database_set_aside_rows")

        async def problems() -> list[str]:
            facts = await asyncio.to_thread(cli.json, "status")
            assert facts["captured_rows_set_aside"] == await gauge()
            return [each for each in facts["problems"] if "captured" in each]

        config_file.write_text(config_file.read_text() + SIMPLE)
        await crm.apply(SIMPLE)
        await eventually(gauge, 0.0)
        assert not await problems()
        await crm.connection.execute("ALTER TABLE crm.deals DROP COLUMN price")
        await crm.connection.execute("INSERT INTO crm.deals (id) VALUES (1), (2)")
        await eventually(gauge, 2.0)
        assert await problems() == [
            "2 captured rows are set aside, and no event is made of them yet: `postrider capture rejected` "
            "says why."
        ]
        mended = SIMPLE.replace(', "price"', "")
        config_file.write_text(config_file.read_text().replace(SIMPLE, mended))
        assert "~ change deal" in await asyncio.to_thread(cli, "capture", "apply")
        done = await asyncio.to_thread(cli.json, "capture", "retry")
        assert done["kept"] == 0
        assert types(await crm.events()) == ["deal.created"] * 2
        await eventually(gauge, 0.0)
        assert not await problems()


async def test_counting_stops_at_a_limit(database_dsn: str, config_file: Path) -> None:
    async with crm_of(database_dsn) as crm:
        await crm.connection.execute(
            """INSERT INTO postrider.capture_rejected (capture, operation, reason)
               SELECT 'deal', 'INSERT', 'x' FROM generate_series(1, 12000)"""
        )
        assert await crm.store.count_rejections() == MAX_COUNTED
        assert "10,000+ captured rows are set aside" in await asyncio.to_thread(Cli(config_file), "status")
