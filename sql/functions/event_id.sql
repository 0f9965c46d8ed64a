-- Ids of events. Bodies are parsed when they are made: what they call does not depend on the caller's search_path.

-- Time-ordered event ids (UUIDv7, RFC 9562), so that partitions and retention follow the id. Where the
-- server has no uuidv7(), the 12 bits after the version hold the fraction of the millisecond: ids of one
-- session grow with the clock's microseconds.
DO $do$
BEGIN
  IF pg_catalog.current_setting('server_version_num')::int >= 180000 THEN
    CREATE OR REPLACE FUNCTION postrider.new_event_id() RETURNS uuid
      LANGUAGE sql VOLATILE PARALLEL SAFE RETURN pg_catalog.uuidv7();
  ELSE
    CREATE OR REPLACE FUNCTION postrider.new_event_id() RETURNS uuid
      LANGUAGE sql VOLATILE PARALLEL SAFE RETURN (
        SELECT (lpad(to_hex(t.us / 1000), 12, '0')
                || '7' || lpad(to_hex(t.us % 1000 * 4096 / 1000), 3, '0')
                || substr(r.id, 20, 4) || substr(r.id, 25, 12))::uuid
        FROM (SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS us) AS t,
             (SELECT gen_random_uuid()::text AS id) AS r
      );
  END IF;
END
$do$;

-- The smallest event id of a day (UTC).
CREATE OR REPLACE FUNCTION postrider.first_id_of(day date) RETURNS uuid LANGUAGE sql IMMUTABLE PARALLEL SAFE
  RETURN (lpad(to_hex((extract(epoch FROM day::timestamp) * 1000)::bigint), 12, '0') || repeat('0', 20))::uuid;

-- The smallest event id of a moment.
CREATE OR REPLACE FUNCTION postrider.first_id_at(moment timestamptz) RETURNS uuid LANGUAGE sql STABLE PARALLEL SAFE
  RETURN (lpad(to_hex((extract(epoch FROM moment) * 1000)::bigint), 12, '0') || repeat('0', 20))::uuid;
