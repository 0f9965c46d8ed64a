-- Fewer rows for each delivery: claims by the batch, and the attempt that succeeds in the delivery's own row.

-- A batch of events that a daemon took out of `pending`. It leaves when every delivery of its events is
-- recorded; what a dead daemon left goes back to `pending`. Few rows, short-lived, of daemons and not of
-- workspaces.
CREATE TABLE postrider.claim (
  id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  owner     integer NOT NULL,
  event_ids uuid[] NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 1000);
ALTER TABLE postrider.claim ALTER COLUMN event_ids SET STORAGE EXTERNAL;  -- random bits don't compress
CREATE INDEX claim_owner ON postrider.claim (owner);

UPDATE postrider.pending SET redo = true WHERE owner IS NOT NULL;
ALTER TABLE postrider.pending DROP COLUMN owner;
ALTER TABLE postrider.pending RESET (fillfactor);

-- The attempt by which a delivery succeeded; attempts that failed are rows of `attempt`.
ALTER TABLE postrider.delivery
  ADD COLUMN started_at       timestamptz,
  ADD COLUMN duration_ms      real,
  ADD COLUMN connect_ms       real,
  ADD COLUMN status           smallint,
  ADD COLUMN response_headers text,
  ADD COLUMN response_body    text;

-- All attempts, wherever they lie.
CREATE VIEW postrider.every_attempt AS
  SELECT event_id, endpoint_id, workspace_id, number, started_at, duration_ms, connect_ms, status, error_kind,
         error, response_headers, response_body
  FROM postrider.attempt
  UNION ALL
  SELECT event_id, endpoint_id, workspace_id, attempts, started_at, duration_ms, connect_ms, status, NULL,
         NULL, response_headers, response_body
  FROM postrider.delivery WHERE started_at IS NOT NULL;

GRANT SELECT, INSERT, UPDATE, DELETE ON postrider.claim TO postrider_daemon;
GRANT SELECT ON postrider.every_attempt TO postrider_daemon;
