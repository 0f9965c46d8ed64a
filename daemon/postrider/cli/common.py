"""What commands share: the options --config and --json, where operations begin, and printing of facts."""

import asyncio
import os
import pwd
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import click
import orjson

from postrider.cli.groups import CONFIG
from postrider.domain.audit import Actor
from postrider.domain.errors import UsageError
from postrider.edges.config import load_config
from postrider.operations.wording import printable
from postrider.operations.work import Backend, open_backend

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


@asynccontextmanager
async def backend_of(config_path: Path | None, as_user: str | None = None) -> AsyncIterator[Backend]:
    """Read the configuration, connect (`as_user`: as that system user), and check the schema."""
    async with open_backend(load_config(config_path, os.environ), as_user=as_user) as backend:
        yield backend


def operator() -> Actor:
    """Whoever runs this command; behind sudo, who asked for it."""
    return Actor(os.environ.get("SUDO_USER") or _user(), "cli", socket.gethostname())


def _user() -> str:
    uid = os.getuid()
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:  # a container may run as a user that no file lists
        return f"uid {uid}"


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


def show_progress(text: str) -> None:
    """Write over the last such line, where a person is looking."""
    if sys.stderr.isatty():
        click.echo(f"\r\x1b[K{text}", nl=False, err=True)
