-- Rows that a transaction deleted and that its later events still show: those of a client beside its deals, where
-- the deletion cascades. A capture whose lookup says keep_deleted writes them, each column as text, and reads none
-- but those of its own transaction. What is left of one that ended is deleted later; a crash may empty the table.

SET LOCAL search_path = pg_catalog, pg_temp;

CREATE UNLOGGED TABLE postrider.capture_deleted (
  id          bigint GENERATED ALWAYS AS IDENTITY,
  transaction xid8   NOT NULL DEFAULT pg_current_xact_id(),
  source      text   NOT NULL,
  key         bigint NOT NULL,
  image       json   NOT NULL
);
CREATE INDEX capture_deleted_key ON postrider.capture_deleted (transaction, source, key);

GRANT SELECT ON postrider.capture_deleted TO postrider_capture;
GRANT INSERT (source, key, image) ON postrider.capture_deleted TO postrider_capture;
GRANT SELECT (transaction), DELETE ON postrider.capture_deleted TO postrider_daemon;
