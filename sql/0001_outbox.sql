-- The outbox that the CRM's transactions write, the queue of events not yet fanned out, and emit().

-- Time-ordered event ids (UUIDv7, RFC 9562), so that partitions and retention follow the id. Where the
-- server has no uuidv7(), the 12 bits after the version hold the fraction of the millisecond: ids of one
-- session grow with the clock's microseconds.
DO $do$
BEGIN
  IF current_setting('server_version_num')::int >= 180000 THEN
    CREATE FUNCTION postrider.new_event_id() RETURNS uuid
      LANGUAGE sql VOLATILE PARALLEL SAFE AS 'SELECT pg_catalog.uuidv7()';
  ELSE
    CREATE FUNCTION postrider.new_event_id() RETURNS uuid
      LANGUAGE sql VOLATILE PARALLEL SAFE AS $sql$
        SELECT (lpad(to_hex(t.us / 1000), 12, '0')
                || '7' || lpad(to_hex(t.us % 1000 * 4096 / 1000), 3, '0')
                || substr(r.id, 20, 4) || substr(r.id, 25, 12))::uuid
        FROM (SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS us) AS t,
             (SELECT gen_random_uuid()::text AS id) AS r
      $sql$;
  END IF;
END
$do$;

-- Insert-only. Columns are json, not jsonb: what is sent is the text that the CRM wrote.
CREATE TABLE postrider.outbox (
  id                  uuid NOT NULL DEFAULT postrider.new_event_id(),
  workspace_id        text NOT NULL DEFAULT 'default',
  type                text NOT NULL,
  object_type         text,
  object_id           text,
  occurred_at         timestamptz NOT NULL DEFAULT now(),
  data                json NOT NULL,
  previous_attributes json,
  actor               json,
  related             json,
  PRIMARY KEY (id, workspace_id)
) PARTITION BY RANGE (id);

-- Events not yet fanned out, or not every delivery of which is recorded. A row leaves when the last
-- delivery of its event is recorded. owner is the daemon that claimed it; no index holds it, so that a
-- claim is a HOT update. redo marks an event that an owner gave up: some of its deliveries may be recorded.
CREATE TABLE postrider.pending (
  event_id     uuid NOT NULL,
  workspace_id text NOT NULL,
  owner        integer,
  redo         boolean NOT NULL DEFAULT false,
  PRIMARY KEY (event_id, workspace_id)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 5000,
        autovacuum_analyze_scale_factor = 0.0, autovacuum_analyze_threshold = 50000);

-- The first event of each idempotency key; kept as long as events are.
CREATE TABLE postrider.idempotency (
  workspace_id text NOT NULL,
  key          text NOT NULL,
  event_id     uuid NOT NULL,
  PRIMARY KEY (workspace_id, key)
);

-- One row per running daemon. idle: it sleeps until it is notified. pooled: it can hold no session lock
-- behind its connection pooler, so heartbeat_at tells whether it lives.
CREATE TABLE postrider.daemon (
  id           integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  hostname     text NOT NULL,
  pid          integer NOT NULL,
  version      text NOT NULL,
  started_at   timestamptz NOT NULL,
  heartbeat_at timestamptz NOT NULL,
  idle         boolean NOT NULL DEFAULT false,
  pooled       boolean NOT NULL DEFAULT false
) WITH (fillfactor = 50);

-- Queues what was inserted, and notifies only while a daemon sleeps: NOTIFY holds a lock of the whole
-- cluster through commit, and a busy daemon is polling anyway.
CREATE FUNCTION postrider.queue_inserted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO postrider.pending (event_id, workspace_id) SELECT id, workspace_id FROM inserted;
  IF EXISTS (SELECT FROM postrider.daemon WHERE idle) THEN
    PERFORM pg_catalog.pg_notify('postrider_wake', '');
  END IF;
  RETURN NULL;
END
$$;

CREATE TRIGGER queue_inserted AFTER INSERT ON postrider.outbox
  REFERENCING NEW TABLE AS inserted
  FOR EACH STATEMENT EXECUTE FUNCTION postrider.queue_inserted();

-- Announces that something happened. Returns the public id of the event. Raises invalid_parameter_value
-- (22023), and program_limit_exceeded (54000) for data that is too large; neither writes anything.
CREATE FUNCTION postrider.emit(
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
