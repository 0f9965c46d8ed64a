"""The trigger of a capture section, as SQL text: one INSERT into the outbox for each statement of the CRM.

What a table's owner defined (a cast, a view, a policy) runs where the events are made, inside the CRM's own
transaction. So they are made in a subtransaction that is always rolled back: nothing such code does stays, no
changed function, no trigger that waits for the commit, no setting. Only the events come out, in a variable.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from postrider.domain.capture import Capture, Entry, Fields, Lookup, Setting
from postrider.domain.model import MAX_DATA_BYTES, MAX_OBJECT_ID_LENGTH, MAX_WORKSPACE_ID_LENGTH
from postrider.store.capture_deleted import KEEPING_PREFIX, keeping, keeping_triggers
from postrider.store.capture_rows import EVENT_COLUMNS, Rows, named_columns, trigger_events
from postrider.store.capture_values import Tables, literal, quoted

TRIGGER_PREFIX = "postrider_capture_"
BEGUN_PREFIX = "postrider_begun_"
TRIGGER_PREFIXES = (TRIGGER_PREFIX, BEGUN_PREFIX, KEEPING_PREFIX)
CAPTURE_ROLE = "postrider_capture"
"""Owns the functions of captures, and so limits what a table's owner can make them do."""
LOCK_TIMEOUT = "1s"
"""How long a CRM's statement waits at most for a lock that a change of Postrider's schema holds."""
SECOND_LOCK_TIMEOUT = "100ms"
"""And how long for the table of rows that are set aside, after it has waited already."""

_SETTINGS = (
    f"SET search_path = pg_catalog, pg_temp SET lock_timeout = '{LOCK_TIMEOUT}'\n"
    "SET DateStyle = 'ISO' SET IntervalStyle = 'iso_8601' SET TimeZone = 'UTC' SET bytea_output = 'hex' "
    "SET extra_float_digits = 1 SET row_security = off"
)
"""An event says the same whatever the CRM's session has set. Where row security would hide what is looked up,
the query fails, rather than show nothing."""
_FORGET = "PR001"
"""Ends a subtransaction that has done its work. Owners' code can raise it too, so a variable tells."""
_WRITE = f"""IF inner_moment IS NULL THEN
        INSERT INTO postrider.outbox (occurred_at, {EVENT_COLUMNS})
          SELECT wrote_at, {EVENT_COLUMNS} FROM unnest(events);
      ELSE
        PERFORM postrider.write_before(events, inner_moment, written);
      END IF;"""
_LOCKED = "SQLSTATE IN ('55P03', '40P01')"


@dataclass(frozen=True, slots=True)
class Statements:
    """What creates a capture, in order, and what its functions say."""

    function_bodies: tuple[str, ...]
    """Of the function where a statement begins, the trigger's function, and the one that makes events of kept
    rows."""
    create: tuple[str, ...]
    probes: tuple[str, ...] = ()
    """The function's statements over a row of the table's types, to be explained: types that don't fit are
    found so, without a right to read the table."""

    @property
    def checksum(self) -> str:
        return hashlib.sha256("\n".join(self.create).encode()).hexdigest()


def function_name(capture_name: str) -> str:
    return f"postrider.{quoted(f'capture_{capture_name}')}"


def begun_function(capture_name: str) -> str:
    return f"postrider.{quoted(f'begun_{capture_name}')}"


def begun_setting(capture_name: str) -> str:
    """Of the CRM's session, up to the end of its transaction."""
    return f"postrider.begun_{capture_name}"


def drop_statements(capture_name: str) -> tuple[str, ...]:
    """Drop the functions, and with them the triggers, also those of a table that was renamed."""
    name = function_name(capture_name)
    return (
        f"DROP FUNCTION IF EXISTS {begun_function(capture_name)}() CASCADE",
        f"DROP FUNCTION IF EXISTS {name}() CASCADE",
        f"DROP FUNCTION IF EXISTS {name}(text, json, json, json)",
    )


