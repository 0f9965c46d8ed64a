"""Headers and secrets of endpoints that lie in clear text, sealed where they are."""

import asyncpg

from postrider.domain.errors import PostriderError
from postrider.domain.model import endpoint_public_id
from postrider.domain.sealing import Sealer
from postrider.store.database import Connection
from postrider.store.endpoint_rows import headers_context

_PLAIN_HEADERS = """
SELECT id, workspace_id, headers::text AS headers FROM postrider.endpoint
WHERE sealed_headers IS NULL AND headers::text <> '{}' LIMIT $1
"""
# The newest first: what an earlier key sealed may lie there for long.
_SEALED = r"""
(SELECT endpoint_id AS id, sealed, false AS of_headers FROM postrider.endpoint_secret
 WHERE substr(sealed, 1, 1) = '\x01' ORDER BY created_at DESC LIMIT 500)
UNION ALL
(SELECT id, sealed_headers, true FROM postrider.endpoint
 WHERE substr(sealed_headers, 1, 1) = '\x01' ORDER BY updated_at DESC LIMIT 500)
"""
_PLAIN_SECRETS = r"""
SELECT endpoint_id, workspace_id, created_at, sealed FROM postrider.endpoint_secret
WHERE substr(sealed, 1, 1) = '\x00' LIMIT $1
"""


async def seal_plain(connection: Connection, sealer: Sealer, limit: int) -> int:
    """Seal up to `limit` of either; return how many were. It has to be in a transaction.

    None with a key that opens nothing of what is sealed: it seems to be the wrong one.
    """
    # What changes endpoints takes this lock before any other.
    await connection.execute("SELECT FROM postrider.endpoint_revision FOR UPDATE")
    if not await _fits(connection, sealer):
        return 0
    headers = await connection.fetch(_PLAIN_HEADERS, limit)
    await connection.executemany(
        """UPDATE postrider.endpoint SET headers = '{}', sealed_headers = $3
           WHERE id = $1 AND workspace_id = $2""",
        [
            (row["id"], row["workspace_id"], sealer.seal(row["headers"], headers_context(row["id"])))
            for row in headers
        ],
    )
    secrets = await connection.fetch(_PLAIN_SECRETS, limit)
    await connection.executemany(
        """UPDATE postrider.endpoint_secret SET sealed = $4
           WHERE endpoint_id = $1 AND workspace_id = $2 AND created_at = $3""",
        [
            (
                row["endpoint_id"],
                row["workspace_id"],
                row["created_at"],
                sealer.reseal(row["sealed"], endpoint_public_id(row["endpoint_id"])),
            )
            for row in secrets
        ],
    )
    return len(headers) + len(secrets)


async def demand_fitting_key(connection: Connection, sealer: Sealer) -> None:
    """Raise PostriderError where there is a key that opens nothing of what is sealed: what it seals could not
    be opened by the daemon."""
    if sealer.seals and not await _fits(connection, sealer):
        raise PostriderError(
            "the key of secrets.key_file opens nothing of what is sealed there; nothing was changed",
            "Use the key file that the daemon uses.",
        )


async def _fits(connection: Connection, sealer: Sealer) -> bool:
    sealed = await connection.fetch(_SEALED)
    return not sealed or any(_opens(sealer, row) for row in sealed)


def _opens(sealer: Sealer, row: asyncpg.Record) -> bool:
    context = headers_context(row["id"]) if row["of_headers"] else endpoint_public_id(row["id"])
    try:
        sealer.open(row["sealed"], context)
    except PostriderError:
        return False
    return True
