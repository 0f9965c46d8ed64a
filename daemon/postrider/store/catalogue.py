"""The catalogue in the database: which event types emit() takes, and what people may subscribe to."""

from postrider.domain.dialects import Dialect
from postrider.store.database import Connection

_TYPES = """
  SELECT name, category, description, status, example::text FROM unnest(
    $1::text[], $2::text[], $3::text[], $4::text[], $5::text[]
  ) AS t(name, category, description, status, example)
"""

_PUBLISH_TYPES = f"""
WITH wanted AS ({_TYPES}), gone AS (
  DELETE FROM postrider.event_type WHERE name <> ALL ($1::text[])
)
INSERT INTO postrider.event_type AS known (name, category, description, status, example)
SELECT name, category, description, status, example::json FROM wanted
ON CONFLICT (name) DO UPDATE SET category = excluded.category, description = excluded.description,
  status = excluded.status, example = excluded.example
"""  # noqa: S608 (constant)

_UNCHANGED = f"""
SELECT (SELECT count(*) FROM postrider.catalogue WHERE dialect = $6 AND closed = $7) = 1 AND NOT EXISTS (
  (({_TYPES}) EXCEPT SELECT name, category, description, status, example::text FROM postrider.event_type)
  UNION ALL
  (SELECT name, category, description, status, example::text FROM postrider.event_type EXCEPT ({_TYPES})))
"""  # noqa: S608 (constant)


async def publish(connection: Connection, dialect: Dialect) -> None:
    """Make the event types of the default dialect those of the database; writes only what differs."""
    types = list(dialect.catalogue.types.values())
    columns = (
        [each.type for each in types],
        [each.group for each in types],
        [each.description for each in types],
        [each.status for each in types],
        [dialect.catalogue.sample(each.type).data for each in types],
    )
    if await connection.fetchval(_UNCHANGED, *columns, dialect.name, dialect.closed_catalogue):
        return
    # What memory switches to next may not be undone by a crash.
    await connection.execute("SET LOCAL synchronous_commit = on")
    await connection.execute(_PUBLISH_TYPES, *columns)
    await connection.execute(
        """INSERT INTO postrider.catalogue (dialect, closed) VALUES ($1, $2)
           ON CONFLICT (only_row) DO UPDATE SET dialect = excluded.dialect, closed = excluded.closed""",
        dialect.name,
        dialect.closed_catalogue,
    )
