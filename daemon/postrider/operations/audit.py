"""What people changed, newest first."""

from dataclasses import dataclass

from postrider.domain.audit import AuditEntry
from postrider.domain.keysets import Number, keyset_cursor, parse_keyset_cursor
from postrider.operations.work import UnitOfWork
from postrider.store import audit

_CURSOR = "audit"


@dataclass(frozen=True, slots=True)
class Entries:
    """A page of the audit log."""

    rows: list[AuditEntry]
    next_cursor: str | None
    """Where the next page begins; None behind the last one."""


async def list_entries(
    work: UnitOfWork, *, subject: str | None = None, cursor: str | None = None, limit: int
) -> Entries:
    """The log within the scope, or what it says of one subject."""
    rows = await audit.entries(
        work.connection,
        work.scope,
        subject=subject,
        before_id=None if cursor is None else parse_keyset_cursor(cursor, _CURSOR, Number),
        limit=limit + 1,
    )
    if len(rows) <= limit:
        return Entries(rows, None)
    return Entries(rows[:limit], keyset_cursor(_CURSOR, rows[limit - 1].id))
