"""The admin server: /healthz (the claim loop turns), /readyz (it can deliver), /metrics (Prometheus)."""

from types import TracebackType
from typing import Self

import structlog
from aiohttp import web

from postrider.app import Daemon
from postrider.domain.errors import UsageError

log = structlog.get_logger()


class AdminServer:
    """Serves while it is entered. Raises UsageError if it can't listen there."""

    def __init__(self, daemon: Daemon, listen: str) -> None:
        """`listen` is host:port, an IPv6 address in brackets."""
        self._daemon = daemon
        self._listen = listen
        app = web.Application()
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics)
        self._runner = web.AppRunner(app, access_log=None)

    async def __aenter__(self) -> Self:
        host, _, port = self._listen.rpartition(":")
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, host.strip("[]"), int(port)).start()
        except OSError as error:
            await self._runner.cleanup()
            raise UsageError(
                f"admin.listen: can't listen on {self._listen}: {error.strerror}",
                "Choose a free port, or stop the program that uses this one.",
            ) from None
        log.info(
            "admin.listening", addresses=[f"{address[0]}:{address[1]}" for address in self._runner.addresses]
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._runner.cleanup()

    async def _healthz(self, _request: web.Request) -> web.Response:
        turning = self._daemon.turning()
        return web.json_response({"claim_loop_turns": turning}, status=200 if turning else 503)

    async def _readyz(self, _request: web.Request) -> web.Response:
        readiness = await self._daemon.readiness()
        return web.json_response(
            {"database": readiness.database, "schema": readiness.schema, "listener": readiness.listener},
            status=200 if readiness.ready else 503,
        )

    async def _metrics(self, _request: web.Request) -> web.Response:
        return web.Response(
            body=self._daemon.metrics.exposition(),
            headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"},
        )
