"""postrider audit: who changed what."""

from collections.abc import Mapping
from pathlib import Path

import click
import orjson

from postrider.cli.common import (
    backend_of,
    config_option,
    json_option,
    operator,
    print_json,
    print_table,
    run_async,
)
from postrider.cli.groups import Commands
from postrider.domain.audit import AuditEntry, Scope
from postrider.operations.audit import list_entries
from postrider.operations.views.audit import audit_view


@click.group(cls=Commands)
def audit() -> None:
    """See who changed what: each change of the configuration that a person made."""


@audit.command(name="list")
@click.option("--workspace", metavar="W", help="Only changes in this workspace.")
@click.option("--subject", metavar="ID", help="Only changes of this one, such as an endpoint.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@click.option("--cursor", help="Go on where a list ended.")
@config_option
@json_option
@run_async
async def list_(
    workspace: str | None,
    subject: str | None,
    limit: int,
    cursor: str | None,
    config_path: Path | None,
    as_json: bool,
) -> None:
    """List changes, newest first: when, who from where, what was done to what, and what differs since.

    No secret is in it: of headers it has the names, of a signing secret that somebody saw it. What a daemon
    does by itself, such as disabling an endpoint, is in its log.

    Example: postrider audit list --subject ep_0123456789abcdef
    """
    async with backend_of(config_path) as backend, backend.begin(operator(), Scope(workspace)) as work:
        found = await list_entries(work, subject=subject, cursor=cursor, limit=limit)
    if as_json:
        print_json([audit_view(each) for each in found.rows])
    else:
        print_table(
            ["at", "who", "from", "action", "subject", "change"],
            [
                (
                    each.at,
                    f"{each.actor.who} ({each.actor.how})",
                    each.actor.origin,
                    each.action,
                    each.subject,
                    change_text(each),
                )
                for each in found.rows
            ],
            empty="no changes",
        )
    if found.next_cursor is not None:
        click.echo(f"more: --cursor {found.next_cursor}", err=True)


def change_text(entry: AuditEntry) -> str:
    """What differs, in one line."""
    before, after = entry.before or {}, entry.after or {}
    return "; ".join(_difference(name, before, after) for name in {**before, **after})


def _difference(name: str, before: Mapping[str, object], after: Mapping[str, object]) -> str:
    sides = [_text(facts[name]) for facts in (before, after) if name in facts]
    return f"{name}: {' → '.join(sides)}"


def _text(value: object) -> str:
    return value if value and isinstance(value, str) else orjson.dumps(value).decode()
