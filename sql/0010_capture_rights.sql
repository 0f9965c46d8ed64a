-- Capture and emit run with few rights, and lose no row.
--
-- What a CRM's table owner defines (a view, a cast, a domain's check, a policy) runs where captured rows become
-- events. It runs as postrider_capture and has no more rights than that role, whoever applied the capture. Four
-- roles, none of which anybody logs in as:
--   postrider_owner    owns the partitioned tables and the functions that make and drop partitions
--   postrider_writer   owns emit(): may insert events and idempotency keys, and read the catalogue
--   postrider_capture  owns the functions of captures: may insert events and set rows aside, and read the columns
--                      that captures look up
--   postrider_prober   owns evaluate(), by which Postrider's own sessions run what postrider_capture owns. It may
--                      do what postrider_capture may, and only in transactions that are rolled back: so nothing
--                      that a CRM defines can change evaluate() itself, or wait in a session for its end.

SET LOCAL search_path = pg_catalog, pg_temp;

-- Why a role may not own functions that others call; NULL if it may.
CREATE FUNCTION postrider.role_flaw(role text, may_belong_to text DEFAULT NULL) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT CASE
      WHEN r.rolsuper THEN 'is a superuser'
      WHEN r.rolcanlogin THEN 'can log in'
      WHEN r.rolcreaterole OR r.rolcreatedb OR r.rolreplication OR r.rolbypassrls
        THEN 'may create roles or databases, replicate, or pass by row security'
      ELSE (SELECT 'is a member of ' || string_agg(g.rolname, ', ')
            FROM pg_auth_members AS m JOIN pg_roles AS g ON g.oid = m.roleid
            WHERE m.member = r.oid AND g.rolname IS DISTINCT FROM may_belong_to) END
  FROM pg_roles AS r WHERE r.rolname = role
$$;

DO $do$
DECLARE
  role text;
  flaw text;
BEGIN
  FOREACH role IN ARRAY ARRAY['postrider_owner', 'postrider_writer', 'postrider_capture', 'postrider_prober'] LOOP
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role) THEN
      BEGIN
        EXECUTE format('CREATE ROLE %I NOLOGIN', role);
      EXCEPTION
        WHEN duplicate_object OR unique_violation THEN
          NULL;  -- another database of this server is being migrated at the same moment
        WHEN insufficient_privilege THEN
          RAISE EXCEPTION 'the role % does not exist and % may not create it', role, current_user
            USING ERRCODE = 'insufficient_privilege',
                  HINT = format('Let a superuser run: CREATE ROLE %I NOLOGIN; GRANT %I TO %I;  then migrate again. '
                                'Roles are the whole server''s: REVOKE %I FROM %I once it is done.',
                                role, role, current_user, role, current_user);
      END;
    END IF;
    flaw := postrider.role_flaw(role, CASE role WHEN 'postrider_prober' THEN 'postrider_capture' END);
    IF flaw IS NOT NULL THEN
      RAISE EXCEPTION 'the role % %, so it may not own functions of Postrider', role, flaw
        USING ERRCODE = 'insufficient_privilege',
              HINT = 'Take that from the role, as in ALTER ROLE … NOLOGIN NOSUPERUSER or REVOKE, and migrate again.';
    END IF;
    -- Who gives functions to a role has to be able to become that role.
    IF NOT pg_has_role(role, 'USAGE') THEN
      BEGIN
        EXECUTE format('GRANT %I TO %I', role, current_user);
      EXCEPTION
        WHEN duplicate_object OR unique_violation THEN
          NULL;
        WHEN insufficient_privilege THEN
          RAISE EXCEPTION '% is not a member of the role %', current_user, role
            USING ERRCODE = 'insufficient_privilege',
                  HINT = format('Let a superuser run: GRANT %I TO %I;  then migrate again. Membership holds in every '
                                'database of the server: REVOKE %I FROM %I once it is done.',
                                role, current_user, role, current_user);
      END;
    END IF;
  END LOOP;
  IF NOT EXISTS (SELECT FROM pg_auth_members WHERE roleid = 'postrider_capture'::regrole
                 AND member = 'postrider_prober'::regrole) THEN
    BEGIN
      GRANT postrider_capture TO postrider_prober;
    EXCEPTION
      WHEN duplicate_object OR unique_violation THEN
        NULL;
      WHEN insufficient_privilege THEN
        RAISE EXCEPTION '% may not make postrider_prober a member of postrider_capture', current_user
          USING ERRCODE = 'insufficient_privilege',
                HINT = 'Let a superuser run: GRANT postrider_capture TO postrider_prober;  then migrate again.';
    END;
  END IF;
