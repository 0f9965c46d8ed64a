"""Somebody who asks operations for something, on a database of the test's."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from postrider.domain.audit import EVERYWHERE, Actor, Scope
from postrider.edges.config import parse_config
from postrider.operations.work import Backend, UnitOfWork, open_backend

ACTOR = Actor("ada", "cli", "host.example")


@asynccontextmanager
async def backend_on(dsn: str, **sections: dict[str, Any]) -> AsyncIterator[Backend]:
    """`sections` goes into the configuration, which permits receivers on loopback."""
    settings = {
        "database": {"dsn": dsn},
        "network": {"https_only": False, "allow": ["127.0.0.0/8", "::1/128"]},
        **sections,
    }
    async with open_backend(parse_config(settings, "the test's configuration")) as backend:
        yield backend


@asynccontextmanager
async def working_on(dsn: str, scope: Scope = EVERYWHERE) -> AsyncIterator[UnitOfWork]:
    """One unit of work."""
    async with backend_on(dsn) as backend, backend.begin(ACTOR, scope) as work:
        yield work
