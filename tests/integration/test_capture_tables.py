"""Partitions, TRUNCATE, and tables with awkward names."""

import json
import subprocess
from pathlib import Path

import pytest

from postrider.domain.errors import UsageError
from tests.integration.test_capture import SIMPLE, captures, crm_of, types
from tests.integration.test_capture_set_aside import locked, recovered
from tests.support.cli import Cli

PARTED = """
CREATE SCHEMA crm;
CREATE TABLE crm.calls (id bigint, at date, name text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
CREATE TABLE crm.calls_1 PARTITION OF crm.calls FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');
CREATE TABLE crm."calls 2" PARTITION OF crm.calls
  FOR VALUES FROM ('2026-02-01') TO ('2026-03-01') PARTITION BY RANGE (at);
CREATE TABLE crm.calls_2b PARTITION OF crm."calls 2" FOR VALUES FROM ('2026-02-01') TO ('2026-03-01');
"""
CALLS = """
[[capture]]
table = "crm.calls"
object_type = "call"
key = ["id", "at"]
columns = ["id", "name"]
events = { truncated = true }
"""
EACH = [
    "INSERT INTO {} VALUES (1, '{}', 'a')",
    "UPDATE {} SET name = 'b'",
    "DELETE FROM {}",
]


@pytest.mark.parametrize(
    ("table", "day"),
    [
        ("crm.calls", "2026-01-02"),
        ("crm.calls_1", "2026-01-02"),
        ('crm."calls 2"', "2026-02-02"),
        ("crm.calls_2b", "2026-02-02"),
    ],
)
async def test_each_write_is_told_once_whichever_table_it_names(
    database_dsn: str, table: str, day: str
) -> None:
    async with crm_of(database_dsn, PARTED) as crm:
        await crm.apply(CALLS)
        events = await crm.does(*(each.format(table, day) for each in EACH))
        assert types(events) == ["call.created", "call.deleted", "call.updated"]
        assert {event["object_id"] for event in events} == {f"1,{day}"}
        assert types(await crm.does(f"TRUNCATE {table}")) == ["call.truncated"]
        assert not await crm.rejected()


async def test_a_partition_that_came_later_is_told_of_until_it_is_captured(
    database_dsn: str, config_file: Path
) -> None:
    config_file.write_text(config_file.read_text() + CALLS)
    async with crm_of(database_dsn, PARTED) as crm:
        await crm.apply(CALLS)
        await crm.connection.execute(
            "CREATE TABLE crm.calls_3 PARTITION OF crm.calls"
            "  FOR VALUES FROM ('2026-03-01') TO ('2026-04-01');"
            "CREATE TABLE crm.late (extra text, LIKE crm.calls); ALTER TABLE crm.late DROP COLUMN extra;"
            "ALTER TABLE crm.calls ATTACH PARTITION crm.late FOR VALUES FROM ('2026-04-01') TO ('2026-05-01')"
        )
        found = json.loads(Cli(config_file)("check", "--no-endpoints", "--json", exit_code=1))
        (capture,) = [each for each in found if each["what"] == "capture call (crm.calls)"]
        assert capture["level"] == "fail"
        for name in ("crm.calls_3", "crm.late"):
            assert f"{name}, a partition, has no triggers" in capture["message"]
        assert [step.action for step in await crm.apply(CALLS)] == ["change"]
        assert types(await crm.does("INSERT INTO crm.late VALUES (1, '2026-04-03', 'x')")) == ["call.created"]
        await crm.connection.execute("ALTER TABLE crm.calls DETACH PARTITION crm.late")
        (step,) = await crm.store.plan(captures(CALLS))
        assert step.action == "change"
        await crm.apply(CALLS)
        assert not await crm.does("INSERT INTO crm.late VALUES (2, '2026-04-03', 'x')")
        await crm.store.drop(["call"])
        assert not await crm.does("INSERT INTO crm.calls_1 VALUES (2, '2026-01-03', 'x')")


async def test_a_partition_on_its_own_is_warned_of(database_dsn: str) -> None:
    async with crm_of(database_dsn, PARTED) as crm:
        (step,) = await crm.store.plan(captures(CALLS.replace("crm.calls", "crm.calls_1")))
        assert step.warnings == (
            "crm.calls_1 is a partition: what is written through its parent tells nothing",
        )


