"""Announcing an event by hand, or for a program that has no transaction of its own in this database."""

from dataclasses import dataclass

from postrider.domain.errors import UsageError
from postrider.operations.work import UnitOfWork
from postrider.store import emitting


@dataclass(frozen=True, slots=True, kw_only=True)
class NewEvent:
    """Arguments of `postrider.emit`; JSON is text, and goes out as it is. None leaves it to the function."""

    type: str
    data: str
    workspace_id: str | None = None
    """None: the one workspace in which whoever asks may act, else the function's default."""
    previous_attributes: str | None = None
    object_type: str | None = None
    object_id: str | None = None
    actor: str | None = None
    related: str | None = None
    idempotency_key: str | None = None


async def emit(work: UnitOfWork, new: NewEvent) -> str:
    """Announce an event; return its public id. Raises UsageError for what is no event."""
    own = work.scope.workspace_id
    workspace_id = new.workspace_id if new.workspace_id is not None else own
    if own not in (None, workspace_id):
        raise UsageError(f"there is no workspace {workspace_id!r}", f"Yours is {own!r}.")
    return await emitting.emit(
        work.connection,
        new.type,
        new.data,
        workspace_id=workspace_id,
        previous_attributes=new.previous_attributes,
        object_type=new.object_type,
        object_id=new.object_id,
        actor=new.actor,
        related=new.related,
        idempotency_key=new.idempotency_key,
    )
