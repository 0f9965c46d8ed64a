"""The endpoint that a local receiver registers for itself, for as long as it runs."""

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import click

from postrider.cli.common import backend_of, operator
from postrider.domain.audit import EVERYWHERE
from postrider.domain.endpoint_input import NewEndpoint
from postrider.domain.errors import PostriderError, UsageError
from postrider.domain.model import endpoint_public_id
from postrider.operations import endpoint_changes, endpoints
from postrider.operations.endpoint_rules import UrlRefused
from postrider.operations.work import Backend

_MARK = "postrider listen on "
"""What the description of such an endpoint begins with; host and process follow."""


@asynccontextmanager
async def registered(
    config_path: Path | None, url: str, *, events: str, workspace: str, secret: str
) -> AsyncIterator[str]:
    """Subscribe `url`, yield the endpoint's id, and delete it at the end.

    What a receiver of this host left that was killed is deleted first.
    """
    async with backend_of(config_path) as backend:
        await _delete_left(backend)
        new = NewEndpoint(
            url=url,
            patterns=tuple(events.split(",")),
            workspace_id=workspace,
            secret=secret,
            description=f"{_MARK}{socket.gethostname()}, process {os.getpid()}",
        )
        try:
            # No handshake: it is this process that would answer it.
            added = await endpoint_changes.add(backend, operator(), EVERYWHERE, new, vouched=True)
        except UrlRefused as error:
            raise UsageError(
                f"{url} can't be registered: {error.message}",
                'A daemon sends to this machine only with network.allow = ["127.0.0.0/8"] and '
                "network.https_only = false in its configuration.",
            ) from None
        for notice in added.notices:
            click.echo(notice, err=True)
        endpoint_id = added.row.endpoint.id
        ep = endpoint_public_id(endpoint_id)
        try:
            yield ep
        finally:
            try:
                await endpoints.delete(backend, operator(), EVERYWHERE, endpoint_id)
            except PostriderError as error:
                click.echo(
                    f"{ep} could not be deleted: {error.message}\n"
                    f"The next `postrider listen --subscribe` on this host does so.",
                    err=True,
                )


async def _delete_left(backend: Backend) -> None:
    mine = f"{_MARK}{socket.gethostname()}, process "
    async with backend.begin(operator(), EVERYWHERE) as work:
        described = await endpoints.described(work, mine)
    for endpoint_id, description in described:
        process = description.removeprefix(mine)
        if process.isdigit() and not _runs(int(process)):
            await endpoints.delete(backend, operator(), EVERYWHERE, endpoint_id)
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
