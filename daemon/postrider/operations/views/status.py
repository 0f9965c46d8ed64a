"""How the installation is doing, as JSON and in sentences."""

from dataclasses import asdict, dataclass
from datetime import datetime

from postrider.domain.capture_steps import MAX_COUNTED
from postrider.domain.model import EndpointState, endpoint_public_id
from postrider.domain.status import NO_DAEMON, LaneReport
from postrider.operations.problems import Concern, exit_code, find_problems
from postrider.operations.status import Status
from postrider.operations.wording import ago
from postrider.store.daemons import DaemonRow
from postrider.store.situation import DELIVERY_LIMIT, EVENT_LIMIT, TroubledEndpoint


@dataclass(frozen=True, slots=True)
class Rates:
    """Deliveries per second, of all daemons together."""

    succeeded: float
    retried: float
    failed: float


def rates_of(status: Status) -> Rates | None:
    """None where no daemon has measured any."""
    measured = [report for _, report in status.reports if report.window_s > 0]
    if not measured:
        return None
    return Rates(
        round(sum(report.succeeded_per_s for report in measured), 2),
        round(sum(report.retried_per_s for report in measured), 2),
        round(sum(report.failed_per_s for report in measured), 2),
    )


def problems(status: Status, *concerns: Concern) -> list[str]:
    """What a person should look at, in sentences."""
    found = find_problems(status.situation, status.daemons, status.now)
    return [problem.sentence for problem in found if problem.scope in (concerns or Concern)]


def status_exit_code(status: Status) -> int:
    found = find_problems(status.situation, status.daemons, status.now)
    return exit_code({problem.scope for problem in found})


def sentences(status: Status) -> list[str]:
    """What waits, and how fast it goes."""
    here, now = status.situation, status.now
    events = here.queue.sentence
    if here.oldest_event_at is not None:
        events += f", the oldest from {ago(here.oldest_event_at, now)}"
    said = [events if here.queue.daemons else f"{events}; {NO_DAEMON}"]
    deliveries = f"{_count_text(here.waiting, DELIVERY_LIMIT)} deliveries wait in the database"
    if here.oldest_waiting_at is not None:
        deliveries += f", the oldest from {ago(here.oldest_waiting_at, now)}"
    deliveries += f"; {_count_text(here.retrying, DELIVERY_LIMIT)} are to be retried"
    if here.next_due is not None:
        deliveries += ", the next now" if here.next_due <= now else f", the next {ago(here.next_due, now)}"
    said.append(deliveries)
    if here.paused:
        endpoints = "1 endpoint is" if here.paused == 1 else f"{here.paused:,} endpoints are"
        kept = _count_text(here.waiting_for_paused, DELIVERY_LIMIT)
        said.append(f"{endpoints} paused; {kept} of the deliveries that wait are kept for that")
    if (rates := rates_of(status)) is not None:
        said.append(
            f"{rates.succeeded:,.1f}/s succeed, {rates.retried:,.1f}/s are put off for a retry, "
            f"{rates.failed:,.1f}/s fail"
        )
    return said


def waiting_text(endpoint: TroubledEndpoint) -> str:
    return _count_text(endpoint.waiting, DELIVERY_LIMIT)


def retrying_text(status: Status, endpoint: TroubledEndpoint) -> str:
    """It is at least so many where the retries of all were not counted to the end."""
    return f"{endpoint.retrying:,}{'+' if status.situation.retrying >= DELIVERY_LIMIT else ''}"


def state_text(status: Status, endpoint: TroubledEndpoint) -> str:
    if endpoint.state is not EndpointState.ACTIVE:
        return endpoint.state
    states = {lane.state for _, lane in _lanes(status, endpoint.id)}
    if endpoint.failing_since is not None and "unusable" not in states:
        return "failing"
    return ", ".join(sorted(states))


def since_of(endpoint: TroubledEndpoint) -> datetime | None:
    """Since when it is so; None where only the lanes of daemons tell that it is."""
    return endpoint.failing_since if endpoint.state is EndpointState.ACTIVE else endpoint.updated_at


def why_text(status: Status, endpoint: TroubledEndpoint) -> str | None:
    """What daemons decided about it, or why it is disabled."""
    decisions = "; ".join(_decision(row, lane) for row, lane in _lanes(status, endpoint.id))
    return decisions or endpoint.disabled_reason


def _count_text(number: int, limit: int) -> str:
    return f"{number:,}+" if number >= limit else f"{number:,}"


def _lanes(status: Status, endpoint_id: int) -> list[tuple[DaemonRow, LaneReport]]:
    return [
        (row, lane)
        for row, report in status.reports
        for lane in report.lanes
        if lane.endpoint_id == endpoint_id
    ]


def _decision(row: DaemonRow, lane: LaneReport) -> str:
    if lane.state == "unusable":
        return f"daemon {row.id}: unusable ({lane.reason})"
    latency = "" if lane.latency_ms is None else f", answers take {lane.latency_ms:,.0f} ms"
    return (
        f"daemon {row.id}: {lane.state}, {lane.running}/{lane.concurrency} in flight, "
        f"{lane.queued} queued{latency} ({lane.reason})"
    )


def status_view(status: Status) -> dict[str, object]:
    """Counts that have reached their limit mean "at least", and so do the retries of each endpoint where
    the retries of all have."""
    here, rates = status.situation, rates_of(status)
    return {
        "at": status.now,
        "problems": problems(status),
        "service_problems": problems(status, Concern.SERVICE),
        "endpoint_problems": problems(status, Concern.ENDPOINT),
        "count_limits": {
            "events": EVENT_LIMIT,
            "deliveries": DELIVERY_LIMIT,
            "captured_rows_set_aside": MAX_COUNTED,
        },
        "events": here.queue.queued + here.queue.claimed + here.queue.stranded,
        "events_queued": here.queue.queued,
        "events_claimed": here.queue.claimed,
        "events_stranded": here.queue.stranded,
        "oldest_event_age_s": _age_s(here.oldest_event_at, status.now),
        "deliveries_waiting": here.waiting,
        "oldest_waiting_age_s": _age_s(here.oldest_waiting_at, status.now),
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
                "state": state_text(status, endpoint),
                "since": since_of(endpoint),
                "disabled_reason": endpoint.disabled_reason,
                "deliveries_waiting": endpoint.waiting,
                "deliveries_retrying": endpoint.retrying,
                "lanes": [
                    {"daemon": row.id, **_lane_facts(lane)} for row, lane in _lanes(status, endpoint.id)
                ],
            }
            for endpoint in here.endpoints
        ],
        "daemons": [_daemon_facts(row, status.now) for row in status.daemons],
    }


def _lane_facts(lane: LaneReport) -> dict[str, object]:
    facts = asdict(lane)
    del facts["endpoint_id"]
    return facts


def _daemon_facts(row: DaemonRow, now: datetime) -> dict[str, object]:
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
