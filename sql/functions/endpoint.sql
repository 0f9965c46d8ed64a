-- Which endpoints have changed, so that daemons read those alone.

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

-- Before each row: the revision of its change.
CREATE OR REPLACE FUNCTION postrider.endpoint_revised() RETURNS trigger LANGUAGE plpgsql
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
CREATE OR REPLACE FUNCTION postrider.endpoints_removed() RETURNS trigger LANGUAGE plpgsql
  SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  UPDATE postrider.endpoint_revision SET recent = '{}';
  RETURN NULL;
END
$$;

-- A change of a secret is one of its endpoint.
CREATE OR REPLACE FUNCTION postrider.endpoint_secret_changed() RETURNS trigger LANGUAGE plpgsql
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