END
$do$;

GRANT USAGE ON SCHEMA postrider TO postrider_owner, postrider_writer, postrider_capture, postrider_prober;
GRANT CREATE ON SCHEMA postrider TO postrider_owner;

-- Announces that something happened. Returns the public id of the event. Raises invalid_parameter_value
-- (22023), and program_limit_exceeded (54000) for data that is too large; neither writes anything.
CREATE OR REPLACE FUNCTION postrider.emit(
  type                text,
  data                json,
  previous_attributes json        DEFAULT NULL,
  workspace_id        text        DEFAULT 'default',
  object_type         text        DEFAULT NULL,
  object_id           text        DEFAULT NULL,
  actor               json        DEFAULT NULL,
  related             json        DEFAULT NULL,
  occurred_at         timestamptz DEFAULT now(),
  idempotency_key     text        DEFAULT NULL
) RETURNS text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
  max_bytes CONSTANT integer := 1048576;
  event_id  uuid;
  known_id  uuid;
  bytes     integer;
BEGIN
  IF type IS NULL OR length(type) > 128 OR type !~ '^[a-zA-Z0-9_]+(\.[a-zA-Z0-9_]+)*$' THEN
    RAISE EXCEPTION 'postrider.emit: event type % is not valid', coalesce(quote_literal(left(type, 150)), 'NULL')
      USING ERRCODE = 'invalid_parameter_value',
            HINT = 'Use up to 128 letters, digits and underscores in parts joined by dots, as in deal.updated.';
  END IF;
  IF NOT EXISTS (SELECT FROM postrider.event_type AS t WHERE t.name = type)
     AND EXISTS (SELECT FROM postrider.catalogue AS c WHERE c.closed) AND type NOT LIKE 'endpoint.%' THEN
    RAISE EXCEPTION 'postrider.emit: the catalogue of % has no event type %',
                    (SELECT c.dialect FROM postrider.catalogue AS c), quote_literal(type)
      USING ERRCODE = 'invalid_parameter_value',
            HINT = coalesce('Did you mean ' || postrider.nearest_event_type(type) || '? ', '')
                   || '`postrider dialect show` lists the event types.';
  END IF;
  IF data IS NULL OR json_typeof(data) <> 'object' THEN
    RAISE EXCEPTION 'postrider.emit: data of % is %, not a JSON object', type, coalesce(json_typeof(data), 'NULL')
      USING ERRCODE = 'invalid_parameter_value', HINT = 'Pass the object that changed, as in ''{"id":"dl_1"}''::json.';
  END IF;
  bytes := octet_length(data::text) + coalesce(octet_length(previous_attributes::text), 0)
         + coalesce(octet_length(actor::text), 0) + coalesce(octet_length(related::text), 0);
  IF bytes > max_bytes THEN
    RAISE EXCEPTION 'postrider.emit: the JSON of % has % bytes; the limit is %', type, bytes, max_bytes
      USING ERRCODE = 'program_limit_exceeded', HINT = 'Send ids and let the receiver fetch the rest.';
  END IF;
  IF json_typeof(previous_attributes) <> 'object' OR json_typeof(actor) <> 'object'
     OR json_typeof(related) <> 'object' THEN
    RAISE EXCEPTION 'postrider.emit: previous_attributes, actor and related of % must be JSON objects or NULL', type
      USING ERRCODE = 'invalid_parameter_value', HINT = 'Leave out what the event does not have.';
  END IF;
  IF NOT isfinite(occurred_at) THEN
    RAISE EXCEPTION 'postrider.emit: occurred_at of % is %', type, occurred_at
      USING ERRCODE = 'invalid_parameter_value', HINT = 'Pass the time of the event, or leave it out to use now().';
  END IF;
  IF workspace_id IS NULL OR workspace_id = '' OR length(workspace_id) > 256 THEN
    RAISE EXCEPTION 'postrider.emit: workspace_id of % must have 1 to 256 characters', type
      USING ERRCODE = 'invalid_parameter_value', HINT = 'Leave it out to use the workspace default.';
  END IF;
  IF length(object_type) > 128 THEN
    RAISE EXCEPTION 'postrider.emit: object_type of % has % characters; the limit is 128', type, length(object_type)
      USING ERRCODE = 'invalid_parameter_value', HINT = 'Pass the kind of object, as in deal.';
  END IF;
  IF length(object_id) > 512 THEN
    RAISE EXCEPTION 'postrider.emit: object_id of % has % characters; the limit is 512', type, length(object_id)
      USING ERRCODE = 'invalid_parameter_value', HINT = 'Pass the primary key of the object that changed.';
  END IF;
  IF length(idempotency_key) NOT BETWEEN 1 AND 256 THEN
    RAISE EXCEPTION 'postrider.emit: idempotency_key of % must have 1 to 256 characters', type
      USING ERRCODE = 'invalid_parameter_value', HINT = 'Pass NULL, or a key that names this one event.';
  END IF;

  event_id := postrider.new_event_id();
  IF idempotency_key IS NOT NULL THEN
    INSERT INTO postrider.idempotency (workspace_id, key, event_id)
      VALUES (workspace_id, idempotency_key, event_id) ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN
      SELECT i.event_id INTO STRICT known_id FROM postrider.idempotency AS i
        WHERE i.workspace_id = workspace_id AND i.key = idempotency_key;
      RETURN 'evt_' || replace(known_id::text, '-', '');
    END IF;
  END IF;
  INSERT INTO postrider.outbox (id, workspace_id, type, object_type, object_id, occurred_at,
                                data, previous_attributes, actor, related)
    VALUES (event_id, workspace_id, type, object_type, object_id, coalesce(occurred_at, now()),
            data, previous_attributes, actor, related);
  RETURN 'evt_' || replace(event_id::text, '-', '');
