-- The last delivery of each endpoint, for people who list endpoints.

-- Daemons write it every few seconds, and never read it; what a crash costs the next delivery mends. No index holds
-- what changes, and pages have room, so that updates are HOT.
CREATE TABLE postrider.last_delivery (
  endpoint_id  bigint NOT NULL,
  workspace_id text NOT NULL,
  event_id     uuid NOT NULL,
  state        text NOT NULL,
  reason       text,
  at           timestamptz NOT NULL,
  PRIMARY KEY (endpoint_id, workspace_id)
) WITH (fillfactor = 50);

GRANT SELECT, INSERT, UPDATE, DELETE ON postrider.last_delivery TO postrider_daemon;
