"""What commands share: the options --config and --json, the stores, and printing of facts."""

import asyncio
import difflib
import os
import pwd
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar
from uuid import UUID

import click
import orjson

from postrider.cli.groups import CONFIG
from postrider.domain.audit import Actor
from postrider.domain.dialects import Dialect, parse_event_ids
from postrider.domain.dsn import DsnMistake, by_peer
from postrider.domain.errors import UsageError
from postrider.edges.clock import SystemClock
from postrider.edges.config import Config, load_config
from postrider.edges.dialect_files import load_dialects
from postrider.edges.resources import sql_dir
from postrider.edges.settings import read_sealer
from postrider.operations.work import Backend, open_backend
from postrider.store import outbox
from postrider.store.database import Database
from postrider.store.endpoints import Endpoints
from postrider.store.history import DeliveryHistory
from postrider.store.migrations import check_schema, read_migrations
from postrider.store.missed import MissedEvents
from postrider.store.outbox import Outbox

if TYPE_CHECKING:
    from rich.console import Console

P = ParamSpec("P")
R = TypeVar("R")

config_option = click.option("--config", "config_path", **CONFIG)
LAST_COLUMN = 24
"""Characters that the last column of a table may be folded to."""

as_option = click.option(
    "--as",
    "as_user",
    metavar="USER",
    help="As root: connect as this system user over the Unix socket (peer authentication), such as postgres.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@dataclass(frozen=True, slots=True)
class Stores:
    """What a command may read and change."""

    config: Config
    database: Database
    outbox: Outbox
    endpoints: Endpoints
    history: DeliveryHistory
    missed: MissedEvents
    clock: SystemClock


@asynccontextmanager
async def open_stores(config_path: Path | None) -> AsyncIterator[Stores]:
    """Read the configuration, connect, and check the schema."""
    async with stores_of(load_config(config_path, os.environ)) as stores:
        yield stores


@asynccontextmanager
async def stores_of(config: Config, as_user: str | None = None) -> AsyncIterator[Stores]:
    """Connect, see `dsn_as`, and check the schema."""
    sealer = read_sealer(config)
    database = Database(dsn_as(config, as_user), pool_size=2, keyed=False)
    await database.open()
    try:
        async with database.connection() as connection:
            await check_schema(connection, read_migrations(sql_dir()))
        yield Stores(
            config,
            database,
            Outbox(database),
            Endpoints(database, sealer),
            DeliveryHistory(database),
            MissedEvents(database),
            SystemClock(),
        )
    finally:
        await database.close()


@asynccontextmanager
async def backend_of(config_path: Path | None) -> AsyncIterator[Backend]:
    """Read the configuration, connect, and check the schema."""
    async with open_backend(load_config(config_path, os.environ)) as backend:
        yield backend


def operator() -> Actor:
    """Whoever runs this command; behind sudo, who asked for it."""
    user = os.environ.get("SUDO_USER") or pwd.getpwuid(os.getuid()).pw_name
    return Actor(user, "cli", socket.gethostname())


def dsn_as(config: Config, user: str | None) -> str:
    """The DSN of the configuration; or, as root, become that system user for good, and reach its database as
    him. What the configuration names has to have been read before."""
    if user is None:
        return config.database.dsn
    if os.geteuid() != 0:
        raise UsageError(f"only root may act as {user}", "Run it as root, or as that user without --as.")
    try:
        facts = pwd.getpwnam(user)
    except KeyError:
        raise UsageError(f"this host has no user {user}", "Name the system user of PostgreSQL.") from None
    try:
        dsn = by_peer(config.database.dsn, user)
    except DsnMistake:
        raise UsageError(
            "--as takes this host's Unix socket, but database.dsn names another host",
            "Give the DSN of a superuser in $POSTRIDER_DATABASE_DSN instead.",
        ) from None
    os.initgroups(user, facts.pw_gid)
    os.setgid(facts.pw_gid)
    os.setuid(facts.pw_uid)
    os.environ["HOME"] = facts.pw_dir  # where the driver looks for certificates and passwords
    return dsn


def type_text(event_type: str | None, *, test: bool | None) -> str | None:
    """An event's type, marked where it only tries an endpoint."""
    return f"{event_type} (test)" if test else event_type


def run_async(command: Callable[P, Coroutine[Any, Any, R]]) -> Callable[P, R]:
    """Let click call a coroutine function."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        return asyncio.run(command(*args, **kwargs))

    return run


def read_data(text: str) -> str:
    """JSON text of an option: itself, or the content of @FILE or @- (stdin)."""
    if not text.startswith("@"):
        return text
    try:
        return sys.stdin.read() if text == "@-" else Path(text[1:]).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{text[1:]} can't be read: {error}", "Name a UTF-8 file.") from None


def known_dialect(name: str, config: Config) -> Dialect:
    """The dialect of that name; UsageError, with the nearest name, if there is none."""
    known = load_dialects(config.dialect.paths, config.dialect.values)
    if name not in known:
        nearest = difflib.get_close_matches(name, known, n=1)
        raise UsageError(
            f"there is no dialect {name!r}",
            f"Did you mean {nearest[0]}?" if nearest else f"Known are: {', '.join(sorted(known))}.",
        )
    return known[name]


async def event_id_of(text: str, stores: Stores) -> UUID:
    """The event that an id means, in any dialect's form. Raises UsageError if it is not one."""
    meant = parse_event_ids(text, load_dialects(stores.config.dialect.paths).values())
    if len(meant) == 1:
        return meant[0]
    # Two templates may fit one text; hardly will there be an event for each.
    async with stores.database.connection() as connection:
        known = await outbox.read(connection, meant)
    return known[0].id if known else meant[0]


def print_json(value: object) -> None:
    click.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_UTC_Z).decode())


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str) -> None:
    """Print rows under their columns; `empty` says so where there are none.

    Where the terminal is too narrow for that, each row takes several lines: the last column alone may be
    folded, since what is copied has to be in one piece.
    """
    from rich.cells import cell_len
    from rich.console import Console

    cells = [[printable(value) for value in row] for row in rows]
    if not cells:
        click.echo(empty, err=True)
        return
    # A pipe has no width to fit into.
    console = Console(width=None if sys.stdout.isatty() else 10_000, highlight=False)
    widths = [max(map(cell_len, column)) for column in zip(columns, *cells, strict=True)]
    least = sum(widths[:-1]) + min(widths[-1], LAST_COLUMN) + 2 * (len(widths) - 1)
    if least <= console.width:
        _print_rows(console, columns, cells)
    else:
        for row in cells:
            _print_lines(console, columns, row)