def create_statements(capture: Capture, tables: Tables) -> Statements:
    """The functions and the triggers of a capture."""
    rows = Rows(capture, tables)
    bodies = (_begun_body(capture), _trigger_body(capture, tables, rows), _kept_body(capture, rows))
    name, begun = function_name(capture.name), begun_function(capture.name)
    signatures = (f"{begun}()", f"{name}()", f"{name}(text, json, json, json)")
    create = [
        # With no rights but the CRM's, and no settings of its own: these cost more than all that it does.
        f"CREATE OR REPLACE FUNCTION {begun}() RETURNS trigger LANGUAGE plpgsql\n"
        f"AS {_dollar_quoted(bodies[0])}",
        # The CRM's user may write to the outbox only through these functions, hence SECURITY DEFINER.
        f"CREATE OR REPLACE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER\n"
        f"{_SETTINGS}\nAS {_dollar_quoted(bodies[1])}",
        f"CREATE OR REPLACE FUNCTION {name}(operation text, old_row json, new_row json, settings json)\n"
        f"RETURNS SETOF postrider.capture_event LANGUAGE plpgsql SECURITY DEFINER\n"
        f"{_SETTINGS}\nAS {_dollar_quoted(bodies[2])}",
        *(f"REVOKE ALL ON FUNCTION {each} FROM PUBLIC" for each in signatures),
    ]
    create += [
        trigger for table in tables[capture.table].with_partitions for trigger in _triggers(capture, table)
    ]
    create += keeping_triggers(capture, tables, name)
    create += [
        # An owner has to have the right to create in the schema at the moment when it becomes the owner.
        f"GRANT CREATE ON SCHEMA postrider TO {CAPTURE_ROLE}",
        *(f"ALTER FUNCTION {each} OWNER TO {CAPTURE_ROLE}" for each in signatures),
        f"REVOKE CREATE ON SCHEMA postrider FROM {CAPTURE_ROLE}",
    ]
    source = f"{rows.kept('NULL::json', 'o')} CROSS JOIN {rows.kept('NULL::json', 'n')}"
    probes = tuple(f"EXPLAIN {_made(rows, event, source, '')}" for event in trigger_events(capture))
    return Statements(bodies, tuple(create), probes)


def _triggers(capture: Capture, table: str) -> Iterator[str]:
    """The triggers of a table: where a statement begins, and where it has written."""
    transitions = {
        "insert": "REFERENCING NEW TABLE AS new_rows",
        "update": "REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows",
        "delete": "REFERENCING OLD TABLE AS old_rows",
        "truncate": "",
    }
    for event in trigger_events(capture):
        begun, done = (quoted(f"{prefix}{capture.name}_{event}") for prefix in (BEGUN_PREFIX, TRIGGER_PREFIX))
        yield (
            f"CREATE TRIGGER {begun} BEFORE {event.upper()} ON {table} "
            f"FOR EACH STATEMENT EXECUTE FUNCTION {begun_function(capture.name)}()"
        )
        yield (
            f"CREATE TRIGGER {done} AFTER {event.upper()} ON {table} {transitions[event]} "
            f"FOR EACH STATEMENT EXECUTE FUNCTION {function_name(capture.name)}()"
        )


def _dollar_quoted(body: str) -> str:
    tag = "$postrider$"
    while tag in body:
        tag = tag[:-1] + "_$"
    return f"{tag}\n{body}\n{tag}"


def _made(rows: Rows, event: str, source: str, into: str) -> str:
    """A query for the events of a statement, and the largest of each size that has a limit."""
    events = rows.events(event, source)
    if events is None:
        return "NULL"
    return f"""WITH made AS MATERIALIZED (
          {events}
        )
        SELECT array_agg(ROW({EVENT_COLUMNS})::postrider.capture_event),
               max(octet_length(data::text) + coalesce(octet_length(previous_attributes::text), 0)
                   + coalesce(octet_length(actor::text), 0) + coalesce(octet_length(related::text), 0)),
               max(length(object_id)), max(length(workspace_id))
          {into} FROM made"""


def _begun_body(capture: Capture) -> str:
    """Notes that a statement has begun. It runs as the CRM's user, with that one's search_path, so every name
    is written in full."""
    begun = literal(begun_setting(capture.name))
    return f"""BEGIN
  PERFORM pg_catalog.set_config({begun},
    pg_catalog.concat(TG_OP, ':- ', pg_catalog.current_setting({begun}, true)), true);
  RETURN NULL;
END"""


