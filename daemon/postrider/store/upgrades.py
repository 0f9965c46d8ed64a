"""Which living daemons migrations would leave behind: their programs do not work with the schema after."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from postrider.store.daemons import ALIVE
from postrider.store.database import Connection, pin, translated_errors
from postrider.store.foreign_code import hold
from postrider.store.migrations import Migration, applied_migrations

# Whatever the schema, as of the first migration. A daemon that does not tell what it knows is of a release
# that starts only beside its own schema, and that knows no later migration than $1.
_LIVING = f"""
SELECT d.id, d.hostname, d.pid, d.version, d.schema IS NOT NULL AS told, coalesce(d.schema, (
  SELECT max(m.number) FROM postrider.migration AS m WHERE m.applied_at <= d.started_at AND m.number <= $1
), 0) AS schema
FROM (SELECT id, hostname, pid, version, started_at, heartbeat_at, pooled,
             to_jsonb(r) ->> 'application_name' AS application_name,
             (to_jsonb(r) ->> 'schema')::integer AS schema
      FROM postrider.daemon AS r) AS d
WHERE {ALIVE} ORDER BY d.id
"""  # noqa: S608 (constant)

LAST_UNTOLD = 12
"""The last migration of releases whose daemons don't tell which schema they know."""


@dataclass(frozen=True, slots=True)
class LivingDaemon:
    id: int
    hostname: str
    pid: int
    version: str
    schema: int
    """The last migration that its program knows."""
    told: bool
    """It says so itself. The programs of others refuse to start beside any newer schema."""

    def __str__(self) -> str:
        return (
            f"daemon {self.id} (pid {self.pid} on {self.hostname}, Postrider {self.version}, "
            f"schema {self.schema})"
        )


@dataclass(frozen=True, slots=True)
class Upgrade:
    pending: list[Migration]
    living: list[LivingDaemon]

    def broken(self) -> list[tuple[LivingDaemon, Migration]]:
        """The daemons that would stop working, each with the first migration that does that."""
        return broken_by(self.pending, self.living)

    def unstartable(self) -> list[LivingDaemon]:
        """The daemons that go on, but could not be started again."""
        left = {daemon.id for daemon, _ in self.broken()}
        return [each for each in self.living if self.pending and not each.told and each.id not in left]


def broken_by(
    pending: Sequence[Migration], living: Iterable[LivingDaemon]
) -> list[tuple[LivingDaemon, Migration]]:
    found = []
    for daemon in living:
        breaking = (each for each in pending if each.breaks is not None and each.breaks >= daemon.schema)
        if (first := next(breaking, None)) is not None:
            found.append((daemon, first))
    return found


async def look_ahead(connection: Connection, migrations: Sequence[Migration]) -> Upgrade:
    """What is to be applied of `migrations`, and who runs meanwhile."""
    with translated_errors():
        async with connection.transaction():
            await pin(connection)
            if await connection.fetchval("SELECT to_regclass('postrider.migration') IS NULL"):
                return Upgrade(list(migrations), [])
            await hold(connection, "migration", to="read")
            applied = await applied_migrations(connection)
            pending = [each for each in migrations if each.number not in applied]
            if not pending:
                return Upgrade([], [])
            await hold(connection, "daemon", to="read")
            rows = await connection.fetch(_LIVING, LAST_UNTOLD)
    return Upgrade(pending, [LivingDaemon(**row) for row in rows])
