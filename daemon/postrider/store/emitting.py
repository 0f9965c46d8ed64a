"""Announcing an event as a CRM does, by `postrider.emit`."""

import asyncpg

from postrider.domain.errors import UsageError
from postrider.store.database import Connection

_JSON = frozenset({"previous_attributes", "actor", "related"})


async def emit(connection: Connection, event_type: str, data: str, **optional: str | None) -> str:
    """Call postrider.emit; return the public id of the event.

    Raises UsageError for arguments that it refuses, which undoes the transaction.
    """
    names = [name for name, value in optional.items() if value is not None]
    arguments = "".join(
        f", {name} => ${number}::{'json' if name in _JSON else 'text'}"
        for number, name in enumerate(names, start=3)
    )
    try:
        event_id: str = await connection.fetchval(
            f"SELECT postrider.emit($1::text, $2::json{arguments})",
            event_type,
            data,
            *(optional[name] for name in names),
        )
    except (asyncpg.InvalidParameterValueError, asyncpg.ProgramLimitExceededError) as error:
        raise UsageError(error.args[0], error.hint or "") from error
    except asyncpg.InvalidTextRepresentationError as error:
        raise UsageError(f"{error.args[0]}: {error.detail}", "Pass valid JSON.") from error
    return event_id
