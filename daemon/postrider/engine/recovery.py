"""One batch of rows that capture triggers set aside, made into events in a session of its own."""

from collections.abc import Callable

from postrider.domain.capture_steps import Recovery
from postrider.store import capture_recovery
from postrider.store.capture_recovery import PATIENCE, Patience
from postrider.store.database import Database, translated_errors


async def recover(
    database: Database,
    *,
    limit: int,
    name: str | None = None,
    after: int | None = None,
    enough: Callable[[], bool] = lambda: False,
    patience: Patience = PATIENCE,
) -> Recovery:
    """Choose up to `limit` rows, see `candidates`, and make events of them until that is `enough`."""
    async with database.connection() as connection:
        rows = await capture_recovery.candidates(connection, limit=limit, name=name, after=after)
    if not rows:
        return Recovery(0, 0, 0, None)
    with translated_errors():
        session = await database.dedicated(command_timeout=patience.command_timeout_s)
        try:
            return await capture_recovery.recover(session, rows, enough=enough, patience=patience)
        finally:
            await session.close(timeout=5)
