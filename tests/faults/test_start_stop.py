"""Services that are stopped and started again at any moment: nothing is lost, and nothing is left behind."""

import asyncio
from collections import Counter
from dataclasses import fields
from pathlib import Path

import asyncpg
import pytest

from postrider.app import Daemon
from postrider.app.running import StopPhase
from postrider.edges.config import load_config
from tests.support.daemon_process import add_endpoint, query, write_config
from tests.support.receiver_process import ReceiverProcess
from tests.support.stage import Stage, eventually, staged

SERVICES = (
    "failures",
    "reporter",
    "listener",
    "disabler",
    "last deliveries",
    "recorder",
    "sender",
    "lanes",
    "endpoints",
    "scheduler",
    "dispatcher",
    "janitor",
    "recoverer",
    "secret sealer",
    "partitions",
    "schema watch",
)
ROUNDS = 30
TURNS = (0, 0, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89)
"""Of the event loop, between a start and a stop: at once, and at other moments of what a service does."""


async def turn(times: int) -> None:
    for _ in range(times):
        await asyncio.sleep(0)


def tasks() -> Counter[str]:
    """What runs now; tasks of one kind are alike."""
    return Counter(
        getattr(task.get_coro(), "__qualname__", "?")
        for task in asyncio.all_tasks()
        if task is not asyncio.current_task()
    )


async def settled(stage: Stage, events: int) -> bool:
    """Whether all of it is delivered and recorded, and memory holds nothing of it."""
    recorded = await stage.connection.fetchval(
        "SELECT count(*) FROM postrider.delivery WHERE state = 'succeeded'"
    )
    lanes = stage.daemon.services.lanes
    idle = (lanes.running, lanes.queued, stage.daemon.services.ledger.bytes) == (0, 0, 0)
    return recorded == events and idle and await stage.pending() == 0


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_stopped_at_any_moment_and_goes_on_when_it_is_started_again(
    name: str, database_dsn: str, tmp_path: Path
) -> None:
    with ReceiverProcess() as receiver:
        add_endpoint(database_dsn, receiver.url("/a"))

        async def story() -> None:
            async with staged(database_dsn, tmp_path) as stage:
                supervisor = stage.daemon.services.supervisor
                (service,) = [each for each in stage.daemon.running.services if each.name == name]
                await stage.emit()
                await eventually(lambda: settled(stage, 1), True)
                before = tasks()
                for number in range(ROUNDS):
                    await supervisor.stop([name])
                    await stage.emit()
                    supervisor.start(name, service.run)
                    await turn(TURNS[number % len(TURNS)])
                await eventually(lambda: settled(stage, ROUNDS + 1), True)
                await eventually(lambda: _same(before), True)

        asyncio.run(story())
        assert receiver.stats()["distinct"] == ROUNDS + 1
    assert query(database_dsn, "SELECT count(*) FROM postrider.daemon")[0][0] == 0


async def _same(before: Counter[str]) -> bool:
    return not tasks() - before


def test_the_list_of_services_is_complete(database_dsn: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with staged(database_dsn, tmp_path) as stage:
            assert sorted(each.name for each in stage.daemon.running.services) == sorted(SERVICES)
            assert {each.stops for each in stage.daemon.running.services} == set(StopPhase)

    asyncio.run(story())


def test_a_daemon_that_stops_wherever_its_start_is_leaves_nothing(database_dsn: str, tmp_path: Path) -> None:
    config = load_config(write_config(tmp_path, database_dsn), {})

    async def story() -> None:
        for turns in (*TURNS, 150, 250, 400, 600):
            daemon = Daemon(config)
            starting = asyncio.create_task(daemon.start())
            await turn(turns)
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            await daemon.stop()
            assert not tasks(), turns

    asyncio.run(story())


def test_daemons_that_start_and_stop_amid_events_lose_none(database_dsn: str, tmp_path: Path) -> None:
    daemons = len(TURNS)
    with ReceiverProcess() as receiver:
        add_endpoint(database_dsn, receiver.url("/a"))

        async def story() -> None:
            connection = await asyncpg.connect(database_dsn)
            for turns in TURNS:
                async with staged(database_dsn, tmp_path) as stage:
                    for _ in range(5):
                        await stage.emit()
                    await turn(10 * turns)
                assert await connection.fetchval("SELECT count(*) FROM postrider.daemon") == 0
                assert await connection.fetchval("SELECT count(*) FROM postrider.claim") == 0
            await connection.close()
            async with staged(database_dsn, tmp_path) as stage:
                await eventually(lambda: settled(stage, 5 * daemons), True)

        asyncio.run(story())
        assert receiver.stats()["distinct"] == 5 * daemons


def test_what_runs_tells_its_state(database_dsn: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with staged(database_dsn, tmp_path) as stage:
            services = stage.daemon.services
            said = {each.name: repr(getattr(services, each.name)) for each in fields(services)}
            assert [name for name, text in said.items() if " object at 0x" in text] == []

    asyncio.run(story())
