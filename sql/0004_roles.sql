-- postrider_emitter may call emit() and nothing else; postrider_daemon runs the daemon and its commands.
-- Grant them to the CRM's login and to the daemon's login.

DO $do$
DECLARE
  role text;
BEGIN
  FOREACH role IN ARRAY ARRAY['postrider_emitter', 'postrider_daemon'] LOOP
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = role) THEN
      BEGIN
        EXECUTE format('CREATE ROLE %I NOLOGIN', role);
      EXCEPTION
        WHEN duplicate_object OR unique_violation THEN
          NULL;  -- another database of this server is being migrated at the same moment
        WHEN insufficient_privilege THEN
          RAISE EXCEPTION 'the role % does not exist and % may not create it', role, current_user
            USING HINT = format('Let a superuser run: CREATE ROLE %I NOLOGIN;  then migrate again.', role);
      END;
    END IF;
  END LOOP;
END
$do$;

REVOKE ALL ON SCHEMA postrider FROM PUBLIC;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA postrider FROM PUBLIC;

GRANT USAGE ON SCHEMA postrider TO postrider_emitter, postrider_daemon;
GRANT EXECUTE ON FUNCTION postrider.emit TO postrider_emitter;
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA postrider TO postrider_daemon;
REVOKE INSERT, UPDATE, DELETE ON postrider.migration FROM postrider_daemon;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA postrider TO postrider_daemon;
