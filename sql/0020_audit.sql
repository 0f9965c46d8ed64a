-- Who changed what: a row for each change of configuration by a person, written in the transaction of the change.
-- Rows are added and read, never changed. `before` and `after` hold what was different, without secrets.

SET LOCAL search_path = pg_catalog, pg_temp;

CREATE TABLE postrider.audit_log (
  id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  at           timestamptz NOT NULL,
  workspace_id text,
  who          text NOT NULL,
  how          text NOT NULL,
  origin       text NOT NULL,
  action       text NOT NULL,
  subject      text NOT NULL,
  before       json,
  after        json
);
CREATE INDEX audit_log_workspace ON postrider.audit_log (workspace_id, id);
CREATE INDEX audit_log_subject ON postrider.audit_log (subject, id);

GRANT SELECT, INSERT ON postrider.audit_log TO postrider_daemon;
