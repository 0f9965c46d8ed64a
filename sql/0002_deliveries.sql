-- Who wants what, and what became of it.

CREATE TABLE postrider.endpoint (
  id              bigint NOT NULL,
  workspace_id    text NOT NULL,
  url             text NOT NULL,
  description     text NOT NULL DEFAULT '',
  patterns        text[] NOT NULL CHECK (cardinality(patterns) > 0),
  exclusions      text[] NOT NULL DEFAULT '{}',
  dialect         text NOT NULL,
  concurrency     integer CHECK (concurrency > 0),
  headers         json NOT NULL DEFAULT '{}',
  state           text NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'paused', 'disabled', 'deleted')),
  disabled_reason text,
  failing_since   timestamptz,
  created_at      timestamptz NOT NULL,
  updated_at      timestamptz NOT NULL,
  PRIMARY KEY (id, workspace_id)
);

-- Signing secrets, newest first by created_at; sealed with the key of [secrets] key_file where one is set.
CREATE TABLE postrider.endpoint_secret (
  endpoint_id  bigint NOT NULL,
  workspace_id text NOT NULL,
  created_at   timestamptz NOT NULL,
  sealed       bytea NOT NULL,
  PRIMARY KEY (endpoint_id, workspace_id, created_at)
);

-- The catalogue: what a CRM announces, for people who choose what to subscribe to.
CREATE TABLE postrider.event_type (
  name        text PRIMARY KEY,
  category    text NOT NULL DEFAULT '',
  description text NOT NULL DEFAULT '',
  example     json
);

-- Counts the changes of endpoints, so that a daemon that missed a notification sees it.
CREATE TABLE postrider.endpoint_revision (
  only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
  revision bigint NOT NULL
);
INSERT INTO postrider.endpoint_revision (revision) VALUES (0);

CREATE FUNCTION postrider.endpoints_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  UPDATE postrider.endpoint_revision SET revision = revision + 1;
  PERFORM pg_catalog.pg_notify('postrider_endpoints', '');
  RETURN NULL;
END
$$;

CREATE TRIGGER endpoints_changed
  AFTER INSERT OR DELETE OR UPDATE OF url, description, patterns, exclusions, dialect, concurrency, headers, state
  ON postrider.endpoint FOR EACH STATEMENT EXECUTE FUNCTION postrider.endpoints_changed();
CREATE TRIGGER endpoints_changed AFTER INSERT OR DELETE OR UPDATE
  ON postrider.endpoint_secret FOR EACH STATEMENT EXECUTE FUNCTION postrider.endpoints_changed();

-- One row per (event, endpoint) once there is something to keep: a result, a retry, or a place in the
-- queue that memory had no room for. attempt_base: attempts made before a person asked for a new schedule.
CREATE TABLE postrider.delivery (
  event_id     uuid NOT NULL,
  endpoint_id  bigint NOT NULL,
  workspace_id text NOT NULL,
  state        text NOT NULL
               CHECK (state IN ('waiting', 'sending', 'retrying', 'succeeded', 'failed', 'cancelled')),
  attempts     smallint NOT NULL DEFAULT 0,
  attempt_base smallint NOT NULL DEFAULT 0,
  owner        integer,
  due          timestamptz,
  updated_at   timestamptz NOT NULL,
  reason       text,
  PRIMARY KEY (event_id, endpoint_id, workspace_id)
) PARTITION BY RANGE (event_id);

CREATE INDEX delivery_waiting ON postrider.delivery (endpoint_id, event_id) WHERE state = 'waiting';
CREATE INDEX delivery_retrying ON postrider.delivery (due) WHERE state = 'retrying';
CREATE INDEX delivery_sending ON postrider.delivery (owner) WHERE state = 'sending';
CREATE INDEX delivery_failed ON postrider.delivery (event_id) WHERE state = 'failed';

CREATE TABLE postrider.attempt (
  event_id         uuid NOT NULL,
  endpoint_id      bigint NOT NULL,
  workspace_id     text NOT NULL,
  number           smallint NOT NULL,
  started_at       timestamptz NOT NULL,
  duration_ms      real NOT NULL,
  connect_ms       real,
  status           smallint,
  error_kind       text,
  error            text,
  response_headers text,
  response_body    text,
  PRIMARY KEY (event_id, endpoint_id, number, workspace_id)
) PARTITION BY RANGE (event_id);
