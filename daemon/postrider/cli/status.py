"""postrider status: what waits, how fast it goes, who is in trouble, and which daemons run."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

from postrider.cli.common import (
    ago,
    config_option,
    json_option,
    open_stores,
    print_json,
    print_table,
    run_async,
)
from postrider.cli.condition import EXIT_CODES, Scope, exit_code, find_problems, fresh_reports
from postrider.domain.model import EndpointState, endpoint_public_id
from postrider.domain.status import NO_DAEMON, DaemonReport, LaneReport
from postrider.store import daemons
from postrider.store.captures import MAX_COUNTED
from postrider.store.daemons import DaemonRow
from postrider.store.status import DELIVERY_LIMIT, EVENT_LIMIT, Situation, Status, TroubledEndpoint


@dataclass(frozen=True, slots=True)
class Rates:
    """Deliveries per second, of all daemons together."""

    succeeded: float
    retried: float
    failed: float


@dataclass(frozen=True, slots=True)
class View:
    """What there is to tell, at one moment."""

    now: datetime
    situation: Situation
    daemons: list[DaemonRow]
    reports: list[tuple[DaemonRow, DaemonReport]]
    """Of living daemons, where they still hold."""

    @property
    def rates(self) -> Rates | None:
        """None where no daemon has measured any."""
        measured = [report for _, report in self.reports if report.window_s > 0]
        if not measured:
            return None
        return Rates(
            round(sum(report.succeeded_per_s for report in measured), 2),
            round(sum(report.retried_per_s for report in measured), 2),
            round(sum(report.failed_per_s for report in measured), 2),
        )

    def lanes(self, endpoint_id: int) -> list[tuple[DaemonRow, LaneReport]]:
        return [
            (row, lane)
            for row, report in self.reports
            for lane in report.lanes
            if lane.endpoint_id == endpoint_id
        ]

    def problems(self, *scopes: Scope) -> list[str]:
        """What a person should look at, in sentences."""
        found = find_problems(self.situation, self.daemons, self.now)
        return [problem.sentence for problem in found if problem.scope in (scopes or Scope)]

    @property
    def exit_code(self) -> int:
        return exit_code({problem.scope for problem in find_problems(self.situation, self.daemons, self.now)})


@click.command(
    help=f"""Show what waits, how fast it is delivered, which endpoints are in trouble, and the daemons.

    Counts stop at a limit: 100,000+ means so many or more.

    With --exit-code the exit code tells what was found; without it, it is 0 whatever was found. {EXIT_CODES}

    Example: postrider status --exit-code
    """
)
@click.option("--exit-code", "tell", is_flag=True, help="Tell by the exit code: 0, 1 or 3, see above.")
@config_option
@json_option
@run_async
async def status(tell: bool, config_path: Path | None, as_json: bool) -> None:
    async with open_stores(config_path) as stores:
        now = stores.clock.now()
        async with stores.database.connection() as connection:
            rows = await daemons.list_all(connection)
        reports = fresh_reports(rows, now)
        slow = {lane.endpoint_id for _, report in reports for lane in report.lanes}
        alive = {row.id for row in rows if row.alive}
        view = View(now, await Status(stores.database).read(slow, alive), rows, reports)
    if as_json:
        print_json(_facts(view))
    else:
        _print_summary(view)
        _print_endpoints(view)
        _print_daemons(view)
    if tell:
        raise click.exceptions.Exit(view.exit_code)


def _print_summary(view: View) -> None:
    here, now = view.situation, view.now
    events = here.queue.sentence
    if here.oldest_event_at is not None:
        events += f", the oldest from {ago(here.oldest_event_at, now)}"
    click.echo(events if here.queue.daemons else f"{events}; {NO_DAEMON}")
    deliveries = f"{_count(here.waiting, DELIVERY_LIMIT)} deliveries wait in the database"
    if here.oldest_waiting_at is not None:
        deliveries += f", the oldest from {ago(here.oldest_waiting_at, now)}"
    deliveries += f"; {_count(here.retrying, DELIVERY_LIMIT)} are to be retried"
    if here.next_due is not None:
        deliveries += ", the next now" if here.next_due <= now else f", the next {ago(here.next_due, now)}"
    click.echo(deliveries)
    if here.paused:
        endpoints = "1 endpoint is" if here.paused == 1 else f"{here.paused:,} endpoints are"
        kept = _count(here.waiting_for_paused, DELIVERY_LIMIT)
        click.echo(f"{endpoints} paused; {kept} of the deliveries that wait are kept for that")
    if view.rates is not None:
        rates = view.rates
        click.echo(
            f"{rates.succeeded:,.1f}/s succeed, {rates.retried:,.1f}/s are put off for a retry, "
            f"{rates.failed:,.1f}/s fail"
        )
    sick, down = view.problems(Scope.SERVICE), view.problems(Scope.ENDPOINT)
    for problem in sick:
        click.secho(problem, fg="red")
    if not sick:
        click.secho("The service is in order." if down else "Everything is in order.", fg="green")
    for problem in down:
        click.secho(problem, fg="yellow")


def _print_endpoints(view: View) -> None:
    here = view.situation
    if not here.endpoints:
        return
    click.secho("\nEndpoints in trouble", bold=True)
    print_table(
        ["id", "workspace", "host", "state", "since", "waiting", "retrying", "why"],
        [
            (
                endpoint_public_id(endpoint.id),
                endpoint.workspace_id,
                urlsplit(endpoint.url).hostname,
                _state(view, endpoint),
                ago(since, view.now) if (since := _since(endpoint)) else None,
                _count(endpoint.waiting, DELIVERY_LIMIT),
                f"{endpoint.retrying:,}{'+' if here.retrying >= DELIVERY_LIMIT else ''}",
                "; ".join(_decision(row, lane) for row, lane in view.lanes(endpoint.id))
                or endpoint.disabled_reason,
            )
            for endpoint in here.endpoints
        ],
        empty="",
    )
    if here.troubled > len(here.endpoints):
        click.echo(f"and {here.troubled - len(here.endpoints):,} more")


def _print_daemons(view: View) -> None:
    if not view.daemons:
        return
    click.secho("\nDaemons", bold=True)
    print_table(
        [
            "id",
            "host",
            "pid",
            "version",
            "up since",
            "in flight",
            "succeed/s",
            "retry/s",
            "fail/s",
            "report",
            "alive",
        ],
        [
            (
                row.id,
                row.hostname,
                row.pid,
                row.version,
                row.started_at,
                f"{row.report.in_flight}/{row.report.slots}" if row.report else None,
                *_rate_cells(row.report),
                ago(row.reported_at, view.now) if row.reported_at else None,
                row.alive,
            )
            for row in view.daemons
        ],
        empty="",
    )


def _rate_cells(report: DaemonReport | None) -> Iterable[str | None]:
    if report is None or report.window_s <= 0:
        return (None, None, None)
    return (f"{rate:,.1f}" for rate in (report.succeeded_per_s, report.retried_per_s, report.failed_per_s))


def _count(number: int, limit: int) -> str:
    return f"{number:,}+" if number >= limit else f"{number:,}"


def _state(view: View, endpoint: TroubledEndpoint) -> str:
    if endpoint.state is not EndpointState.ACTIVE:
        return endpoint.state
    lanes = {lane.state for _, lane in view.lanes(endpoint.id)}
    if endpoint.failing_since is not None and "unusable" not in lanes:
        return "failing"
    return ", ".join(sorted(lanes))


def _since(endpoint: TroubledEndpoint) -> datetime | None:
    """Since when it is so; None where only the lanes of daemons tell that it is."""
    return endpoint.failing_since if endpoint.state is EndpointState.ACTIVE else endpoint.updated_at


def _decision(row: DaemonRow, lane: LaneReport) -> str:
    if lane.state == "unusable":
        return f"daemon {row.id}: unusable ({lane.reason})"
    latency = "" if lane.latency_ms is None else f", answers take {lane.latency_ms:,.0f} ms"
    return (
        f"daemon {row.id}: {lane.state}, {lane.running}/{lane.concurrency} in flight, "
        f"{lane.queued} queued{latency} ({lane.reason})"
    )


def _facts(view: View) -> dict[str, Any]:
    """Counts that have reached their limit mean "at least", and so do the retries of each endpoint where
    the retries of all have."""
    here, rates = view.situation, view.rates
    return {
        "at": view.now,
        "problems": view.problems(),
        "service_problems": view.problems(Scope.SERVICE),
        "endpoint_problems": view.problems(Scope.ENDPOINT),
        "count_limits": {
            "events": EVENT_LIMIT,
            "deliveries": DELIVERY_LIMIT,
            "captured_rows_set_aside": MAX_COUNTED,
        },
        "events": here.queue.queued + here.queue.claimed + here.queue.stranded,
        "events_queued": here.queue.queued,
        "events_claimed": here.queue.claimed,
        "events_stranded": here.queue.stranded,
        "oldest_event_age_s": _age_s(here.oldest_event_at, view.now),
        "deliveries_waiting": here.waiting,
        "oldest_waiting_age_s": _age_s(here.oldest_waiting_at, view.now),
        "endpoints_paused": here.paused,
        "deliveries_waiting_for_paused": here.waiting_for_paused,
        "deliveries_retrying": here.retrying,
        "next_retry_at": here.next_due,
        "captured_rows_set_aside": here.set_aside,
        "succeeded_per_s": rates and rates.succeeded,
        "retried_per_s": rates and rates.retried,
        "failed_per_s": rates and rates.failed,
        "endpoints_in_trouble_count": here.troubled,
        "endpoints_in_trouble": [
            {
                "id": endpoint_public_id(endpoint.id),
                "workspace": endpoint.workspace_id,
                "url": endpoint.url,
                "state": _state(view, endpoint),
                "since": _since(endpoint),
                "disabled_reason": endpoint.disabled_reason,
                "deliveries_waiting": endpoint.waiting,
                "deliveries_retrying": endpoint.retrying,
                "lanes": [{"daemon": row.id, **_lane_facts(lane)} for row, lane in view.lanes(endpoint.id)],
            }
            for endpoint in here.endpoints
        ],
        "daemons": [_daemon_facts(row, view.now) for row in view.daemons],
    }


def _lane_facts(lane: LaneReport) -> dict[str, Any]:
    facts = asdict(lane)
    del facts["endpoint_id"]
    return facts


def _daemon_facts(row: DaemonRow, now: datetime) -> dict[str, Any]:
    report = row.report
    return {
        "id": row.id,
        "host": row.hostname,
        "pid": row.pid,
        "version": row.version,
        "started_at": row.started_at,
        "alive": row.alive,
        "report_age_s": _age_s(row.reported_at, now),
        "window_s": report and report.window_s,
        "in_flight": report and report.in_flight,
        "slots": report and report.slots,
        "queued": report and report.queued,
        "succeeded_per_s": report and report.succeeded_per_s,
        "retried_per_s": report and report.retried_per_s,
        "failed_per_s": report and report.failed_per_s,
    }


def _age_s(moment: datetime | None, now: datetime) -> float | None:
    return None if moment is None else round((now - moment).total_seconds(), 3)