END
$$;

-- A row that is set aside is kept as it was: what its columns said before and after, each as text, and the settings
-- of the CRM's session that its event needs. due: when its event is tried again; NULL where there is no row to try.
ALTER TABLE postrider.capture_rejected
  ADD COLUMN old_row  json,
  ADD COLUMN new_row  json,
  ADD COLUMN settings json,
  ADD COLUMN attempts integer NOT NULL DEFAULT 0,
  ADD COLUMN due      timestamptz;
CREATE INDEX capture_rejected_due ON postrider.capture_rejected (capture, due, id) WHERE due IS NOT NULL;

-- What `capture apply` let postrider_capture read for each capture, as GRANT says it; `capture drop` takes it back.
ALTER TABLE postrider.capture ADD COLUMN grants text[] NOT NULL DEFAULT '{}';

-- An event of a captured row.
CREATE TYPE postrider.capture_event AS (
  workspace_id text, type text, object_type text, object_id text,
  data json, previous_attributes json, actor json, related json
);

-- Raises where an event of a capture breaks a limit that emit() has too.
CREATE FUNCTION postrider.check_captured(event postrider.capture_event) RETURNS void
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

-- A query over a statement's old_rows and new_rows that shows each row as JSON: the columns of that name which the
-- table still has, each as text. Where a key column is gone, old and new rows of an UPDATE stay unpaired.
CREATE FUNCTION postrider.captured_changes(relation oid, operation text, columns text[], key text[]) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  WITH live AS (
    SELECT a.attname, a.attnum FROM pg_attribute AS a
    WHERE a.attrelid = relation AND a.attname = ANY (columns) AND a.attnum > 0 AND NOT a.attisdropped
  ), images AS (
    SELECT '(SELECT row_to_json(x.*) FROM (SELECT '
      || string_agg(format('CASE WHEN %1$s.%2$I IS DISTINCT FROM NULL THEN format(''%%s'', %1$s.%2$I) END AS %2$I',
                           side, l.attname), ', ' ORDER BY l.attnum) || ') AS x)' AS image, side
    FROM live AS l, unnest(ARRAY['o', 'n']) AS side GROUP BY side
  ), made AS (
    SELECT (SELECT image FROM images WHERE side = 'o') AS o, (SELECT image FROM images WHERE side = 'n') AS n,
           (SELECT string_agg(format('o.%1$I = n.%1$I', k), ' AND ') FROM unnest(key) AS k) AS same_key,
           key <@ (SELECT array_agg(attname::text) FROM live) AS paired
  )
  SELECT CASE
    WHEN operation = 'INSERT' THEN
      format('SELECT ''INSERT'' AS operation, NULL::json AS old_row, %s AS new_row FROM new_rows AS n', n)
    WHEN operation = 'DELETE' THEN
      format('SELECT ''DELETE'' AS operation, %s AS old_row, NULL::json AS new_row FROM old_rows AS o', o)
    WHEN paired THEN
      format('SELECT CASE WHEN o.%1$I IS NULL THEN ''INSERT'' WHEN n.%1$I IS NULL THEN ''DELETE'' ELSE ''UPDATE'' END '
             'AS operation, CASE WHEN o.%1$I IS NOT NULL THEN %2$s END AS old_row, '
             'CASE WHEN n.%1$I IS NOT NULL THEN %3$s END AS new_row '
             'FROM old_rows AS o FULL JOIN new_rows AS n ON %4$s', key[1], o, n, same_key)
    ELSE
      format('SELECT ''UPDATE'' AS operation, %s AS old_row, NULL::json AS new_row FROM old_rows AS o UNION ALL '
             'SELECT ''UPDATE'', NULL::json, %s FROM new_rows AS n', o, n)
  END FROM made
