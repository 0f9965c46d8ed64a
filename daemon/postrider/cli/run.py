"""postrider run: the daemon."""

import asyncio
import gc
import os
import signal
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import click
import structlog
import uvloop

from postrider.admin.server import AdminServer
from postrider.app import Daemon
from postrider.cli.common import config_option
from postrider.domain.errors import PostriderError
from postrider.edges.config import Config, LogConfig, load_config
from postrider.edges.log import configure_logging, is_json

log = structlog.get_logger()


@click.command()
@config_option
def run(config_path: Path | None) -> None:
    """Deliver webhooks until SIGTERM or SIGINT.

    The first signal lets requests under way finish within delivery.drain_timeout; a second one ends at
    once. SIGHUP re-reads the configuration. Where a migration has left this program behind, the daemon stops
    and ends with exit code 2: it has to be upgraded.
    """
    log_format = LogConfig().format
    try:
        config = load_config(config_path, os.environ)
        log_format = config.log.format
        configure_logging(config.log.level, log_format)
        _run(config, lambda: load_config(config_path, os.environ))
    except Exception as error:
        if not is_json(log_format):
            raise  # for a person to read
        _tell_the_log(error)
        sys.exit(error.exit_code if isinstance(error, PostriderError) else 1)


def _tell_the_log(error: Exception) -> None:
    """The last line of a log in JSON is JSON, too."""
    if isinstance(error, PostriderError):
        log.critical("daemon.failed", reason=error.message, hint=error.hint)
    else:
        log.critical("daemon.failed", reason=f"{type(error).__name__}: {error}", exc_info=error)


def _run(config: Config, read_config: Callable[[], Config]) -> None:
    # What is loaded by now stays; and deliveries make no cycles, so looking for them often is in vain, and
    # looking at much at a time would hold up whatever is to be sent: 20,000 objects take 10 to 20 ms.
    gc.freeze()
    gc.set_threshold(1_000, 2, 1_000)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(config, read_config))


async def _serve(config: Config, read_config: Callable[[], Config]) -> None:
    daemon = Daemon(config)
    async with AsyncExitStack() as stack:
        if config.admin.listen:
            await stack.enter_async_context(AdminServer(daemon, config.admin))
        await _run_until_stopped(daemon, read_config)


async def _run_until_stopped(daemon: Daemon, load_config: Callable[[], Config]) -> None:
    """Run a daemon until SIGTERM or SIGINT; SIGHUP re-reads the configuration."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    tasks: set[asyncio.Task[None]] = set()

    def on_stop() -> None:
        if stop.is_set():
            log.warning("daemon.killed", reason="second signal")
            os._exit(1)
        stop.set()

    async def reload() -> None:
        try:
            await daemon.reload(load_config())
        except PostriderError as error:
            log.error("config.refused", reason=str(error), kept="the configuration in use")

    def on_hangup() -> None:
        if daemon.started.is_set():
            task = asyncio.create_task(reload())
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_stop)
    loop.add_signal_handler(signal.SIGHUP, on_hangup)
    starting = asyncio.create_task(daemon.start())
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        with suppress(asyncio.CancelledError):
            await starting
        await daemon.stop()
        return
    if (error := starting.exception()) is not None:
        stopping.cancel()
        await daemon.stop()
        raise error
    outdated = asyncio.create_task(daemon.services.schema_watch.outdated())
    await asyncio.wait({stopping, outdated}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    try:
        await daemon.stop()
    finally:
        # Whatever the stop met in a schema that is not the daemon's, this is the cause.
        if outdated.done():
            raise outdated.result()
        outdated.cancel()
