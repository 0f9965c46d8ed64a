"""Rows of looked-up tables that a transaction deletes, kept until its end for the events that tell of them.

Where the deletion of a client deletes its deals too, the client is gone when their events are made. So a
trigger of the looked-up table keeps what lookups with `keep_deleted` read of it, each column as text.
PostgreSQL runs it before the triggers of the tables to which the deletion cascades; where it cascades to the
same table too, that is so for a trigger of each row alone, which takes longer. Nothing that an owner of
tables defines runs in it.
"""

from collections.abc import Iterator

from postrider.domain.capture import Capture, lookups
from postrider.store.capture_values import (
    TableFacts,
    Tables,
    deleted_source,
    key_of_deleted,
    literal,
    quoted,
)
from postrider.store.database import Connection

KEEPING_PREFIX = "postrider_archive_"
"""PostgreSQL fires triggers in the order of their names: where a captured table refers to itself, its deleted
rows are kept before the events are made."""


async def forget(connection: Connection) -> None:
    """Delete what was kept for transactions which have ended."""
    await connection.execute(
        """DELETE FROM postrider.capture_deleted
           WHERE transaction < pg_snapshot_xmin(pg_current_snapshot())"""
    )


def kept_tables(capture: Capture, tables: Tables) -> dict[str, TableFacts]:
    """The tables whose deleted rows are kept for this capture, by their names in the database: a section can
    write the same one in several ways."""
    kept = (tables[each.table] for each in lookups(capture) if each.keep_deleted)
    return {facts.name: facts for facts in kept}


def keeping_triggers(capture: Capture, tables: Tables, function: str) -> Iterator[str]:
    """Their definitions. The argument names the table."""
    name = quoted(KEEPING_PREFIX + capture.name)
    for kept, facts in kept_tables(capture, tables).items():
        execute = f"EXECUTE FUNCTION {function}({literal(kept)})"
        if facts.deletes_itself:  # the partitions inherit it
            yield f"CREATE TRIGGER {name} AFTER DELETE ON {kept} FOR EACH ROW {execute}"
            continue
        for table in facts.with_partitions:
            yield (
                f"CREATE TRIGGER {name} AFTER DELETE ON {table} REFERENCING OLD TABLE AS old_rows "
                f"FOR EACH STATEMENT {execute}"
            )


def keeping(capture: Capture, tables: Tables) -> str:
    """The part of a trigger's function that keeps rows; empty if there are none to keep. What can't be kept
    looks as if it were not there."""
    branches = "".join(
        f"""
      IF TG_ARGV[0] = {literal(table)} THEN{_inserts(capture, tables, table)}
      END IF;"""
        for table in kept_tables(capture, tables)
    )
    if not branches:
        return ""
    name = literal(capture.name)
    return f"""
  IF TG_NARGS > 0 THEN
    BEGIN{branches}
    EXCEPTION WHEN OTHERS THEN
      RAISE LOG 'postrider: the capture % kept no deleted row of %: %', {name}, TG_ARGV[0], SQLERRM;
    END;
    RETURN NULL;
  END IF;"""


def _inserts(capture: Capture, tables: Tables, table: str) -> str:
    """One for each way in which rows of a table are looked up."""
    inserts: dict[str, str] = {}
    kept = [each for each in lookups(capture) if each.keep_deleted and tables[each.table].name == table]
    columns = [quoted(name) for name in dict.fromkeys(name for lookup in kept for name in lookup.columns)]
    image = ", ".join(
        f"CASE WHEN o.{column} IS DISTINCT FROM NULL THEN format('%s', o.{column}) END AS {column}"
        for column in columns
    )
    for lookup in kept:
        facts = tables[lookup.table]
        source = deleted_source(capture, lookup, facts)
        key = key_of_deleted((f"o.{quoted(name)}", facts.columns[name].type) for name in sorted(lookup.where))
        inserts[source] = f"""
        INSERT INTO postrider.capture_deleted (source, key, image)
          SELECT {literal(source)}, {key}, (SELECT row_to_json(x.*) FROM (SELECT {image}) AS x)
          FROM {"(SELECT OLD.*)" if facts.deletes_itself else "old_rows"} AS o;"""  # noqa: S608
    return "".join(inserts.values())