$$;

-- Keeps a row of which no event could be made, and tells whether that worked. Where it can't, for want of a lock,
-- PostgreSQL's log is the last place that has the row.
CREATE FUNCTION postrider.set_aside(capture text, operation text, object_id text, old_row json, new_row json,
                                    settings json, reason text, try boolean DEFAULT true) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  failure text := 'a row before it could not be set aside either';
BEGIN
  IF try THEN
    BEGIN
      INSERT INTO postrider.capture_rejected (capture, operation, object_id, old_row, new_row, settings, reason, due)
        VALUES (capture, operation, left(object_id, 1024), old_row, new_row, settings, reason, now());
      RAISE LOG 'postrider: the capture % set a row aside: %', capture, reason;
      RETURN true;
    EXCEPTION WHEN OTHERS THEN
      failure := SQLERRM;
    END;
  END IF;
  RAISE LOG 'postrider: the capture % lost a row: %; it could not be set aside: %; the row: %', capture, reason, failure,
    left(json_build_object('at', now(), 'operation', operation, 'object_id', object_id, 'old_row', old_row,
                           'new_row', new_row, 'settings', settings)::text, 65536);
  RETURN false;
END
$$;

-- Runs a query ($1 in it is the input) as postrider_prober, which may do no more than a capture may. The caller rolls
-- back, always.
CREATE FUNCTION postrider.evaluate(query text, input json DEFAULT NULL) RETURNS SETOF record
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN QUERY EXECUTE query USING input;
END
$$;

REVOKE ALL ON FUNCTION postrider.role_flaw, postrider.check_captured, postrider.captured_changes, postrider.set_aside,
  postrider.evaluate FROM PUBLIC;

-- Insert events. queue_inserted() runs as whoever inserts.
GRANT INSERT (id, workspace_id, type, object_type, object_id, occurred_at, data, previous_attributes, actor, related)
  ON postrider.outbox TO postrider_writer;
