-- emit() takes jsonb too.
--
-- Literals without a type, and parameters whose type a driver leaves open, have to go to the function that takes
-- json: it keeps their bytes. PostgreSQL finds two functions alike for them but for the first argument, where it
-- prefers text to a domain over text.

SET LOCAL search_path = pg_catalog, pg_temp;

CREATE DOMAIN postrider.event_type_name AS text;

-- It runs with its caller's rights: who may call emit() with json may call this. The query that calls it takes it in,
-- so it costs no call.
CREATE FUNCTION postrider.emit(
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

REVOKE ALL ON FUNCTION postrider.emit(postrider.event_type_name, jsonb, jsonb, text, text, text, jsonb, jsonb,
                                      timestamptz, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION postrider.emit(postrider.event_type_name, jsonb, jsonb, text, text, text, jsonb, jsonb,
                                         timestamptz, text) TO postrider_emitter, postrider_daemon;
