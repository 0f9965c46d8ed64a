"""What commands share: the options --config and --json, the stores, and printing of facts."""

import asyncio
import difflib
import os
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import click
import orjson

from postrider.app import read_sealer
from postrider.domain.dialects import Dialect
from postrider.domain.errors import UsageError
from postrider.edges.clock import SystemClock
from postrider.edges.config import Config, load_config
from postrider.edges.dialect_files import load_dialects
from postrider.edges.resources import sql_dir
from postrider.store.database import Database
from postrider.store.endpoints import Endpoints
from postrider.store.history import DeliveryHistory
from postrider.store.migrations import check_schema, read_migrations
from postrider.store.outbox import Outbox

P = ParamSpec("P")
R = TypeVar("R")

config_option = click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Configuration file [$POSTRIDER_CONFIG, else /etc/postrider/postrider.toml].",
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
    clock: SystemClock


@asynccontextmanager
async def open_stores(config_path: Path | None) -> AsyncIterator[Stores]:
    """Read the configuration, connect, and check the schema."""
    config = load_config(config_path, os.environ)
    sealer = read_sealer(config)
    database = Database(config.database.dsn, pool_size=2, keyed=False)
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
            SystemClock(),
        )
    finally:
        await database.close()


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


def print_json(value: object) -> None:
    click.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_UTC_Z).decode())


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str) -> None:
    """Print rows under their columns; `empty` says so where there are none."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    cells = [[printable(value) for value in row] for row in rows]
    if not cells:
        click.echo(empty, err=True)
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        # An id has to be copied in one piece.
        table.add_column(column, no_wrap=column in {"id", "delivery"}, overflow="fold")
    for row in cells:
        table.add_row(*map(Text, row))
    # A pipe has no width to fit into.
    Console(width=None if sys.stdout.isatty() else 10_000).print(table, crop=False)


def printable(value: object) -> str:
    """Text for a person: local time to the second, and no control character that could drive the terminal."""
    if value is None:
        return "-"
    if isinstance(value, datetime):
        return value.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in str(value))


def ago(moment: datetime, now: datetime | None = None) -> str:
    """How long ago, or in how long, in the largest unit that fits."""
    seconds = ((now or datetime.now(UTC)) - moment).total_seconds()
    size, unit = next(
        (step for step in ((86_400, "d"), (3600, "h"), (60, "m")) if abs(seconds) >= step[0]), (1, "s")
    )
    amount = f"{abs(seconds) / size:.0f} {unit}"
    return f"{amount} ago" if seconds >= 0 else f"in {amount}"
