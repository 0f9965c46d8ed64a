"""The admin server: /healthz (the claim loop turns), /readyz (it can deliver), /metrics (Prometheus)."""

import asyncio
import logging
from contextlib import suppress
from ipaddress import ip_address
from types import TracebackType
from typing import Self

import structlog
from aiohttp import web
from aiohttp.http import HttpProcessingError
from aiohttp.typedefs import Handler
from yarl import URL

from postrider.admin.connections import Connections
from postrider.app import Daemon
from postrider.domain.errors import PostriderError
from postrider.edges.config import AdminConfig

log = structlog.get_logger()

_MAX_LINE_BYTES = 8190
_MAX_HEADERS = 64
_MAX_BODY_BYTES = 65_536
_SHUTDOWN_S = 2.0


class AdminServer:
    """Serves while it is entered. Raises PostriderError if it can't listen there."""

    def __init__(self, daemon: Daemon, config: AdminConfig) -> None:
        self._daemon = daemon
        self._config = config
        listen_host, _, self._port = config.listen.rpartition(":")
        self._host = listen_host.strip("[]")
        self._own_names = {"localhost", self._host.lower()}
        if config.public_url is not None:
            self._own_names.add(URL(config.public_url).host or "")
        self._connections = Connections(self._make_handler, daemon.clock)
        app = web.Application(
            middlewares=[self._note_request, self._check_host], client_max_size=_MAX_BODY_BYTES
        )
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics)
        self._runner = web.AppRunner(
            app,
            access_log=None,
            logger=_logger(),
            max_line_size=_MAX_LINE_BYTES,
            max_field_size=_MAX_LINE_BYTES,
            max_headers=_MAX_HEADERS,
            shutdown_timeout=_SHUTDOWN_S,
        )

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        try:
            self._server = await asyncio.get_running_loop().create_server(
                self._connections, self._host, int(self._port)
            )
        except OSError as error:
            await self._runner.cleanup()
            # Another program may let go of the port, and an address come up later: no mistake that stays.
            raise PostriderError(
                f"admin.listen: can't listen on {self._config.listen}: {error.strerror}",
                "Choose a free port, another one for each instance, or stop the program that uses it.",
            ) from None
        addresses = [listener.getsockname() for listener in self._server.sockets]
        log.info("admin.listening", addresses=[f"{address[0]}:{address[1]}" for address in addresses])
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        await self._runner.cleanup()
        self._connections.close()

    def _make_handler(self) -> asyncio.Protocol:
        assert self._runner.server is not None
        return self._runner.server()

    @web.middleware
    async def _note_request(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        with self._connections.busy(request.transport):
            return await handler(request)

    @web.middleware
    async def _check_host(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse a name that is not ours: a page in an operator's browser may have its name lead here."""
        host = request.headers.get("Host")
        if host is not None and not self._is_own(host, request):
            return web.Response(
                status=421,
                text="This server is not known under that name; admin.public_url can give it one.\n",
            )
        return await handler(request)

    def _is_own(self, host: str, request: web.Request) -> bool:
        try:
            name = URL(f"http://{host}").host or ""
        except ValueError:
            return False
        if name in self._own_names:
            return True
        with suppress(ValueError):
            address = ip_address(name)
            reached = request.get_extra_info("sockname") or ("",)
            return address.is_loopback or name == reached[0]
        return False

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


def _logger() -> logging.Logger:
    """For what aiohttp has to say, but for the requests that it could not read: anybody can send those."""
    logger = logging.getLogger("postrider.admin")

    def is_ours(record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))

    if not logger.filters:
        logger.addFilter(is_ours)
    return logger