def _trigger_body(capture: Capture, tables: Tables, rows: Rows) -> str:
    """Set by set; and where that fails, row by row, so that one bad row costs no other its event. After the
    first wait for a lock every row is set aside without another.

    A statement can have others of the same capture inside it, such as those of a CRM's AFTER ROW trigger,
    which end before it and write newer states. So a setting has the statements that have begun and not ended,
    the newest first, and for each the moment in which the first one inside it wrote, or `-`. (What BEFORE
    triggers write is no case of this: PostgreSQL refuses a statement that changes the same row afterwards.)
    """
    name, begun = literal(capture.name), literal(begun_setting(capture.name))
    key = ", ".join(f"coalesce(change.new_row, change.old_row)->>{literal(each)}" for each in capture.key)
    set_by_set = f"""CASE TG_OP{_branches(capture, rows)}
      END CASE;
      IF largest > {MAX_DATA_BYTES} OR longest_id > {MAX_OBJECT_ID_LENGTH}
         OR longest_workspace > {MAX_WORKSPACE_ID_LENGTH} THEN
        RAISE program_limit_exceeded;
      END IF;"""
    events_of = function_name(capture.name)
    row_by_row = f"""SELECT array_agg(e) INTO events
            FROM {events_of}(change.operation, change.old_row, change.new_row, NULL) AS e;"""
    return f"""#variable_conflict use_column
DECLARE
  events            postrider.capture_event[];
  largest           integer;
  longest_id        integer;
  longest_workspace integer;
  problem           text;
  waited            boolean;
  done              boolean := false;
  kept              boolean := true;
  change            record;
  begun             text := current_setting({begun}, true);
  here              text[];
  inner_moment      bigint;
  moment            bigint;
  wrote_at          timestamptz := clock_timestamp();
  written           integer := 0;
BEGIN{keeping(capture, tables)}
  IF begun = TG_OP || ':- ' THEN
    PERFORM set_config({begun}, '', true);
  ELSE
    moment := extract(epoch FROM wrote_at) * 1000000;
    here := regexp_match(begun, '^(.*?)' || TG_OP || ':(-|[0-9]{{1,17}}) (.*)$');
    -- The CRM's session could set any: one that is none of this transaction's counts for nothing.
    IF nullif(here[2], '-')::bigint BETWEEN extract(epoch FROM now()) * 1000000 AND moment THEN
      inner_moment := here[2];
      moment := inner_moment - 1;
      wrote_at := to_timestamp(moment / 1000000.0);
      here[3] := replace(here[3], ':' || inner_moment || ' ', ':- ');
    END IF;
    PERFORM set_config({begun}, here[1] || replace(here[3], ':- ', ':' || moment || ' '), true);
  END IF;{_truncate_once(capture)}
  BEGIN
    {_undone(set_by_set, "    ")}
    IF done THEN
      {_WRITE}
      RETURN NULL;
    END IF;
  EXCEPTION WHEN OTHERS THEN
    problem := SQLERRM;
    waited := {_LOCKED};
  END;
  BEGIN
    FOR change IN EXECUTE postrider.captured_changes(TG_RELID, TG_OP, {_array(named_columns(capture))},
                                                     {_array(capture.key)}) LOOP
      done := false;
      IF NOT waited THEN
        {_undone(row_by_row, "        ")}
      END IF;
      IF done THEN
        BEGIN
          {_WRITE}
          written := written + coalesce(cardinality(events), 0);
        EXCEPTION WHEN OTHERS THEN
          done := false;
          problem := SQLERRM;
          waited := {_LOCKED};
        END;
      END IF;
      IF NOT done THEN
        IF waited THEN
          PERFORM set_config('lock_timeout', '{SECOND_LOCK_TIMEOUT}', true);
        END IF;
        kept := postrider.set_aside({name}, change.operation, concat_ws(',', {key}), change.old_row,
                                    change.new_row, {_settings_now(capture)}, problem, kept,
                                    wrote_at);
      END IF;
    END LOOP;
  EXCEPTION WHEN OTHERS THEN
    -- Not even setting aside worked; the CRM's transaction goes on all the same.
    RAISE LOG 'postrider: the capture % lost the events of a statement: %', {name}, SQLERRM;
  END;
  RETURN NULL;
END"""


