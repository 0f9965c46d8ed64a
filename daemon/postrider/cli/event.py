"""postrider event: what the CRM announced."""

import asyncio
import signal
from pathlib import Path
from typing import Any

import click
import orjson

from postrider.cli.choosing import since_option, type_option, workspace_option
from postrider.cli.common import (
    backend_of,
    config_option,
    json_option,
    operator,
    print_json,
    print_table,
    run_async,
    type_text,
)
from postrider.cli.endpoint_facts import state_text
from postrider.cli.groups import Commands
from postrider.domain.audit import EVERYWHERE
from postrider.domain.cursors import event_cursor, parse_event_cursor
from postrider.domain.lists import EventFilter
from postrider.domain.model import UNSETTLED, Event, delivery_public_id, event_public_id, parse_endpoint_id
from postrider.domain.status import NO_DAEMON, Progress, explain_progress
from postrider.edges.durations import parse_moment
from postrider.operations import events
from postrider.operations.views.event import JSON_FACTS, event_view, shown_event_view, where_it_ended
from postrider.operations.wording import missed_text, printable

_SORTS = ("-created_at", "created_at", "-updated_at", "updated_at")


@click.group(cls=Commands)
def event() -> None:
    """List, show, follow and send events again."""


@event.command(name="list")
@type_option
@workspace_option
@click.option("--object-id", metavar="ID", help="Only of this object.")
@since_option
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@click.option(
    "--sort",
    type=click.Choice(_SORTS),
    default="-created_at",
    show_default=True,
    help="-created_at is newest first; an event never changes, so updated_at is the same.",
)
@click.option("--cursor", help="Go on after the event that had this `cursor`.")
@config_option
@json_option
@run_async
async def list_(
    event_type: str | None,
    workspace: str | None,
    object_id: str | None,
    since: str | None,
    limit: int,
    sort: str,
    cursor: str | None,
    config_path: Path | None,
    as_json: bool,
) -> None:
    """List events. Each event's `cursor` in --json is where the next page begins.

    Oldest first, an event whose transaction took long may come to stand before a cursor: who polls for all
    events lists newest first, down to what he has seen, as `event tail` does. A list looks at no more than
    100,000 events (of the workspace), and says where it ended.

    Example: postrider event list --type 'deal.*' --object-id dl_1 --since 2h
    """
    newest_first = sort.startswith("-")
    last = parse_event_cursor(cursor, newest_first=newest_first) if cursor else None
    async with backend_of(config_path) as backend, backend.begin(operator(), EVERYWHERE) as work:
        chosen = EventFilter(
            workspace_id=workspace,
            type_pattern=event_type,
            object_id=object_id,
            since=parse_moment(since, work.now) if since else None,
        )
        found = await events.list_events(work, chosen, after=last, newest_first=newest_first, limit=limit)
    cursors = [event_cursor(each.id, newest_first=newest_first) for each in found.rows]
    if found.looked_to is not None:
        go_on = f"--cursor {event_cursor(found.looked_to, newest_first=newest_first)}"
        click.echo(where_it_ended("events", found.looked_to, go_on), err=True)
    if as_json:
        pairs = zip(found.rows, cursors, strict=True)
        print_json([{**event_view(each), "cursor": cursor} for each, cursor in pairs])
        return
    print_table(
        ["id", "occurred", "workspace", "type", "object"],
        [
            (
                event_public_id(each.id),
                each.occurred_at,
                each.workspace_id,
                type_text(each.type, test=each.test),
                each.object_id,
            )
            for each in found.rows
        ],
        empty="no events",
    )
    if len(found.rows) == limit:
        click.echo(f"more: --cursor {cursors[-1]}", err=True)