def _print_rows(console: "Console", columns: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, no_wrap=column != columns[-1], overflow="fold")
    for row in cells:
        table.add_row(*map(Text, row))
    console.print(table, crop=False)


def _print_lines(console: "Console", columns: Sequence[str], row: Sequence[str]) -> None:
    """The first column, and under it the others that say something, as many on a line as it has room for."""
    from rich.text import Text

    lines = [Text(row[0], "bold")]
    room = 0
    for column, value in zip(columns[1:], row[1:], strict=True):
        if value in {"", "-"}:
            continue
        cell = Text.assemble((f"  {column} ", "dim"), value)
        if cell.cell_len > room:
            lines.append(Text())
            room = console.width
        lines[-1].append_text(cell)
        room -= cell.cell_len
    for line in lines:
        console.print(line, overflow="fold", crop=False)


def printable(value: object) -> str:
    """Text for a person: local time to the second with its zone, as `parse_moment` reads it; and no control
    character that could drive the terminal."""
    if value is None:
        return "-"
    if isinstance(value, datetime):
        return value.astimezone().isoformat(" ", "seconds")
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in str(value))


def show_progress(text: str) -> None:
    """Write over the last such line, where a person is looking."""
    if sys.stderr.isatty():
        click.echo(f"\r\x1b[K{text}", nl=False, err=True)


def ago(moment: datetime, now: datetime | None = None) -> str:
    """How long ago, or in how long, in the largest unit that fits."""
    seconds = ((now or datetime.now(UTC)) - moment).total_seconds()
    size, unit = next(
        (step for step in ((86_400, "d"), (3600, "h"), (60, "m")) if abs(seconds) >= step[0]), (1, "s")
    )
    amount = f"{abs(seconds) / size:.0f} {unit}"
    return f"{amount} ago" if seconds > -0.5 else f"in {amount}"
