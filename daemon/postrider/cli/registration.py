"""The endpoint that a local receiver registers for itself, for as long as it runs."""

import os
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import click

from postrider.cli.common import Stores, known_dialect, open_stores
from postrider.cli.subscription import check_target, check_workspace, parse_patterns
from postrider.domain.errors import PostriderError, UsageError
from postrider.domain.model import Endpoint, EndpointState, endpoint_public_id
from postrider.domain.signing import parse_secret

_MARK = "postrider listen on "
"""What the description of such an endpoint begins with; host and process follow."""


@asynccontextmanager
async def registered(
    config_path: Path | None, url: str, *, events: str, workspace: str, secret: str
) -> AsyncIterator[str]:
    """Subscribe `url`, yield the endpoint's id, and delete it at the end.

    What a receiver of this host left that was killed is deleted first.
    """
    async with open_stores(config_path) as stores:
        await _delete_left(stores)
        endpoint = _endpoint(stores, url, events=events, workspace=workspace, secret=secret)
        await stores.endpoints.add(endpoint, [secret], stores.clock.now())
        ep = endpoint_public_id(endpoint.id)
        try:
            yield ep
        finally:
            try:
                await stores.endpoints.delete(endpoint.id, stores.clock.now())
            except PostriderError as error:
                click.echo(
                    f"{ep} could not be deleted: {error.message}\n"
                    f"The next `postrider listen --subscribe` on this host does so.",
                    err=True,
                )


def _endpoint(stores: Stores, url: str, *, events: str, workspace: str, secret: str) -> Endpoint:
    check_workspace(workspace)
    dialect = known_dialect(stores.config.dialect.default, stores.config)
    try:
        check_target(url, dialect, stores.config)
    except UsageError as error:
        raise UsageError(
            f"{url} can't be registered: {error.message}",
            'A daemon sends to this machine only with network.allow = ["127.0.0.0/8"] and '
            "network.https_only = false in its configuration.",
        ) from None
    return Endpoint(
        id=secrets.randbits(63) or 1,
        workspace_id=workspace,
        url=url,
        patterns=parse_patterns(events, dialect),
        exclusions=(),
        dialect=dialect.name,
        secrets=(parse_secret(secret),),
        state=EndpointState.ACTIVE,  # no handshake: it is this process that would answer it
        concurrency=None,
        headers={},
        failing_since=None,
        description=f"{_MARK}{socket.gethostname()}, process {os.getpid()}",
    )


async def _delete_left(stores: Stores) -> None:
    mine = f"{_MARK}{socket.gethostname()}, process "
    for endpoint_id, description in await stores.endpoints.described(mine):
        process = description.removeprefix(mine)
        if process.isdigit() and not _runs(int(process)):
            await stores.endpoints.delete(endpoint_id, stores.clock.now())
            click.echo(f"deleted {endpoint_public_id(endpoint_id)}, which a killed listener left", err=True)


def _runs(process: int) -> bool:
    """Whether another process of that id runs here."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
