"""postrider run: the daemon."""

import asyncio
import os
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import click
import uvloop

from postrider.admin.server import AdminServer
from postrider.app import Daemon, run_until_stopped
from postrider.cli.common import config_option
from postrider.edges.config import Config, load_config
from postrider.edges.log import configure_logging


@click.command()
@config_option
def run(config_path: Path | None) -> None:
    """Deliver webhooks until SIGTERM or SIGINT.

    The first signal lets requests under way finish within delivery.drain_timeout; a second one ends at
    once. SIGHUP re-reads the configuration.
    """

    def read_config() -> Config:
        return load_config(config_path, os.environ)

    config = read_config()
    configure_logging(config.log.level, config.log.format)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(config, read_config))


async def _serve(config: Config, read_config: Callable[[], Config]) -> None:
    daemon = Daemon(config)
    async with AsyncExitStack() as stack:
        if config.admin.listen:
            await stack.enter_async_context(AdminServer(daemon, config.admin.listen))
        await run_until_stopped(daemon, read_config)
