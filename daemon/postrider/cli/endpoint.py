"""postrider endpoint: who is subscribed to what."""

import sys
from pathlib import Path

import click

from postrider.cli.common import (
    backend_of,
    config_option,
    json_option,
    operator,
    print_json,
    print_table,
    run_async,
    show_progress,
)
from postrider.cli.endpoint_facts import last_delivery_text, pattern_text, state_text
from postrider.cli.groups import Commands
from postrider.cli.single_requests import test, verify
from postrider.cli.subscription import add, update
from postrider.domain.audit import EVERYWHERE
from postrider.domain.errors import UsageError
from postrider.domain.model import endpoint_public_id, parse_endpoint_id
from postrider.operations import endpoints, recovery
from postrider.operations.views.endpoint import endpoint_view
from postrider.operations.wording import printable

_PAGE = 500


@click.group(cls=Commands)
def endpoint() -> None:
    """Add, list, try and change the endpoints that webhooks go to."""


@endpoint.command(name="list")
@click.option("--workspace", help="Only this workspace.")
@click.option("--all", "include_deleted", is_flag=True, help="Deleted ones too.")
@config_option
@json_option
@run_async
async def list_(
    workspace: str | None, include_deleted: bool, config_path: Path | None, as_json: bool
) -> None:
    """List endpoints, each with its last delivery: what came of it, and when it was tried.

    Example: postrider endpoint list --workspace ws_1
    """
    rows = []
    async with backend_of(config_path) as backend, backend.begin(operator(), EVERYWHERE) as work:
        cursor, more = None, True
        while more:
            page = await endpoints.list_endpoints(
                work,
                workspace_id=workspace,
                include_deleted=include_deleted,
                cursor=cursor,
                limit=_PAGE,
            )
            rows += page.rows
            cursor = page.next_cursor
            more = cursor is not None
    views = [endpoint_view(row) for row in rows]
    if as_json:
        print_json(views)
        return
    print_table(
        ["id", "workspace", "state", "last delivery", "events", "url"],
        [
            (
                endpoint_public_id(row.endpoint.id),
                row.endpoint.workspace_id,
                state_text(row.endpoint),
                last_delivery_text(view),
                pattern_text(row.endpoint),
                row.endpoint.url,
            )
            for row, view in zip(rows, views, strict=True)
        ],
        empty="no endpoints; add one with `postrider endpoint add`",
    )


@endpoint.command()
@click.argument("ep")
@click.option("--secret", "with_secret", is_flag=True, help="Print the signing secret too.")
@config_option
@json_option
@run_async
async def show(ep: str, with_secret: bool, config_path: Path | None, as_json: bool) -> None:
    """Show one endpoint, and how many deliveries wait for it.

    Example: postrider endpoint show ep_0123456789abcdef
    """
    endpoint_id = parse_endpoint_id(ep)
    async with backend_of(config_path) as backend, backend.begin(operator(), EVERYWHERE) as work:
        facts = endpoint_view(await endpoints.get(work, endpoint_id))
        facts["waiting"] = await endpoints.waiting(work, endpoint_id)
        if with_secret:
            facts["secret"] = await endpoints.secret(work, endpoint_id)
    if as_json:
        print_json(facts)
        return
    facts["last_delivery"] = last_delivery_text(facts)
    for name, value in facts.items():
        text = ", ".join(map(str, value)) if isinstance(value, list) else value
        click.echo(f"{name + ':':<17} {printable(text if text != '' else None)}")


@endpoint.command()
@click.argument("ep")
@config_option
@run_async
async def pause(ep: str, config_path: Path | None) -> None:
    """Stop sending; what comes meanwhile waits.

    Example: postrider endpoint pause ep_0123456789abcdef
    """
    endpoint_id = parse_endpoint_id(ep)
    async with backend_of(config_path) as backend, backend.begin(operator(), EVERYWHERE) as work:
        changed = await endpoints.pause(work, endpoint_id)
    click.echo(f"paused {ep}; its deliveries wait" if changed else f"{ep} was paused already")


@endpoint.command()
@click.argument("ep")
@click.option("--recover", is_flag=True, help="Send what it missed while it was disabled, too.")
@config_option
@json_option
@run_async
async def resume(ep: str, recover: bool, config_path: Path | None, as_json: bool) -> None:
    """Send again, what waits first. It also enables an endpoint that was disabled, and says how many events
    it missed meanwhile.

    --recover sends these: all that are kept, and that its patterns of today match. It may be cut off and
    begun again, also when the endpoint is active already.

    Example: postrider endpoint resume ep_0123456789abcdef --recover
    """
    endpoint_id = parse_endpoint_id(ep)
    actor = operator()
    async with backend_of(config_path) as backend:
        async with backend.begin(actor, EVERYWHERE) as work:
            resumed = await endpoints.resume(work, endpoint_id)
        if recover:
            tally = await recovery.recover_missed(
                backend,
                actor,
                EVERYWHERE,
                endpoint_id,
                lambda n: show_progress(f"{n} that it missed are sent"),
            )
        else:
            tally = await recovery.count_missed(
                backend, actor, EVERYWHERE, endpoint_id, lambda n: show_progress(f"it missed {n}")
            )
        show_progress("")
        async with backend.begin(actor, EVERYWHERE) as work:
            target = (await endpoints.get(work, endpoint_id)).endpoint  # what is sent may disable it
    if as_json:
        print_json(
            {
                "id": ep,
                "state": target.state,
                "resumed": resumed.changed,
                "waiting": resumed.waiting,
                "missed": tally.events,
                "first_missed_at": tally.first_at,
                "recovered": tally.events if recover else 0,
                "under_way": tally.under_way,
            }
        )
        return
    click.echo(
        f"resumed {ep}; {resumed.waiting} deliveries wait for it"
        if resumed.changed
        else f"{ep} is active already"
    )
    if tally.events:
        events = "1 event" if tally.events == 1 else f"{tally.events} events"
        said = f"it missed {events} while it was disabled, the first at {printable(tally.first_at)}"
        hint = f"; postrider endpoint resume {ep} --recover sends what it missed"
        click.echo(said + (": now to be sent" if recover else hint))
    if tally.under_way:
        click.echo(f"{tally.under_way} more are being fanned out; ask again in a moment", err=True)
    if not target.open:
        click.echo(f"what waits for {ep} waits on: it is {state_text(target)}", err=True)


@endpoint.command()
@click.argument("ep")
@click.option("--yes", is_flag=True, help="Don't ask.")
@config_option
@run_async
async def delete(ep: str, yes: bool, config_path: Path | None) -> None:
    """Delete an endpoint and its secret, and cancel what waits for it. Past deliveries stay listed.

    Example: postrider endpoint delete ep_0123456789abcdef
    """
    endpoint_id = parse_endpoint_id(ep)
    actor = operator()
    async with backend_of(config_path) as backend:
        async with backend.begin(actor, EVERYWHERE) as work:
            row = await endpoints.get_living(work, endpoint_id)
            waiting = await endpoints.waiting(work, endpoint_id)
        if not yes:
            if not sys.stdin.isatty():
                raise UsageError(f"deleting {ep} needs a confirmation", "Add --yes.")
            click.confirm(
                f"Delete {printable(row.endpoint.url)} and cancel {waiting} deliveries that wait for it?",
                abort=True,
            )
        cancelled = await endpoints.delete(backend, actor, EVERYWHERE, endpoint_id)
    click.echo(f"deleted {ep}; {cancelled} deliveries cancelled")


for _command in (add, update, test, verify):
    endpoint.add_command(_command)
