"""postrider status: what waits, how fast it goes, who is in trouble, and which daemons run."""

from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

import click

from postrider.cli.common import (
    backend_of,
    config_option,
    json_option,
    operator,
    print_json,
    print_table,
    run_async,
)
from postrider.domain.audit import EVERYWHERE
from postrider.domain.model import endpoint_public_id
from postrider.domain.status import DaemonReport
from postrider.operations.problems import EXIT_CODES, Concern
from postrider.operations.status import Status, look
from postrider.operations.views import status as view
from postrider.operations.wording import ago


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
    async with backend_of(config_path) as backend, backend.begin(operator(), EVERYWHERE) as work:
        found = await look(work)
    if as_json:
        print_json(view.status_view(found))
    else:
        _print_summary(found)
        _print_endpoints(found)
        _print_daemons(found)
    if tell:
        raise click.exceptions.Exit(view.status_exit_code(found))


def _print_summary(found: Status) -> None:
    for sentence in view.sentences(found):
        click.echo(sentence)
    sick, down = view.problems(found, Concern.SERVICE), view.problems(found, Concern.ENDPOINT)
    for problem in sick:
        click.secho(problem, fg="red")
    if not sick:
        click.secho("The service is in order." if down else "Everything is in order.", fg="green")
    for problem in down:
        click.secho(problem, fg="yellow")


def _print_endpoints(found: Status) -> None:
    here = found.situation
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
                view.state_text(found, endpoint),
                ago(since, found.now) if (since := view.since_of(endpoint)) else None,
                view.waiting_text(endpoint),
                view.retrying_text(found, endpoint),
                view.why_text(found, endpoint),
            )
            for endpoint in here.endpoints
        ],
        empty="",
    )
    if here.troubled > len(here.endpoints):
        click.echo(f"and {here.troubled - len(here.endpoints):,} more")


def _print_daemons(found: Status) -> None:
    if not found.daemons:
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
                ago(row.reported_at, found.now) if row.reported_at else None,
                row.alive,
            )
            for row in found.daemons
        ],
        empty="",
    )


def _rate_cells(report: DaemonReport | None) -> Iterable[str | None]:
    if report is None or report.window_s <= 0:
        return (None, None, None)
    return (f"{rate:,.1f}" for rate in (report.succeeded_per_s, report.retried_per_s, report.failed_per_s))
