"""Schedules and what follows them: as the CRMs promise, by an injected clock and in real seconds."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from itertools import pairwise
from pathlib import Path

import pytest

from postrider.edges.resources import config_dir
from tests.dialects.facts import FACTS
from tests.support.clock import FakeClock
from tests.support.daemon_process import (
    SECRET,
    DaemonProcess,
    add_endpoint,
    emit,
    query,
    wait_until,
    write_config,
)
from tests.support.receiver_process import ReceiverProcess
from tests.support.stage import Stage, eventually, staged

DOCUMENTED = {crm: facts.retry_delays[1:] for crm, facts in FACTS.items() if facts.retry_delays}
ENDPOINT = "SELECT state, coalesce(disabled_reason, '') AS reason FROM postrider.endpoint"


async def until(
    stage: Stage, clock: FakeClock, ask: Callable[[], Awaitable[object]], expected: object
) -> None:
    async def step() -> object:
        clock.advance(0.05)
        return await ask()

    await eventually(step, expected)


@pytest.mark.parametrize("crm", DOCUMENTED)
async def test_attempts_come_at_exactly_the_documented_delays(
    database_dsn: str, tmp_path: Path, crm: str
) -> None:
    clock = FakeClock()
    receiver = ReceiverProcess(mode="500")
    try:
        await asyncio.to_thread(add_endpoint, database_dsn, receiver.url("/a"), dialect=crm)
        async with staged(database_dsn, tmp_path, clock) as stage:
            await stage.emit("deal.updated")

            async def attempts() -> object:
                return await stage.connection.fetchval("SELECT max(attempts) FROM postrider.delivery")

            await until(stage, clock, attempts, 1)
            for number, delay in enumerate(DOCUMENTED[crm], start=2):
                due = await stage.connection.fetchval("SELECT due FROM postrider.delivery")
                before = await stage.connection.fetchval(
                    "SELECT max(started_at) FROM postrider.every_attempt"
                )
                assert (due - before).total_seconds() == pytest.approx(delay, abs=1)
                clock.advance((due - clock.now()).total_seconds() - 0.01)
                await stage.daemon.services.scheduler.run_once()
                assert (await asyncio.to_thread(receiver.stats))["received"] == number - 1
                clock.advance(0.02)
                await until(stage, clock, attempts, number)
            assert await stage.states() == ["failed"]
            await until(
                stage,
                clock,
                lambda: stage.connection.fetchval("SELECT state FROM postrider.endpoint"),
                "disabled" if crm == "workestra" else "active",
            )
    finally:
        receiver.stop()


@pytest.mark.parametrize(
    ("crm", "scale"),
    [
        ("workestra", 100),
        ("stover", 1000),
        pytest.param("workestra", 1, marks=pytest.mark.soak),
        pytest.param("stover", 60, marks=pytest.mark.soak),
    ],
)
def test_the_schedule_in_real_seconds(database_dsn: str, tmp_path: Path, crm: str, scale: float) -> None:
    """`scale` divides the promised delays; 1 is the CRM's own time."""
    shipped = (config_dir() / "dialects" / f"{crm}.toml").read_text()
    delays = [delay / scale for delay in DOCUMENTED[crm]]
    scaled, count = re.subn(r"retry_delays = \[.*\]", f"retry_delays = {[0, *delays]}", shipped)
    assert count == 1
    (tmp_path / "scaled.toml").write_text(scaled)
    config = write_config(tmp_path, database_dsn, dialect={"paths": [str(tmp_path / "scaled.toml")]})
    with ReceiverProcess(SECRET, mode="500") as receiver:
        add_endpoint(database_dsn, receiver.url("/a"), dialect=crm)
        with DaemonProcess(config) as daemon:
            emit(database_dsn)
            failed = daemon.wait_for_log("delivery.failed", timeout=sum(delays) + 30)
            assert (failed["attempt"], failed["reason"]) == (5, "HTTP 500")
            if crm == "workestra":
                disabled = daemon.wait_for_log("endpoint.disabled")
                assert disabled["reason"] == "a delivery failed 5 times, the last time with HTTP 500"
                wait_until(lambda: query(database_dsn, ENDPOINT)[0]["state"] == "disabled", "disabled")
                emit(database_dsn)  # goes nowhere any more
            else:
                assert query(database_dsn, ENDPOINT)[0]["state"] == "active"
                assert not daemon.logged("endpoint.disabled")
        requests = receiver.requests(10)
    assert len(requests) == 5
    for (before, after), delay in zip(pairwise(requests), delays, strict=True):
        assert delay - 0.01 <= after["at"] - before["at"] < delay + 1.0
    assert [row["state"] for row in query(database_dsn, "SELECT state FROM postrider.delivery")] == ["failed"]


def test_an_answer_after_the_dialects_timeout_is_a_failure(database_dsn: str, tmp_path: Path) -> None:
    shipped = (config_dir() / "dialects" / "stover.toml").read_text()
    (tmp_path / "quick.toml").write_text(shipped.replace("timeout = 30", "timeout = 0.3"))
    config = write_config(tmp_path, database_dsn, dialect={"paths": [str(tmp_path / "quick.toml")]})
    with ReceiverProcess(mode="never") as receiver, DaemonProcess(config) as daemon:
        add_endpoint(database_dsn, receiver.url("/a"), dialect="stover")
        emit(database_dsn)
        retrying = daemon.wait_for_log("delivery.retrying")
        assert retrying["reason"] == "timeout: no complete answer within 0.3 s"
