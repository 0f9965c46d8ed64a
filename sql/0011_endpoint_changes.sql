-- Endpoints by differences, and headers that are sealed as secrets are.

-- The values of an endpoint's headers, sealed like its secrets; where it is set, `headers` is empty.
-- revision: that of the last change of the row or of its secrets.
ALTER TABLE postrider.endpoint
  ADD COLUMN sealed_headers bytea,
  ADD COLUMN revision bigint NOT NULL DEFAULT 0;
CREATE INDEX endpoint_revised ON postrider.endpoint (revision, id);

-- version names what the tables hold: random, so that it is never given twice, also where a crash or a
-- failover undid changes and their revisions are given to others. recent: the versions before it, newest
-- first, from each of which a reader may go on by what has a higher revision. Who knows another one starts
-- anew.
ALTER TABLE postrider.endpoint_revision
  ADD COLUMN version uuid NOT NULL DEFAULT pg_catalog.gen_random_uuid(),
  ADD COLUMN recent  uuid[] NOT NULL DEFAULT '{}';

-- Before rows are changed: gives the transaction a revision, once, whatever it changes. The lock on the only
-- row puts these transactions in a row, so that revisions are in the order of the commits.
CREATE OR REPLACE FUNCTION postrider.endpoints_changed() RETURNS trigger LANGUAGE plpgsql
  SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  changed uuid;
BEGIN
  UPDATE postrider.endpoint_revision
    SET revision = revision + 1, version = gen_random_uuid(), recent = (array_prepend(version, recent))[1:64]
    WHERE version::text IS DISTINCT FROM current_setting('postrider.endpoint_version', true)
    RETURNING version INTO changed;
  IF changed IS NOT NULL THEN
    PERFORM set_config('postrider.endpoint_version', changed::text, true);
    PERFORM pg_notify('postrider_endpoints', '');
  END IF;
  RETURN NULL;
END
$$;

CREATE FUNCTION postrider.endpoint_revised() RETURNS trigger LANGUAGE plpgsql
  SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  NEW.revision := (SELECT revision FROM postrider.endpoint_revision);
  -- Who knows only the older column writes headers anew.
  IF TG_OP = 'UPDATE' AND NEW.headers::text IS DISTINCT FROM OLD.headers::text
     AND NEW.sealed_headers IS NOT DISTINCT FROM OLD.sealed_headers THEN
    NEW.sealed_headers := NULL;
  END IF;
  RETURN NEW;
END
$$;

-- Rows that are gone have no revision: readers start anew.
CREATE FUNCTION postrider.endpoints_removed() RETURNS trigger LANGUAGE plpgsql
  SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  UPDATE postrider.endpoint_revision SET recent = '{}';
  RETURN NULL;
END
$$;

CREATE FUNCTION postrider.endpoint_secret_changed() RETURNS trigger LANGUAGE plpgsql
  SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  -- The trigger of that table fills in which revision it is.
  IF TG_OP <> 'INSERT' THEN
    UPDATE postrider.endpoint SET revision = revision
      WHERE id = OLD.endpoint_id AND workspace_id = OLD.workspace_id;
  END IF;
  IF TG_OP <> 'DELETE' THEN
    UPDATE postrider.endpoint SET revision = revision
      WHERE id = NEW.endpoint_id AND workspace_id = NEW.workspace_id;
  END IF;
  RETURN NULL;
END
$$;

DROP TRIGGER endpoints_changed ON postrider.endpoint;
DROP TRIGGER endpoints_changed ON postrider.endpoint_secret;

CREATE TRIGGER endpoints_changed
  BEFORE INSERT OR DELETE OR TRUNCATE OR UPDATE
    OF id, workspace_id, url, description, patterns, exclusions, dialect, concurrency, headers, sealed_headers,
       state, rate, revision
  ON postrider.endpoint FOR EACH STATEMENT EXECUTE FUNCTION postrider.endpoints_changed();
CREATE TRIGGER endpoints_removed
  AFTER DELETE OR TRUNCATE OR UPDATE OF id, workspace_id
  ON postrider.endpoint FOR EACH STATEMENT EXECUTE FUNCTION postrider.endpoints_removed();
CREATE TRIGGER endpoint_revised
  BEFORE INSERT OR UPDATE
    OF id, workspace_id, url, description, patterns, exclusions, dialect, concurrency, headers, sealed_headers,
       state, rate, revision
  ON postrider.endpoint FOR EACH ROW EXECUTE FUNCTION postrider.endpoint_revised();
CREATE TRIGGER endpoints_changed
  BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE
  ON postrider.endpoint_secret FOR EACH STATEMENT EXECUTE FUNCTION postrider.endpoints_changed();
CREATE TRIGGER endpoints_removed
  AFTER TRUNCATE
  ON postrider.endpoint_secret FOR EACH STATEMENT EXECUTE FUNCTION postrider.endpoints_removed();
CREATE TRIGGER endpoint_secret_changed
  AFTER INSERT OR UPDATE OR DELETE
  ON postrider.endpoint_secret FOR EACH ROW EXECUTE FUNCTION postrider.endpoint_secret_changed();

REVOKE ALL ON FUNCTION postrider.endpoint_revised(), postrider.endpoints_removed(),
  postrider.endpoint_secret_changed() FROM PUBLIC;