async def test_truncate_is_one_event_where_a_section_asks_for_it(database_dsn: str) -> None:
    section = (
        SIMPLE
        + """
        workspace = { value = "ws_1" }
        actor = { setting = "crm.user_id" }
        events = { truncated = true }
    """
    )
    async with crm_of(database_dsn) as crm:
        await crm.apply(section)
        await crm.does("SET crm.user_id = '7'", "INSERT INTO crm.deals (id) SELECT generate_series(1, 100)")
        (event,) = await crm.does("TRUNCATE crm.deals")
        assert (event["type"], event["object_type"], event["object_id"]) == ("deal.truncated", "deal", None)
        assert (event["workspace_id"], event["data"], event["actor"]) == ("ws_1", {}, {"id": "7"})
        assert types(await crm.does("BEGIN", *["TRUNCATE crm.deals"] * 2, "COMMIT")) == ["deal.truncated"] * 2
        assert types(await crm.does("TRUNCATE crm.clients CASCADE")) == ["deal.truncated"]
        async with locked(database_dsn, "postrider.outbox"):
            await crm.connection.execute("TRUNCATE crm.deals")
        await crm.connection.execute("DELETE FROM postrider.outbox")
        assert await recovered(crm) == (1, 1, 0)
        assert types(await crm.events()) == ["deal.truncated"]


async def test_plan_warns_where_truncate_is_not_told(database_dsn: str) -> None:
    async with crm_of(database_dsn) as crm:
        (step,) = await crm.store.plan(captures(SIMPLE))
        (warning,) = step.warnings
        assert "TRUNCATE of crm.deals tells nothing; events = { truncated = true } makes it one" in warning
        await crm.apply(SIMPLE)
        assert not await crm.does("TRUNCATE crm.deals")
        (step,) = await crm.store.plan(captures(SIMPLE + "events = { truncated = false }"))
        assert not step.warnings
        (step,) = await crm.store.plan(
            captures(SIMPLE + 'events = { truncated = "deal.gone" }\nworkspace = "workspace_id"')
        )
        assert step.warnings == ("deal.gone goes to the workspace default: no row is left to name another",)


async def test_names_that_are_quoted(database_dsn: str) -> None:
    tables = """
        CREATE SCHEMA "My CRM";
        CREATE TABLE "My CRM"."All my.deals" ("Deal no" bigint PRIMARY KEY, client bigint);
        CREATE TABLE "My CRM"."Größe ""x"" y" (id bigint PRIMARY KEY, "Full name" text);
        INSERT INTO "My CRM"."Größe ""x"" y" VALUES (7, 'Acme');
    """
    section = r"""
        [[capture]]
        table = '"My CRM"."All my.deals"'
        object_type = "deal"
        key = "Deal no"
        [capture.columns]
        id = "Deal no"
        [capture.columns.client]
        table = '"My CRM" . "Größe ""x"" y"'
        where = { id = "client" }
        column = "Full name"
    """
    async with crm_of(database_dsn, tables) as crm:
        assert [step.action for step in await crm.apply(section)] == ["create"]
        assert [step.action for step in await crm.store.plan(captures(section))] == ["keep"]
        (event,) = await crm.does('INSERT INTO "My CRM"."All my.deals" VALUES (1, 7)')
        assert event["data"] == {"id": 1, "client": "Acme"}
        with pytest.raises(UsageError, match=r'did you mean "My CRM"\."All my\.deals"'):
            await crm.store.plan(captures(section.replace("All my.deals", "All my deals")))


def test_a_name_with_spaces_that_is_not_quoted_is_told(config_file: Path) -> None:
    config_file.write_text(config_file.read_text() + CALLS.replace("crm.calls", "crm.my calls"))
    said = Cli(config_file)("capture", "plan", exit_code=2)
    assert "capture[0].table: expected a table, as in crm.deals" in said
    assert "found 'crm.my calls'" in said


async def test_drop_takes_names_or_all(database_dsn: str, config_file: Path) -> None:
    cli = Cli(config_file)
    both = SIMPLE + SIMPLE.replace('"deal"', '"sale"')
    config_file.write_text(config_file.read_text() + both)
    async with crm_of(database_dsn) as crm:
        await crm.apply(both)
        await crm.does("INSERT INTO crm.deals (id, title) VALUES (1, repeat('x', 2000000))")
        for wrong in ((), ("deal", "--all")):
            assert "say which captures to drop" in cli("capture", "drop", *wrong, exit_code=2)
        assert types(await crm.does("INSERT INTO crm.deals (id) VALUES (2)")) == [
            "deal.created",
            "sale.created",
        ]
        assert cli("capture", "drop", "deal").splitlines() == ["- drop   deal on crm.deals"]
        assert cli("capture", "drop", "--all").splitlines() == ["- drop   sale on crm.deals"]
        assert len(await crm.rejected()) == 2, "rows that are set aside stay"
        done = subprocess.run(
            cli.command("capture", "drop", "--all"), capture_output=True, text=True, check=True
        )
        assert done.stderr == "no capture is applied: there is nothing to drop\n"
