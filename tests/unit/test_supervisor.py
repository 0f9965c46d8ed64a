"""Services that end, fail or lose the database, on a clock that is moved by hand."""

import asyncio
from collections.abc import Sequence

import pytest
from structlog.testing import capture_logs

from postrider.domain.errors import PostriderError
from postrider.edges.metrics import Metrics
from postrider.engine.signals import Signal
from postrider.engine.supervisor import Supervisor
from postrider.store.database import Database, DatabaseUnavailable
from tests.support.clock import FakeClock

TURNS = 10


class Service:
    """Ends each run as it is told, and then waits."""

    def __init__(self, endings: Sequence[Exception]) -> None:
        self.endings = list(endings)
        self.runs = 0

    async def run(self) -> None:
        self.runs += 1
        if self.endings:
            raise self.endings.pop(0)
        await asyncio.Event().wait()


class Watched:
    def __init__(self, *endings: Exception) -> None:
        self.clock = FakeClock()
        self.database = Database("postgresql://nobody@127.0.0.1:1/none", pool_size=1)
        self.failed = Signal()
        self.supervisor = Supervisor(
            database=self.database, clock=self.clock, metrics=Metrics("test"), failed=self.failed
        )
        self.service = Service(endings)
        self.supervisor.start("service", self.service.run)

    async def runs_after(self, seconds: float) -> int:
        await turn()
        self.clock.advance(seconds)
        await turn()
        return self.service.runs


async def turn() -> None:
    for _ in range(TURNS):
        await asyncio.sleep(0)


async def test_a_service_that_fails_is_started_again_after_growing_waits() -> None:
    with capture_logs() as logs:
        watched = Watched(*(PostriderError("no") for _ in range(3)))
        assert [await watched.runs_after(each) for each in (0.09, 0.02, 0.4, 0.2, 0.9, 0.2)] == [
            1,
            2,
            2,
            3,
            3,
            4,
        ]
    assert watched.failed.take()
    assert [line["restart_in_s"] for line in logs if line["event"] == "service.failed"] == [0.1, 0.5, 1.0]
    await watched.supervisor.stop(["service"])


async def test_a_lost_database_is_no_failure_and_its_return_is_waited_for() -> None:
    lost = DatabaseUnavailable("away")
    with capture_logs() as logs:
        watched = Watched(lost)
        watched.database.mark_lost(lost)
        assert await watched.runs_after(0.0) == 1
        watched.database.restored.set()
        assert await watched.runs_after(0.0) == 2
    assert not watched.failed
    assert [line["event"] for line in logs] == ["database.lost"]
    await watched.supervisor.stop(["service"])


async def test_a_service_that_alone_lost_the_database_tries_again_after_a_moment() -> None:
    watched = Watched(DatabaseUnavailable("no session is left"), DatabaseUnavailable("none yet"))
    assert [await watched.runs_after(each) for each in (0.0, 0.19, 0.02, 0.2)] == [1, 1, 2, 3]
    await watched.supervisor.stop(["service"])


@pytest.mark.parametrize("error", [DatabaseUnavailable("away"), PostriderError("no")])
async def test_a_stop_that_a_failure_hides_is_one(error: Exception) -> None:
    async def run() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise error from None

    watched = Watched()
    watched.supervisor.start("hiding", run)
    await turn()
    stopping = asyncio.create_task(watched.supervisor.stop(["service", "hiding"]))
    await turn()
    watched.clock.advance(1.0)
    await asyncio.wait_for(stopping, 2)


async def test_what_was_stopped_can_be_started_again_and_is_not_started_twice() -> None:
    watched = Watched()
    await watched.supervisor.stop(["service", "another"])
    assert repr(watched.supervisor) == "<Supervisor of nothing>"
    watched.supervisor.start("service", watched.service.run)
    assert repr(watched.supervisor) == "<Supervisor of service>"
    await watched.supervisor.stop(["service"])
