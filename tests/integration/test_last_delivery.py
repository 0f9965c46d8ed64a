"""The last delivery of each endpoint: kept at the cost of a row every few seconds, and listed."""

import asyncio
import re
from pathlib import Path

from postrider.engine.last_deliveries import LastDeliveryKeeper, LastDeliveryTuning
from postrider.store.endpoint_rows import LISTED
from tests.support.cli import Cli
from tests.support.clock import FakeClock
from tests.support.daemon_process import (
    DaemonProcess,
    add_endpoint,
    emit,
    query,
    wait_until,
    write_config,
)
from tests.support.receiver_process import ReceiverProcess
from tests.support.stage import eventually, staged

LAST = "SELECT state, reason FROM postrider.last_delivery"
UPDATES = """
SELECT n_tup_upd AS updates, n_tup_hot_upd AS hot, n_tup_ins AS inserts FROM pg_stat_all_tables
WHERE schemaname = 'postrider' AND relname = 'last_delivery'
"""


def test_the_list_tells_the_last_delivery_and_what_came_of_it(database_dsn: str, tmp_path: Path) -> None:
    config = write_config(tmp_path, database_dsn, retry={"schedule": ["0s", "1h"]})
    cli = Cli(config)
    with ReceiverProcess() as receiver:
        add_endpoint(database_dsn, receiver.url("/a"), "deal.*")
        add_endpoint(database_dsn, receiver.url("/b"), "contact.*")
        with DaemonProcess(config):
            emit(database_dsn)
            wait_until(lambda: len(query(database_dsn, LAST)) == 1, "the first one")
            busy, idle = sorted(cli.json("endpoint", "list"), key=lambda each: each["url"])
            (delivery,) = cli.json("delivery", "list")
            assert busy["last_delivery"]["at"] <= delivery["updated_at"]
            del busy["last_delivery"]["at"]
            assert busy["last_delivery"] == {"id": delivery["id"], "state": "succeeded", "reason": None}
            assert idle["last_delivery"] is None
            receiver.set_mode("500")
            emit(database_dsn)
            wait_until(lambda: query(database_dsn, "SELECT count(*) FROM postrider.attempt")[0][0] == 1, "it")
        # A daemon that stops leaves nothing unwritten.
        assert re.search(r"retrying \d+ s ago: HTTP 500", cli("endpoint", "list"))
        assert cli.json("endpoint", "show", busy["id"])["last_delivery"]["state"] == "retrying"
        receiver.set_mode("ok")
        tried = cli.json("endpoint", "test", idle["id"])
        shown = cli.json("endpoint", "show", idle["id"])["last_delivery"]
        assert (shown["id"], shown["state"]) == (tried["delivery"], "succeeded")


def test_an_endpoint_costs_a_row_every_few_seconds_whatever_it_gets(
    database_dsn: str, tmp_path: Path
) -> None:
    clock = FakeClock()

    async def story(url: str) -> None:
        async with staged(database_dsn, tmp_path, clock) as stage:
            count = "SELECT count(*) FROM postrider.delivery WHERE state = 'succeeded'"
            for burst in (1, 2, 3):
                for _ in range(50):
                    await stage.emit("deal.updated")

                async def delivered() -> object:
                    clock.advance(0.01)
                    return await stage.connection.fetchval(count)

                await eventually(delivered, burst * 50)
                clock.advance(LastDeliveryTuning().interval_s)
                await eventually(lambda: _written(stage.daemon.services.last_deliveries), True)

    with ReceiverProcess() as receiver:
        add_endpoint(database_dsn, receiver.url("/a"))
        asyncio.run(story(receiver.url()))
    query(database_dsn, "SELECT pg_stat_force_next_flush()")

    def written() -> int:
        row = query(database_dsn, UPDATES)[0]
        assert row["hot"] == row["updates"]
        return int(row["inserts"] + row["updates"])

    wait_until(lambda: written() > 0, "statistics")
    assert written() <= 10


async def _written(service: LastDeliveryKeeper) -> bool:
    return repr(service) == "<LastDeliveryKeeper 0 to write>"


def test_an_attempt_that_can_not_be_recorded_is_left_out_and_its_delivery_is_told(
    database_dsn: str, tmp_path: Path
) -> None:
    """As where the database's encoding lacks a letter of what the receiver answered."""
    config = write_config(tmp_path, database_dsn)
    query(database_dsn, "ALTER TABLE postrider.delivery ADD CHECK (status IS DISTINCT FROM 200)")
    with ReceiverProcess() as receiver:
        add_endpoint(database_dsn, receiver.url("/a"))
        with DaemonProcess(config) as daemon:
            emit(database_dsn, 3)
            wait_until(lambda: len(daemon.logged("attempt.unrecorded")) == 3, "them")
        rows = query(database_dsn, "SELECT state, reason, status FROM postrider.delivery")
        assert [row["state"] for row in rows] == ["succeeded"] * 3
        assert all(row["reason"].startswith("the attempt can't be recorded: Check") for row in rows)
        assert query(database_dsn, LAST) == []
        assert daemon.logged("service.failed") == []
        assert receiver.stats()["duplicates"] == 0


def test_the_list_looks_last_deliveries_up_by_key(database_dsn: str) -> None:
    query(
        database_dsn,
        """INSERT INTO postrider.last_delivery (endpoint_id, workspace_id, event_id, state, at)
           SELECT n, 'default', gen_random_uuid(), 'succeeded', now() FROM generate_series(1, 20000) AS n""",
    )
    query(database_dsn, "ANALYZE postrider.last_delivery")
    plan = "\n".join(row[0] for row in query(database_dsn, f"EXPLAIN {LISTED} WHERE e.id = 7"))
    assert "Seq Scan on last_delivery" not in plan
    assert "delivery_" not in plan.replace("last_delivery_pkey", ""), "no scan of deliveries"