GRANT INSERT (workspace_id, type, object_type, object_id, data, previous_attributes, actor, related)
  ON postrider.outbox TO postrider_capture;
GRANT INSERT ON postrider.pending TO postrider_writer, postrider_capture;
GRANT SELECT (idle) ON postrider.daemon TO postrider_writer, postrider_capture;
GRANT EXECUTE ON FUNCTION postrider.new_event_id() TO postrider_writer, postrider_capture;
-- emit()
GRANT SELECT, INSERT ON postrider.idempotency TO postrider_writer;
GRANT SELECT ON postrider.event_type, postrider.catalogue TO postrider_writer;
-- Captures
GRANT INSERT (capture, operation, object_id, old_row, new_row, settings, reason, due)
  ON postrider.capture_rejected TO postrider_capture;
GRANT EXECUTE ON FUNCTION postrider.check_captured, postrider.captured_changes, postrider.set_aside
  TO postrider_capture;
GRANT EXECUTE ON FUNCTION postrider.role_flaw, postrider.evaluate TO postrider_daemon;
-- Partitions
GRANT EXECUTE ON FUNCTION postrider.first_id_of(date), postrider.partition_days(text) TO postrider_owner;

DO $do$
DECLARE
  each record;
BEGIN
  -- An owner has to have the right to create in the schema at the moment when it becomes the owner.
  GRANT CREATE ON SCHEMA postrider TO postrider_writer, postrider_prober;
  -- A capture that was applied before belongs to whoever applied it, until it is applied again. Former owners go on:
  -- they emit, and their captures write. They are granted what they had once they own it no more, since the new owner
  -- takes over what is granted to the old one before.
  FOR each IN
    SELECT p.oid::regprocedure AS name, p.proowner::regrole AS former, CASE p.proname WHEN 'emit' THEN 'postrider_writer'
        WHEN 'nearest_event_type' THEN 'postrider_writer' WHEN 'evaluate' THEN 'postrider_prober'
        ELSE 'postrider_owner' END AS owner
    FROM pg_proc AS p WHERE p.pronamespace = 'postrider'::regnamespace AND p.prosecdef
      AND p.prorettype <> 'trigger'::regtype
  LOOP
    EXECUTE format('ALTER FUNCTION %s OWNER TO %I', each.name, each.owner);
    EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %s', each.name, each.former);
  END LOOP;
  REVOKE CREATE ON SCHEMA postrider FROM postrider_writer, postrider_prober;
  FOR each IN
    SELECT c.oid::regclass AS name, c.relowner::regrole AS former
    FROM (SELECT tree.relid FROM unnest(ARRAY['outbox', 'delivery', 'attempt']) AS parent,
            pg_partition_tree(('postrider.' || parent)::regclass) AS tree
          UNION ALL SELECT 'postrider.every_attempt'::regclass) AS moved
    JOIN pg_class AS c ON c.oid = moved.relid
  LOOP
    EXECUTE format('ALTER TABLE %s OWNER TO postrider_owner', each.name);
    EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %s TO %s', each.name, each.former);
  END LOOP;
  -- Who applied captures need not be the owner of the tables, nor have a right but by having been one.
  FOR each IN
    SELECT DISTINCT p.proowner::regrole AS name FROM pg_proc AS p
    WHERE p.pronamespace = 'postrider'::regnamespace AND p.prorettype = 'trigger'::regtype AND p.prosecdef
      AND p.proname LIKE 'capture\_%'
  LOOP
    EXECUTE format('GRANT USAGE ON SCHEMA postrider TO %s', each.name);
    EXECUTE format('GRANT SELECT, INSERT ON postrider.outbox TO %s', each.name);
    EXECUTE format('GRANT INSERT ON postrider.pending, postrider.capture_rejected TO %s', each.name);
    EXECUTE format('GRANT SELECT (idle) ON postrider.daemon TO %s', each.name);
    EXECUTE format('GRANT EXECUTE ON FUNCTION postrider.new_event_id() TO %s', each.name);
  END LOOP;
END
$do$;
