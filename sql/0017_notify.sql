-- Writers that never notify: a transaction that notified can't be prepared (PREPARE TRANSACTION).

-- What holds for the whole database, whatever daemons run. notify: whether the CRM's transactions notify an idle
-- daemon; else idle daemons poll.
CREATE TABLE postrider.setting (
  only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
  notify   boolean NOT NULL DEFAULT true
);
INSERT INTO postrider.setting DEFAULT VALUES;
GRANT SELECT, INSERT, UPDATE, DELETE ON postrider.setting TO postrider_daemon;

-- What the configuration of a daemon says about it; NULL: nothing. As long as one says false, nobody turns it on.
ALTER TABLE postrider.daemon ADD COLUMN notify boolean;

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

-- That function runs as whoever inserts: emit's owner, captures' owner, and those who applied captures before 0010.
GRANT SELECT (notify) ON postrider.setting TO postrider_writer, postrider_capture;
DO $do$
DECLARE
  former text;
BEGIN
  FOR former IN
    SELECT DISTINCT p.proowner::pg_catalog.regrole FROM pg_catalog.pg_proc AS p
    WHERE p.pronamespace = 'postrider'::pg_catalog.regnamespace AND p.prosecdef
      AND p.prorettype = 'pg_catalog.trigger'::pg_catalog.regtype AND p.proname LIKE 'capture\_%'
  LOOP
    EXECUTE pg_catalog.format('GRANT SELECT (notify) ON postrider.setting TO %s', former);
  END LOOP;
END
$do$;
