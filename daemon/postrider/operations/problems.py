"""What a person should look at: is the service sick, or is an endpoint down?"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from postrider.domain.capture_steps import MAX_COUNTED
from postrider.domain.status import DaemonReport
from postrider.engine.reporter import REPORT_S
from postrider.operations.wording import ago, printable
from postrider.store.daemons import DaemonRow
from postrider.store.situation import Situation

STALE = timedelta(seconds=3 * REPORT_S)
"""A report older than this says nothing of the present."""
LONG_WAIT = timedelta(minutes=1)
"""Longer than any one request may take by default; nothing but a retry should wait for so long."""
EXIT_SICK, EXIT_ENDPOINTS = 1, 3
EXIT_CODES = (
    "Exit codes: 0 all is in order, 1 the service is sick (or can't be asked), 2 bad usage or configuration, "
    "3 the service is in order, but endpoints are not. One that a person paused is in order."
)


class Concern(StrEnum):
    """Who has to act."""

    SERVICE = "service"  # the operator: Postrider, its database or its host
    ENDPOINT = "endpoint"  # whoever owns the endpoint; all others get their events


@dataclass(frozen=True, slots=True)
class Problem:
    scope: Concern
    sentence: str


def exit_code(concerns: Collection[Concern]) -> int:
    """Of a command that found such problems."""
    if Concern.SERVICE in concerns:
        return EXIT_SICK
    return EXIT_ENDPOINTS if concerns else 0


def fresh_reports(daemons: Collection[DaemonRow], now: datetime) -> list[tuple[DaemonRow, DaemonReport]]:
    """Reports of living daemons, where they still hold."""
    return [
        (row, row.report)
        for row in daemons
        if row.alive and row.report and row.reported_at and now - row.reported_at <= STALE
    ]


def find_problems(situation: Situation, daemons: Collection[DaemonRow], now: datetime) -> list[Problem]:
    """In sentences; those of the service first."""
    found = [Problem(Concern.SERVICE, each) for each in _of_service(situation, daemons, now)]
    if situation.troubled:
        sentence = (
            "1 endpoint is in trouble."
            if situation.troubled == 1
            else f"{situation.troubled} endpoints are in trouble."
        )
        found.append(Problem(Concern.ENDPOINT, sentence))
    return found


def _of_service(situation: Situation, daemons: Collection[DaemonRow], now: datetime) -> Iterator[str]:
    if not any(row.alive for row in daemons):
        waits = not situation.queue.empty or situation.waiting or situation.retrying
        consequence = ", and nothing of what waits is delivered" if waits else ""
        yield f"No daemon is running{consequence}. Start one: systemctl start postrider"
    yield from running_problems(situation, daemons, now)


def running_problems(situation: Situation, daemons: Collection[DaemonRow], now: datetime) -> Iterator[str]:
    """What is wrong besides that no daemon runs, which is in order before the first start."""
    oldest = situation.oldest_event_at
    if oldest is not None and now - oldest > LONG_WAIT and any(row.alive for row in daemons):
        yield f"The oldest event came {ago(oldest, now)}, and is not delivered yet."
    yield from _daemon_problems(daemons, now)
    if situation.set_aside:
        count = f"{situation.set_aside:,}{'+' if situation.set_aside >= MAX_COUNTED else ''}"
        rows, them = ("row is", "it") if situation.set_aside == 1 else ("rows are", "them")
        yield (
            f"{count} captured {rows} set aside, and no event is made of {them} yet: "
            "`postrider capture rejected` says why."
        )


def _daemon_problems(daemons: Collection[DaemonRow], now: datetime) -> Iterator[str]:
    """What is wrong with daemons that there are, or were."""
    for row in daemons:
        name = f"Daemon {row.id} (pid {row.pid} on {printable(row.hostname)})"
        heard_at = row.reported_at or row.started_at
        if not row.alive:
            yield f"{name} is dead; the next one takes over its work."
        elif now - heard_at > STALE:
            yield (
                f"{name} is connected, but has not reported since {printable(heard_at)}; its log may say why."
            )
    for row, report in fresh_reports(daemons, now):
        if report.unusable:
            yield (
                f"Daemon {row.id} can't use {report.unusable:,} "
                f"{'endpoint' if report.unusable == 1 else 'endpoints'}; their deliveries wait."
            )
