-- What the generated functions of captures call: limits, rows as JSON, rows that are set aside, the order of events.

-- Raises where an event of a capture breaks a limit that emit() has too.
CREATE OR REPLACE FUNCTION postrider.check_captured(event postrider.capture_event) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  bytes integer := octet_length(event.data::text) + coalesce(octet_length(event.previous_attributes::text), 0)
    + coalesce(octet_length(event.actor::text), 0) + coalesce(octet_length(event.related::text), 0);
BEGIN
  IF bytes > 1048576 THEN
    RAISE EXCEPTION 'the event has % bytes; the limit is 1048576', bytes USING ERRCODE = 'program_limit_exceeded';
  ELSIF length(event.object_id) > 512 THEN
    RAISE EXCEPTION 'the object id has % characters; the limit is 512', length(event.object_id)
      USING ERRCODE = 'program_limit_exceeded';
  ELSIF length(event.workspace_id) > 256 THEN
    RAISE EXCEPTION 'the workspace has % characters; the limit is 256', length(event.workspace_id)
      USING ERRCODE = 'program_limit_exceeded';
  END IF;
END
$$;

-- A query over a statement's old_rows and new_rows that shows each row as JSON: the columns of that name, each as
-- text; all columns where the table lacks one of that name, since nobody knows yet which of the others its events
-- will be made of. Where a key column is gone, its primary key tells which old and new row belong together; without
-- one they stay apart.
CREATE OR REPLACE FUNCTION postrider.captured_changes(relation oid, operation text, columns text[], key text[])
RETURNS text LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  WITH present AS (
    SELECT a.attname::text AS name, a.attnum FROM pg_attribute AS a
    WHERE a.attrelid = relation AND a.attnum > 0 AND NOT a.attisdropped
  ), complete AS (
    SELECT columns <@ array_agg(name) AS has_columns, key <@ array_agg(name) AS has_key FROM present
  ), live AS (
    SELECT p.* FROM present AS p, complete AS c WHERE p.name = ANY (columns) OR NOT c.has_columns
  ), images AS (
    SELECT '(SELECT row_to_json(x.*) FROM (SELECT '
      || string_agg(format('CASE WHEN %1$s.%2$I IS DISTINCT FROM NULL THEN format(''%%s'', %1$s.%2$I) END AS %2$I',
                           side, l.name), ', ' ORDER BY l.attnum) || ') AS x)' AS image, side
    FROM live AS l, unnest(ARRAY['o', 'n']) AS side GROUP BY side
  ), pairing AS (
    SELECT CASE WHEN c.has_key THEN key ELSE (
      -- Of built-in types alone: their equality is found, and it is nobody's code.
      SELECT array_agg(a.attname::text) FROM pg_index AS i
        JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey[0:i.indnkeyatts - 1])
        JOIN pg_type AS t ON t.oid = a.atttypid
      WHERE i.indrelid = relation AND i.indisprimary
      HAVING bool_and(t.typnamespace = 'pg_catalog'::regnamespace)) END AS pair
    FROM complete AS c
  ), made AS (
    SELECT (SELECT image FROM images WHERE side = 'o') AS o, (SELECT image FROM images WHERE side = 'n') AS n, pair,
           (SELECT string_agg(format('o.%1$I = n.%1$I', k), ' AND ') FROM unnest(pair) AS k) AS same_key
    FROM pairing
  )
  SELECT CASE
    WHEN operation = 'TRUNCATE' THEN
      'SELECT ''TRUNCATE'' AS operation, NULL::json AS old_row, NULL::json AS new_row'
    WHEN operation = 'INSERT' THEN
      format('SELECT ''INSERT'' AS operation, NULL::json AS old_row, %s AS new_row FROM new_rows AS n', n)
    WHEN operation = 'DELETE' THEN
      format('SELECT ''DELETE'' AS operation, %s AS old_row, NULL::json AS new_row FROM old_rows AS o', o)
    WHEN same_key IS NOT NULL THEN
      format('SELECT CASE WHEN o.%1$I IS NULL THEN ''INSERT'' WHEN n.%1$I IS NULL THEN ''DELETE'' ELSE ''UPDATE'' END '
             'AS operation, CASE WHEN o.%1$I IS NOT NULL THEN %2$s END AS old_row, '
             'CASE WHEN n.%1$I IS NOT NULL THEN %3$s END AS new_row '
             'FROM old_rows AS o FULL JOIN new_rows AS n ON %4$s', pair[1], o, n, same_key)
    ELSE
      format('SELECT ''UPDATE'' AS operation, %s AS old_row, NULL::json AS new_row FROM old_rows AS o UNION ALL '
             'SELECT ''UPDATE'', NULL::json, %s FROM new_rows AS n', o, n)
  END FROM made
