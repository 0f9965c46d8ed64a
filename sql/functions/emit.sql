-- What the CRM calls to announce an event. Its names, its arguments' names and its errors are a contract.

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

-- The same for jsonb. Literals without a type, and parameters whose type a driver leaves open, have to go to the
-- function that takes json: it keeps their bytes. PostgreSQL finds the two alike for them but for the first argument,
-- where it prefers text to a domain over text.
-- It runs with its caller's rights: who may call emit() with json may call this. The query that calls it takes it in,
-- so it costs no call.
CREATE OR REPLACE FUNCTION postrider.emit(
  type                postrider.event_type_name,
  data                jsonb,
  previous_attributes jsonb       DEFAULT NULL,
  workspace_id        text        DEFAULT 'default',
  object_type         text        DEFAULT NULL,
  object_id           text        DEFAULT NULL,
  actor               jsonb       DEFAULT NULL,
  related             jsonb       DEFAULT NULL,
  occurred_at         timestamptz DEFAULT now(),
  idempotency_key     text        DEFAULT NULL
) RETURNS text LANGUAGE sql VOLATILE
RETURN postrider.emit($1::text, $2::json, $3::json, $4, $5, $6, $7::json, $8::json, $9, $10);

-- The known event type that shares most pairs of letters with a name, if it looks like it.
CREATE OR REPLACE FUNCTION postrider.nearest_event_type(name text) RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
  SELECT candidate FROM (
    SELECT t.name AS candidate, 2.0 * (
      SELECT count(*) FROM (
        SELECT substr(lower(t.name), i, 2) FROM generate_series(1, length(t.name) - 1) AS i
        INTERSECT
        SELECT substr(lower(nearest_event_type.name), i, 2)
        FROM generate_series(1, length(nearest_event_type.name) - 1) AS i
      ) AS shared
    ) / (length(t.name) + length(nearest_event_type.name)) AS likeness
    FROM postrider.event_type AS t
  ) AS candidates WHERE likeness > 0.4 ORDER BY likeness DESC, candidate LIMIT 1
$$;
