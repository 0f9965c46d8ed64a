-- What daemons report of themselves for `postrider status`, and a rate limit of each endpoint.

-- report changes every few seconds, idle at every wake. No index holds either, so that both are HOT updates;
-- and a long report is stored out of line, where an update of idle does not copy it.
ALTER TABLE postrider.daemon ADD COLUMN report json, ADD COLUMN reported_at timestamptz;
ALTER TABLE postrider.daemon ALTER COLUMN report SET STORAGE EXTERNAL;

-- rate: requests per second; NULL sets no limit.
ALTER TABLE postrider.endpoint ADD COLUMN rate real CHECK (rate > 0);

DROP TRIGGER endpoints_changed ON postrider.endpoint;
CREATE TRIGGER endpoints_changed
  AFTER INSERT OR DELETE OR UPDATE
    OF url, description, patterns, exclusions, dialect, concurrency, headers, state, rate
  ON postrider.endpoint FOR EACH STATEMENT EXECUTE FUNCTION postrider.endpoints_changed();
