"""The audit log: appended in the transaction of the change that it tells of, and read newest first."""

from collections.abc import Mapping
from datetime import datetime

import orjson

from postrider.domain.audit import Actor, AuditEntry, Scope
from postrider.store.database import Connection
from postrider.store.statement import Statement


async def append(
    connection: Connection,
    actor: Actor,
    now: datetime,
    *,
    workspace_id: str | None,
    action: str,
    subject: str,
    before: Mapping[str, object] | None,
    after: Mapping[str, object] | None,
) -> None:
    await connection.execute(
        """INSERT INTO postrider.audit_log
             (at, workspace_id, who, how, origin, action, subject, before, after)
           VALUES ($1, $2, $3, $4, $5, $6, $7, $8::text::json, $9::text::json)""",
        now,
        workspace_id,
        actor.who,
        actor.how,
        actor.origin,
        action,
        subject,
        _json(before),
        _json(after),
    )


def entries_statement(
    scope: Scope, *, subject: str | None, before_id: int | None, limit: int
) -> tuple[str, list[object]]:
    made = Statement()
    made.keep_to(scope)
    if subject is not None:
        made.require(f"subject = {made.given(subject, 'text')}")
    if before_id is not None:
        made.require(f"id < {made.given(before_id, 'bigint')}")
    statement = f"""SELECT id, at, workspace_id, who, how, origin, action, subject, before, after
                    FROM postrider.audit_log WHERE {made.where}
                    ORDER BY id DESC LIMIT {made.given(limit, "bigint")}"""  # noqa: S608 (parameters' numbers)
    return statement, made.parameters


async def entries(
    connection: Connection,
    scope: Scope,
    *,
    subject: str | None = None,
    before_id: int | None = None,
    limit: int,
) -> list[AuditEntry]:
    """The newest entries first, from the one before `before_id` on."""
    statement, parameters = entries_statement(scope, subject=subject, before_id=before_id, limit=limit)
    rows = await connection.fetch(statement, *parameters)
    return [
        AuditEntry(
            id=row["id"],
            at=row["at"],
            actor=Actor(row["who"], row["how"], row["origin"]),
            workspace_id=row["workspace_id"],
            action=row["action"],
            subject=row["subject"],
            before=_read(row["before"]),
            after=_read(row["after"]),
        )
        for row in rows
    ]


def _json(facts: Mapping[str, object] | None) -> str | None:
    return None if facts is None else orjson.dumps(facts, option=orjson.OPT_UTC_Z).decode()


def _read(text: str | None) -> Mapping[str, object] | None:
    return None if text is None else orjson.loads(text)
