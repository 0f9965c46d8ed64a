"""postrider demo: Postrider at work, with a database, a CRM and receivers of its own."""

import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import click
import uvloop

from postrider.cli.common import print_json
from postrider.demo.show import Demo
from postrider.edges.clock import SystemClock
from postrider.edges.embedded import EmbeddedPostgres
from postrider.edges.log import configure_logging

VIEW_S = 0.5


@click.command()
@click.option(
    "--data",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the database lives; reused when it exists [~/.local/share/postrider/demo].",
)
@click.option(
    "--dialect",
    type=click.Choice(["standard", "nodestash", "heffl", "workestra", "stover", "nutshell"]),
    default="standard",
    show_default=True,
    help="The CRM to show. standard emits its events itself; the tables of the others are captured.",
)
@click.option("--fresh", is_flag=True, help="Start over with an empty database.")
@click.option("--seconds", type=click.FloatRange(min=0.5), help="End by itself after so long.")
@click.option(
    "--rate", type=click.FloatRange(1, 2000), default=20.0, show_default=True, help="Transactions a second."
)
@click.option("--json", "as_json", is_flag=True, help="Print the counts as JSON at the end.")
def demo(
    directory: Path | None, dialect: str, fresh: bool, seconds: float | None, rate: float, as_json: bool
) -> None:
    """Run PostgreSQL, a sample CRM, the daemon and three receivers, and watch events being delivered.

    The receivers verify signatures as the document of the CRM teaches its customers.

    Nothing else is needed. Ctrl-C ends it: what is under way is finished first. Exit code 1 if a delivery
    was lost.

    Example: postrider demo --seconds 10 --json
    """
    share = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    directory = (directory or Path(share) / "postrider" / "demo").expanduser().absolute()
    _say("starting PostgreSQL …")
    with EmbeddedPostgres(directory, fresh=fresh) as server:
        log_path = directory / "postrider.log"
        with log_path.open("w") as log:
            configure_logging("info", "json", log)
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                counts = runner.run(_run(Demo(server.dsn, dialect), seconds, rate))
    if as_json:
        print_json({**counts, "data": str(directory)})
    else:
        _print_summary(counts)
        _say(f"the daemon's log is {log_path}")
    if counts["lost"]:
        raise click.exceptions.Exit(1)


async def _run(demo: Demo, seconds: float | None, rate: float) -> dict[str, Any]:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with demo.running():
        viewer = asyncio.create_task(_view(demo))
        try:
            await demo.write_for(seconds, rate, stop)
            _say("the CRM has stopped; waiting for retries …")
            await demo.settle()
        finally:
            viewer.cancel()
            with suppress(asyncio.CancelledError):
                await viewer
        return await demo.counts()


async def _view(demo: Demo) -> None:
    """Show what happens: a table that is kept current on a terminal, else a line a second."""
    live = sys.stderr.isatty()
    clock = SystemClock()
    started = clock.monotonic()
    with _screen() if live else nullcontext() as screen:
        while True:
            await clock.sleep(VIEW_S if live else 1.0)
            counts = await demo.counts()
            elapsed = clock.monotonic() - started
            if screen is not None:
                screen.update(_table(demo, counts, elapsed))
            else:
                _say(
                    f"{elapsed:4.0f} s  {counts['emitted']} events  "
                    f"{counts['succeeded']}/{counts['expected']} delivered  {counts['waiting']} under way  "
                    f"{counts['retrying']} retrying  {counts['failed']} failed"
                )


@contextmanager
def _screen() -> Iterator[Any]:
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(stderr=True), auto_refresh=False) as live:

        class Screen:
            def update(self, table: Any) -> None:
                live.update(table, refresh=True)

        yield Screen()


def _table(demo: Demo, counts: dict[str, Any], elapsed: float) -> Any:
    from rich.table import Table

    facts = [
        f"{counts['emitted']} events, {counts['emitted'] / elapsed:.0f}/s; "
        f"{counts['rolled_back']} rolled back",
        f"{counts['succeeded']} of {counts['expected']} deliveries, {counts['waiting']} under way, "
        f"{counts['retrying']} retrying, {counts['failed']} failed",
    ]
    if counts["p50_ms"] is not None:
        facts.append(f"commit to arrival: p50 {counts['p50_ms']} ms, p99 {counts['p99_ms']} ms")
    table = Table(
        title=f"Postrider demo of {demo.dialect.name}, {elapsed:.0f} s",
        caption="\n".join([*facts, "Ctrl-C ends it"]),
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("receiver")
    table.add_column("subscribed to")
    table.add_column("requests", justify="right")
    table.add_column("accepted", justify="right", style="green")
    table.add_column("answered 500", justify="right", style="yellow")
    for receiver in demo.receivers:
        table.add_row(
            receiver.name,
            ", ".join(receiver.events),
            str(receiver.requests),
            str(receiver.accepted.total()),
            str(receiver.refused),
        )
    return table


def _print_summary(counts: dict[str, Any]) -> None:
    click.echo(
        f"{counts['emitted']} events ({counts['rolled_back']} more rolled back, and not sent)\n"
        f"{counts['succeeded']} of {counts['expected']} deliveries succeeded, {counts['failed']} failed, "
        f"{counts['waiting'] + counts['retrying']} still to come, {counts['lost']} lost, "
        f"{counts['duplicates']} duplicates"
    )
    if counts["p50_ms"] is not None:
        click.echo(f"commit to arrival: p50 {counts['p50_ms']} ms, p99 {counts['p99_ms']} ms")


def _say(text: str) -> None:
    click.echo(text, err=True)
