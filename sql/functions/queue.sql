-- Queues what was inserted, and notifies only while a daemon sleeps: NOTIFY holds a lock of the whole cluster through
-- commit, and a busy daemon is polling anyway. It runs as whoever inserts, with the search_path of that session: so
-- every name says where it is.
CREATE OR REPLACE FUNCTION postrider.queue_inserted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO postrider.pending (event_id, workspace_id, bytes)
  SELECT id, workspace_id,
         pg_catalog.octet_length(data::pg_catalog.text)
         OPERATOR(pg_catalog.+) coalesce(pg_catalog.octet_length(previous_attributes::pg_catalog.text), 0)
         OPERATOR(pg_catalog.+) coalesce(pg_catalog.octet_length(actor::pg_catalog.text), 0)
         OPERATOR(pg_catalog.+) coalesce(pg_catalog.octet_length(related::pg_catalog.text), 0)
  FROM inserted WHERE NOT test;
  -- A daemon of an earlier release says that it is idle whatever the setting is.
  IF EXISTS (SELECT FROM postrider.daemon WHERE idle) AND EXISTS (SELECT FROM postrider.setting WHERE notify) THEN
    PERFORM pg_catalog.pg_notify('postrider_wake', '');
  END IF;
  RETURN NULL;
END
$$;