$$;

-- Keeps a row of which no event could be made, and tells whether that worked. at: when it changed; rows become events
-- in that order. Where it can't, for want of a lock, PostgreSQL's log is the last place that has the row.
CREATE OR REPLACE FUNCTION postrider.set_aside(capture text, operation text, object_id text, old_row json, new_row json,
                                    settings json, reason text, try boolean, at timestamptz) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  failure text := 'a row before it could not be set aside either';
BEGIN
  IF try THEN
    BEGIN
      INSERT INTO postrider.capture_rejected (capture, at, operation, object_id, old_row, new_row, settings, reason, due)
        VALUES (capture, at, operation, left(object_id, 1024), old_row, new_row, settings, reason, at);
      RAISE LOG 'postrider: the capture % set a row aside: %', capture, reason;
      RETURN true;
    EXCEPTION WHEN OTHERS THEN
      failure := SQLERRM;
    END;
  END IF;
  RAISE LOG 'postrider: the capture % lost a row: %; it could not be set aside: %; the row: %', capture, reason, failure,
    left(json_build_object('at', at, 'operation', operation, 'object_id', object_id, 'old_row', old_row,
                           'new_row', new_row, 'settings', settings)::text, 65536);
  RETURN false;
END
$$;

-- The same, as captures call it that an older release applied.
CREATE OR REPLACE FUNCTION postrider.set_aside(capture text, operation text, object_id text, old_row json, new_row json,
                                               settings json, reason text, try boolean DEFAULT true) RETURNS boolean
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
  SELECT postrider.set_aside(capture, operation, object_id, old_row, new_row, settings, reason, try, now())
$$;

-- Writes events of a statement that had others inside it, such as those of an AFTER ROW trigger which changes its row
-- again: just before the first event of these, which was written at `moment`, in microseconds of the epoch. `written`:
-- how many events of the statement were written before. The ids of one moment are told apart, and ordered, by a number
-- in the bits that are random elsewhere. A moment that is none of this transaction can't be asked for.
CREATE OR REPLACE FUNCTION postrider.write_before(events postrider.capture_event[], moment bigint, written integer)
RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  before bigint := greatest(extract(epoch FROM now()) * 1000000,
                            least(moment, extract(epoch FROM clock_timestamp()) * 1000000) - 1);
  prefix text := lpad(to_hex(before / 1000), 12, '0') || '7' || lpad(to_hex(before % 1000 * 4096 / 1000), 3, '0');
BEGIN
  INSERT INTO postrider.outbox (id, occurred_at, workspace_id, type, object_type, object_id, data,
                                previous_attributes, actor, related)
    SELECT (prefix || '8' || lpad(to_hex(written + place), 8, '0') || right(gen_random_uuid()::text, 7))::uuid,
           to_timestamp(before / 1000000.0), workspace_id, type, object_type, object_id, data,
           previous_attributes, actor, related
    FROM unnest(events) WITH ORDINALITY AS e (workspace_id, type, object_type, object_id, data, previous_attributes,
                                              actor, related, place)
    ORDER BY place;
END
$$;
