"""A real event with the sample data of a catalogue, for people who develop receivers."""

from postrider.domain.errors import UsageError
from postrider.operations.dialects import catalogue_sample, known_dialect
from postrider.operations.work import UnitOfWork
from postrider.store.emitting import emit


async def trigger(work: UnitOfWork, event_type: str, *, workspace_id: str, dialect: str | None = None) -> str:
    """Emit an event with the sample of that type; return its public id. `dialect`: whose catalogue has it;
    None takes the default one."""
    if work.scope.workspace_id not in (None, workspace_id):
        raise UsageError(f"there is no workspace {workspace_id!r}", f"Yours is {work.scope.workspace_id!r}.")
    spoken = known_dialect(work.setting.dialects, dialect or work.setting.config.dialect.default)
    sample = catalogue_sample(spoken, event_type)
    return await emit(
        work.connection,
        event_type,
        sample.data,
        previous_attributes=sample.previous_attributes,
        workspace_id=workspace_id,
        object_type=sample.object_type,
        object_id=sample.object_id,
        actor=sample.actor,
        related=sample.related,
    )
