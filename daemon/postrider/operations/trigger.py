"""A real event with the sample data of a catalogue, for people who develop receivers."""

from postrider.operations.dialects import catalogue_sample, known_dialect
from postrider.operations.emit import NewEvent, emit
from postrider.operations.work import UnitOfWork


async def trigger(work: UnitOfWork, event_type: str, *, workspace_id: str, dialect: str | None = None) -> str:
    """Emit an event with the sample of that type; return its public id. `dialect`: whose catalogue has it;
    None takes the default one."""
    chosen = known_dialect(work.setting.dialects, dialect or work.setting.config.dialect.default)
    sample = catalogue_sample(chosen, event_type)
    new = NewEvent(
        type=event_type,
        data=sample.data,
        workspace_id=workspace_id,
        previous_attributes=sample.previous_attributes,
        object_type=sample.object_type,
        object_id=sample.object_id,
        actor=sample.actor,
        related=sample.related,
    )
    return await emit(work, new)
