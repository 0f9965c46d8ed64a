"""Rows of looked-up tables that a transaction deletes, kept until its end for the events that tell of them.

Where the deletion of a client deletes its deals too, the client is gone when their events are made. So a
trigger of the looked-up table keeps what lookups with `keep_deleted` read of it, each column as text.
PostgreSQL runs it before the triggers of the tables to which the deletion cascades. Nothing that an owner of
tables defines runs in it.
"""

from postrider.domain.capture import Capture, lookups
from postrider.store.capture_values import deleted_source, key_of_deleted, literal, quoted


def kept_tables(capture: Capture) -> list[str]:
    """The tables whose deleted rows are kept for this capture."""
    return list(dict.fromkeys(each.table for each in lookups(capture) if each.keep_deleted))


def keeping(capture: Capture) -> str:
    """The part of a trigger's function that keeps rows; empty if there are none to keep. The argument of the
    trigger names the table. What can't be kept looks as if it were not there."""
    branches = "".join(
        f"""
      IF TG_ARGV[0] = {literal(table)} THEN{_inserts(capture, table)}
      END IF;"""
        for table in kept_tables(capture)
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


def _inserts(capture: Capture, table: str) -> str:
    """One for each way in which rows of a table are looked up."""
    inserts: dict[str, str] = {}
    kept = [each for each in lookups(capture) if each.keep_deleted and each.table == table]
    columns = [quoted(name) for name in dict.fromkeys(name for lookup in kept for name in lookup.columns)]
    image = ", ".join(
        f"CASE WHEN o.{column} IS DISTINCT FROM NULL THEN format('%s', o.{column}) END AS {column}"
        for column in columns
    )
    for lookup in kept:
        source = deleted_source(capture, lookup)
        key = key_of_deleted(f"o.{quoted(name)}" for name in sorted(lookup.where))
        inserts[source] = f"""
        INSERT INTO postrider.capture_deleted (source, key, image)
          SELECT {literal(source)}, {key}, (SELECT row_to_json(x.*) FROM (SELECT {image}) AS x)
          FROM old_rows AS o;"""  # noqa: S608
    return "".join(inserts.values())
