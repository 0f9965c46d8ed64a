"""The database's time, as a host knows it whose own clock is wrong."""

import asyncio
from datetime import UTC, datetime, timedelta

from postrider.edges.clock import DatabaseClock

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


class HostClock:
    """Its wall clock can be set without any time passing."""

    def __init__(self) -> None:
        self.wall = NOON
        self.elapsed = 100.0

    def now(self) -> datetime:
        return self.wall

    def monotonic(self) -> float:
        return self.elapsed

    def busy(self) -> float:
        return 0.0

    async def wait(self, event: asyncio.Event, timeout: float | None) -> bool:
        return event.is_set()

    async def sleep(self, seconds: float) -> None:
        self.elapsed += seconds


def test_until_it_is_measured_it_is_the_hosts() -> None:
    assert DatabaseClock(HostClock()).now() == NOON


def test_it_is_the_databases_less_half_the_way() -> None:
    clock = DatabaseClock(HostClock())
    clock.follow(NOON + timedelta(hours=1), round_trip=0.2)
    assert clock.now() == NOON + timedelta(hours=1, seconds=0.1)


def test_a_step_of_the_hosts_clock_changes_nothing() -> None:
    host = HostClock()
    clock = DatabaseClock(host)
    clock.follow(NOON, round_trip=0.0)
    host.elapsed += 5
    host.wall += timedelta(days=1)
    assert clock.now() == NOON + timedelta(seconds=5)


def test_it_follows_a_database_whose_clock_was_set_back() -> None:
    clock = DatabaseClock(HostClock())
    clock.follow(NOON, round_trip=0.0)
    assert clock.now() == NOON
    clock.follow(NOON - timedelta(hours=1), round_trip=0.0)
    assert clock.now() == NOON - timedelta(hours=1)


def test_an_inexact_measurement_does_not_turn_it_back() -> None:
    host = HostClock()
    clock = DatabaseClock(host)
    clock.follow(NOON, round_trip=0.0)
    host.elapsed += 10
    assert clock.now() == NOON + timedelta(seconds=10)
    clock.follow(NOON + timedelta(seconds=7), round_trip=0.0)
    assert clock.now() == NOON + timedelta(seconds=10)
    host.elapsed += 4
    assert clock.now() == NOON + timedelta(seconds=11)