@event.command()
@click.argument("evt")
@config_option
@json_option
@run_async
async def show(evt: str, config_path: Path | None, as_json: bool) -> None:
    """Show one event, its data, and its deliveries.

    EVT is its id as any dialect writes it into a body or a header: evt_…, msg_…, …-events.

    Example: postrider event show evt_0198c5b0c7e27a7f8a3c6d1e2f304152
    """
    async with backend_of(config_path) as backend, backend.begin(operator(), EVERYWHERE) as work:
        shown = await events.show(work, evt)
    if as_json:
        print_json(shown_event_view(shown))
        return
    facts = event_view(shown.event)
    facts["type"] = type_text(shown.event.type, test=shown.event.test)
    for name in ("id", "type", "workspace", "occurred_at", "object_type", "object_id"):
        click.echo(f"{name + ':':<13} {printable(facts[name])}")
    for name in JSON_FACTS:
        if facts[name] is not None:
            click.echo(f"{name}: {_pretty(facts[name])}")
    pending = shown.progress is not Progress.DONE
    if pending:
        click.echo(f"deliveries: {explain_progress(shown.progress, shown.daemons)}", err=True)
    elif not shown.daemons and any(each.state in UNSETTLED for each in shown.deliveries):
        click.echo(f"deliveries: {NO_DAEMON}", err=True)
    print_table(
        ["delivery", "state", "attempts", "reason"],
        [
            (delivery_public_id(*each.key), each.state, each.attempts, each.reason)
            for each in shown.deliveries
        ],
        empty="no deliveries" if pending or shown.missed else "no deliveries: nobody was subscribed to it",
    )
    for each in shown.missed:
        click.echo(missed_text(each))
    if shown.missed:
        click.echo(f"send it: postrider event resend {evt} --endpoint EP", err=True)


@event.command()
@click.argument("evt")
@click.option("--endpoint", "ep", metavar="EP", required=True, help="Where to.")
@config_option
@json_option
@run_async
async def resend(evt: str, ep: str, config_path: Path | None, as_json: bool) -> None:
    """Send an event to one endpoint that is subscribed to its type, whether or not it was sent there before.

    It gets a whole new schedule, and has the id that it always had. EVT is its id in any dialect's form.

    Example: postrider event resend evt_0198c5b0c7e27a7f8a3c6d1e2f304152 --endpoint ep_0123456789abcdef
    """
    async with backend_of(config_path) as backend, backend.begin(operator(), EVERYWHERE) as work:
        key, target = await events.resend(work, evt, parse_endpoint_id(ep))
    delivery_id = delivery_public_id(*key)
    if as_json:
        print_json({"delivery": delivery_id, "endpoint_state": target.state})
        return
    click.echo(f"{delivery_id} is queued to be sent")
    if not target.open:
        click.echo(f"it waits: {ep} is {state_text(target)}", err=True)


@event.command()
@type_option
@workspace_option
@click.option("--data", "with_data", is_flag=True, help="Print what the event says, too.")
@config_option
@json_option
@run_async
async def tail(
    event_type: str | None, workspace: str | None, with_data: bool, config_path: Path | None, as_json: bool
) -> None:
    """Print events as they are committed, until Ctrl-C. --json has their data in any case.

    Example: postrider event tail --type 'deal.*' --data
    """
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    chosen = EventFilter(workspace_id=workspace, type_pattern=event_type)
    async with backend_of(config_path) as backend:
        async for each in events.follow(backend, operator(), EVERYWHERE, chosen, stop):
            _print_line(each, with_data=with_data, as_json=as_json)


def _print_line(each: Event, *, with_data: bool, as_json: bool) -> None:
    facts = event_view(each)
    if as_json:
        click.echo(orjson.dumps(facts, option=orjson.OPT_UTC_Z).decode())
        return
    occurred = each.occurred_at.astimezone().timetz().isoformat("milliseconds")
    event_type = printable(type_text(each.type, test=each.test))
    click.echo(f"{occurred}  {event_public_id(each.id)}  {event_type}  {printable(each.object_id)}")
    for name in JSON_FACTS if with_data else ():
        if facts[name] is not None:
            click.echo(f"    {name}: {_pretty(facts[name])}".replace("\n", "\n    "))


def _pretty(value: Any) -> str:
    text = orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()
    return "\n".join(printable(line) for line in text.splitlines())
