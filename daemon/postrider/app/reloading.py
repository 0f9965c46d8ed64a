"""Takes over a new configuration: all of it, or nothing has changed.

What can fail comes first; the catalogue, which the CRM's transactions see, after that; memory last.
"""

import asyncio
from collections.abc import Mapping

import structlog

from postrider.app.clients import Clients
from postrider.app.composition import Services
from postrider.domain.dialects import Dialect
from postrider.domain.promises import overruled
from postrider.edges.clock import Clock
from postrider.edges.config import Config
from postrider.edges.dialect_files import default_dialect, load_dialects
from postrider.edges.log import set_log_level
from postrider.edges.metrics import Metrics
from postrider.edges.settings import read_sealer, retry_settings
from postrider.engine.partitions import Retention
from postrider.engine.sender import SendSettings
from postrider.store import catalogue, endpoints
from postrider.store.database import Database

log = structlog.get_logger()


class Reloader:
    def __init__(
        self,
        started_with: Config,
        *,
        services: Services,
        database: Database,
        clients: Clients,
        metrics: Metrics,
        clock: Clock,
    ) -> None:
        self.config = self._started_with = started_with
        """The one in use."""
        self._services = services
        self._database = database
        self._clients = clients
        self._metrics = metrics
        self._clock = clock
        self._reloading = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<Reloader {'reloading' if self._reloading.locked() else 'at rest'}>"

    async def reload(self, config: Config) -> None:
        """Raises PostriderError where nothing has changed."""
        async with self._reloading:
            before = self._services.sender.settings
            timeout_s = max(
                self.config.delivery.timeout, *(each.timeout or 0.0 for each in before.dialects.values())
            )
            await self._reload(config)
        await self._clock.sleep(timeout_s + 1.0)  # its requests have ended by then
        await self._clients.close(before.client)

    async def _reload(self, config: Config) -> None:
        dialects = load_dialects(config.dialect.paths, config.dialect.values)
        default = default_dialect(dialects, config.dialect.default)
        sealer = read_sealer(config)
        retention = Retention(config.retention.events, config.retention.attempts)
        retry = retry_settings(config)
        client = await self._clients.open(config)
        services = self._services
        try:
            await tell_of_overruled(self._database, config, dialects)
            await publish(self._database, default)
        except BaseException:
            await self._clients.close(client)
            raise
        self.config = config
        services.rules.configure(dialects, retry)
        services.snapshot.configure(sealer)
        services.secret_sealer.configure(sealer)
        services.sender.settings = SendSettings(
            client, dialects, config.delivery.user_agent, config.network.https_only
        )
        services.dispatcher.configure(config.database.notify)
        services.partitions.configure(retention)
        set_log_level(config.log.level)
        fixed = _fixed_at_start(self._started_with, config)
        self._metrics.restart_due.set(bool(fixed))
        log.info("config.reloaded", needs_restart=fixed)


async def publish(database: Database, default: Dialect) -> None:
    """Let emit() take the event types of the default dialect."""
    async with database.transaction() as connection:
        await catalogue.publish(connection, default)


async def tell_of_overruled(database: Database, config: Config, dialects: Mapping[str, Dialect]) -> None:
    """Say which keys have no effect on endpoints, because what their dialect promises goes first."""
    async with database.connection() as connection:
        in_use = {config.dialect.default, *await endpoints.dialects(connection)}
    for name in sorted(in_use & dialects.keys()):
        for key in overruled(dialects[name], retry_settings(config)):
            log.warning("config.overruled", dialect=name, key=key, reason="the dialect promises its schedule")


def _fixed_at_start(started: Config, wanted: Config) -> list[str]:
    """What of the wanted configuration only a restart brings, whatever was reloaded in between."""
    return [
        name
        for name, before, after in (
            ("database.dsn", started.database.dsn, wanted.database.dsn),
            ("database.pool_size", started.database.pool_size, wanted.database.pool_size),
            ("admin", started.admin, wanted.admin),
            ("delivery.concurrency", started.delivery.concurrency, wanted.delivery.concurrency),
            (
                "delivery.endpoint_concurrency",
                started.delivery.endpoint_concurrency,
                wanted.delivery.endpoint_concurrency,
            ),
            ("log.format", started.log.format, wanted.log.format),
        )
        if before != after
    ]
