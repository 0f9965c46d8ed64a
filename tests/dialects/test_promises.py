"""What a CRM's document promises goes before Postrider's own habits: 410, Retry-After, timeouts, delays."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from postrider.domain.promises import RetrySettings, overruled, retry_policy
from postrider.edges.dialect_files import load_dialects
from tests.support.cli import Cli
from tests.support.clock import FakeClock
from tests.support.daemon_process import DaemonProcess, add_endpoint, write_config
from tests.support.loopback import receiver
from tests.support.stage import Stage, eventually, staged

DIALECTS = load_dialects(())
PROMISED = {"workestra": 5.0, "stover": 60.0}
"""Seconds from the first attempt to the second."""
SETTINGS = RetrySettings(schedule=None, jitter=None, disable_after=432_000.0)
ONE = "SELECT state, attempts, extract(epoch FROM due - updated_at)::float8 AS wait FROM postrider.delivery"


def answer(status: int, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} Answer", "Content-Length: 0", *headers, "", ""]
    return "\r\n".join(lines).encode()


@asynccontextmanager
async def answered(
    dsn: str,
    directory: Path,
    crm: str,
    said: bytes,
    clock: FakeClock,
    **sections: Mapping[str, Any],
) -> AsyncIterator[Stage]:
    """An event for an endpoint of that CRM, which gives that answer, up to the end of its first attempt."""
    async with receiver(said) as server:
        await asyncio.to_thread(add_endpoint, dsn, server.url, dialect=crm)
        given: dict[str, Any] = {name: dict(section) for name, section in sections.items()}
        async with staged(dsn, directory, clock, **given) as stage:
            await stage.emit("deal.updated")

            async def attempts() -> object:
                clock.advance(0.05)
                return await stage.connection.fetchval("SELECT max(attempts) FROM postrider.delivery")

            await eventually(attempts, 1)
            yield stage


@pytest.mark.parametrize(
    "said", [answer(410), answer(503, "Retry-After: 7200"), answer(429, "Retry-After: 7200"), answer(500)]
)
@pytest.mark.parametrize("crm", PROMISED)
async def test_no_answer_changes_a_promised_schedule(
    database_dsn: str, tmp_path: Path, crm: str, said: bytes
) -> None:
    clock = FakeClock()
    retry = {"schedule": ["0s", "1h"], "jitter": 1}
    async with answered(database_dsn, tmp_path, crm, said, clock, retry=retry) as stage:
        (row,) = await stage.connection.fetch(ONE)
        assert (row["state"], row["wait"]) == ("retrying", pytest.approx(PROMISED[crm], abs=1))
        assert await stage.connection.fetchval("SELECT state FROM postrider.endpoint") == "active"
        (lane,) = stage.daemon.services.lanes._lanes.values()
        assert not lane.pace.resting(clock.monotonic())


@pytest.mark.parametrize(("crm", "state"), [("stover", "active"), ("heffl", "disabled")])
async def test_an_endpoint_that_fails_for_days_stays_where_the_document_only_fails_deliveries(
    database_dsn: str, tmp_path: Path, crm: str, state: str
) -> None:
    clock = FakeClock()
    async with answered(database_dsn, tmp_path, crm, answer(500), clock) as stage:
        await stage.daemon.services.disabler.run_once()
        clock.advance(6 * 86_400)
        await stage.daemon.services.disabler.run_once()
        assert await stage.connection.fetchval("SELECT state FROM postrider.endpoint") == state


async def test_where_a_document_is_silent_410_and_retry_after_have_their_meaning(
    database_dsn: str, tmp_path: Path
) -> None:
    clock = FakeClock()
    said = answer(503, "Retry-After: 7200")
    async with answered(database_dsn, tmp_path, "heffl", said, clock) as stage:
        (row,) = await stage.connection.fetch(ONE)
        assert row["wait"] == pytest.approx(7200, abs=1)


def test_stover_gets_all_of_its_30_seconds_to_connect() -> None:
    stover = DIALECTS["stover"]
    assert (stover.connect_timeout, stover.timeout) == (30, 30)


@pytest.mark.parametrize("crm", PROMISED)
def test_a_configured_schedule_is_overruled_and_named(crm: str) -> None:
    own = RetrySettings(schedule=(0.0, 1.0), jitter=0.5, disable_after=60.0)
    dialect = DIALECTS[crm]
    assert retry_policy(dialect, own) == retry_policy(dialect, SETTINGS)
    assert overruled(dialect, own) == ["retry.schedule", "retry.jitter"]
    assert overruled(dialect, SETTINGS) == []
    same = RetrySettings(schedule=dialect.retry_delays, jitter=0.0, disable_after=60.0)
    assert overruled(dialect, same) == []


def test_a_schedule_that_nobody_promised_is_the_configurations() -> None:
    own = RetrySettings(schedule=(0.0, 1.0), jitter=0.5, disable_after=60.0)
    policy = retry_policy(DIALECTS["heffl"], own)
    assert (policy.delays, policy.jitter, policy.disable_after) == ((0.0, 1.0), 0.5, 60.0)
    assert overruled(DIALECTS["heffl"], own) == []


def test_the_daemon_and_check_say_that_a_promise_goes_first(database_dsn: str, tmp_path: Path) -> None:
    config = write_config(tmp_path, database_dsn, retry={"schedule": ["0s", "1h"]})
    add_endpoint(database_dsn, "http://127.0.0.1:2/", dialect="stover")
    with DaemonProcess(config) as daemon:
        said = daemon.wait_for_log("config.overruled")
        assert (said["dialect"], said["key"], said["level"]) == ("stover", "retry.schedule", "warning")
        daemon.wait_for_log("daemon.started")
        assert len(daemon.logged("config.overruled")) == 1
        found = Cli(config)("check", "--no-endpoints")
    assert "warn  dialect stover: retry.schedule has no effect on its endpoints" in found


def test_show_tells_what_is_promised_and_whose_choice_https_is(database_dsn: str, tmp_path: Path) -> None:
    config = write_config(
        tmp_path, database_dsn, retry={"schedule": ["0s", "1h"]}, network={"https_only": True}
    )
    cli = Cli(config)
    shown = {crm: cli.json("dialect", "show", crm) for crm in ("stover", "workestra", "heffl")}
    assert shown["stover"]["retry_schedule"] == ["0s", "1m", "5m", "30m", "2h"]
    assert shown["heffl"]["retry_schedule"] == ["0s", "1h"]
    for crm, disabled in (
        ("stover", "never"),
        ("workestra", "never"),
        ("heffl", "5d of nothing but failures"),
    ):
        assert shown[crm]["disable_after"] == disabled
    facts = ("connect_timeout", "promised_schedule", "retry_after", "on_410")
    assert [shown["stover"][name] for name in facts] == ["30s", True, "is ignored", "as any other failure"]
    assert [shown["heffl"][name] for name in facts] == [
        "5s",
        False,
        "puts the next attempt off",
        "the endpoint is disabled",
    ]
    assert shown["workestra"]["https"] == "demanded, as the CRM promises it"
    assert shown["heffl"]["https"] == "demanded by network.https_only"