def _undone(statements: str, indent: str) -> str:
    """Statements that make `events`, in the subtransaction that is always rolled back. It sets `done`; where
    they failed, `problem` and `waited` tell why."""
    return f"""BEGIN
{indent}  {statements}
{indent}  done := true;
{indent}  RAISE SQLSTATE '{_FORGET}';
{indent}EXCEPTION WHEN OTHERS THEN
{indent}  IF NOT done THEN
{indent}    problem := SQLERRM;
{indent}    waited := {_LOCKED};
{indent}  END IF;
{indent}END;"""


def _branches(capture: Capture, rows: Rows) -> str:
    """How each kind of statement makes its events."""
    sources = {
        "insert": "new_rows AS n",
        "update": f"old_rows AS o JOIN new_rows AS n ON {rows.same_key()}",
        "delete": "old_rows AS o",
        "truncate": "",
    }
    another_key = f"""
        IF EXISTS (SELECT FROM old_rows AS o FULL JOIN new_rows AS n ON {rows.same_key()}
                   WHERE o.{quoted(capture.key[0])} IS NULL) THEN
          RAISE EXCEPTION 'a row got another key: it is told as deleted and created';
        END IF;"""
    return "".join(
        f"""
      WHEN '{event.upper()}' THEN
        {_made(rows, event, sources[event], "INTO events, largest, longest_id, longest_workspace")};"""
        + (another_key if event == "update" else "")
        for event in trigger_events(capture)
    )


def _truncate_once(capture: Capture) -> str:
    """The partitions of a table are truncated with it, by one statement: the last of the triggers tells."""
    if "truncated" not in capture.events:
        return ""
    begun = literal(begun_setting(capture.name))
    return f"""
  IF TG_OP = 'TRUNCATE' AND strpos(current_setting({begun}), 'TRUNCATE') > 0 THEN
    RETURN NULL;
  END IF;"""


def _kept_body(capture: Capture, rows: Rows) -> str:
    """The events of one row that is kept as JSON, by the same expressions."""
    old, new = rows.kept("old_row", "o"), rows.kept("new_row", "n")
    branches = {"insert": new, "delete": old, "update": f"{old} CROSS JOIN {new}", "truncate": ""}
    written = "".join(
        f"""
  IF operation = '{event.upper()}' THEN
    FOR event IN
      {events}
    LOOP
      PERFORM postrider.check_captured(event);
      RETURN NEXT event;
    END LOOP;
  END IF;"""
        for event, source in branches.items()
        if (events := rows.events(event, source)) is not None
    )
    return f"""#variable_conflict use_column
DECLARE
  event   postrider.capture_event;
  missing text;
BEGIN
  SELECT string_agg(c.name, ', ') INTO missing FROM unnest({_array(named_columns(capture))}) AS c (name)
    WHERE c.name NOT IN (SELECT json_object_keys(coalesce(new_row, old_row))) AND operation <> 'TRUNCATE';
  IF missing IS NOT NULL THEN
    RAISE EXCEPTION 'the table had no column % when the row changed', missing;
  END IF;
  PERFORM set_config(s.key, coalesce(s.value, ''), true) FROM json_each_text(settings) AS s;
  IF operation = 'UPDATE' AND (old_row IS NULL OR new_row IS NULL) THEN
    RAISE EXCEPTION 'the row before and the row after have no common key: a column of the key is gone';
  END IF;{written}
END"""


def _settings_now(capture: Capture) -> str:
    """The settings of the CRM's session that the section names, as JSON."""
    entries = (capture.object_id, capture.workspace, capture.columns, capture.actor, capture.related)
    names = dict.fromkeys(name for entry in entries if entry is not None for name in _settings(entry))
    if not names:
        return "NULL"
    shown = ", ".join(f"({literal(name)}, current_setting({literal(name)}, true))" for name in names)
    return f"(SELECT json_object_agg(s.name, s.value) FROM (VALUES {shown}) AS s (name, value))"


def _settings(entry: Entry) -> Iterator[str]:
    match entry:
        case Setting(name=name):
            yield name
        case Fields(entries=entries):
            for each in entries.values():
                yield from _settings(each)
        case Lookup(where=where, entry=found):
            for each in where.values():
                yield from _settings(each)
            yield from _settings(found)


def _array(names: Sequence[str]) -> str:
    return f"ARRAY[{', '.join(literal(name) for name in names)}]::text[]"
