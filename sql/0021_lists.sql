-- Indexes of the lists that people read, of deliveries that were given up: all, of a workspace, of an endpoint.
-- Only such rows enter them, which are few and written once; no delivery that succeeds pays for them. Partitions that
-- are made from now on have them. Of those that there are, small ones get them now, the newest first, up to 64 MiB or
-- 128 of them: the rest is left to retention, since daemons can't record anything meanwhile. Until then a list that
-- has to look at those days ends earlier.

SET LOCAL search_path = pg_catalog, pg_temp;

DO $do$
DECLARE
  lacking text := (
    SELECT string_agg(role, ', ')
    FROM unnest(ARRAY['postrider_owner', 'postrider_writer', 'postrider_capture', 'postrider_prober']) AS role
    WHERE NOT pg_has_role(role, 'USAGE'));
BEGIN
  -- Who migrated before may have left the roles that own tables and functions since.
  IF NOT pg_has_role('postrider_owner', 'USAGE') THEN
    RAISE EXCEPTION '% is not a member of the role postrider_owner', current_user
      USING ERRCODE = 'insufficient_privilege',
            HINT = format('Let a superuser run: GRANT %s TO %I;  then migrate again. Membership holds in every database '
                          'of the server: REVOKE %1$s FROM %2$I once it is done.', lacking, current_user);
  END IF;
END
$do$;

CREATE INDEX delivery_given_up ON ONLY postrider.delivery (state, event_id, endpoint_id)
  WHERE state IN ('failed', 'cancelled');
CREATE INDEX delivery_given_up_workspace ON ONLY postrider.delivery (workspace_id, state, event_id, endpoint_id)
  WHERE state IN ('failed', 'cancelled');
CREATE INDEX delivery_given_up_endpoint ON ONLY postrider.delivery (endpoint_id, state, event_id)
  WHERE state IN ('failed', 'cancelled');

DO $do$
DECLARE
  child regclass;
  made  record;
BEGIN
  FOR child IN
    SELECT inhrelid FROM (
      SELECT inhrelid, sum(greatest(pg_relation_size(inhrelid), 524288)) OVER (ORDER BY c.relname DESC) AS so_far
      FROM pg_inherits JOIN pg_class AS c ON c.oid = inhrelid
      WHERE inhparent = 'postrider.delivery'::regclass AND pg_relation_size(inhrelid) <= 8388608
    ) AS small WHERE so_far <= 67108864
  LOOP
    FOR made IN
      SELECT c.relname AS index, pg_get_indexdef(x.indexrelid) AS text
      FROM pg_index AS x JOIN pg_class AS c ON c.oid = x.indexrelid
      WHERE x.indrelid = 'postrider.delivery'::regclass AND c.relname LIKE 'delivery_given_up%'
    LOOP
      EXECUTE replace(replace(made.text, ' ' || made.index || ' ', format(' %s_%s ', made.index, child::oid)),
                      'ON ONLY postrider.delivery ', format('ON %s ', child));
      EXECUTE format('ALTER INDEX postrider.%s ATTACH PARTITION postrider.%1$s_%s', made.index, child::oid);
    END LOOP;
  END LOOP;
  -- Partitions of the first days, and the one of all other days, were made without it.
  FOR child IN
    SELECT inhrelid FROM pg_inherits
    WHERE inhparent = 'postrider.outbox'::regclass AND pg_relation_size(inhrelid) <= 8388608
      AND NOT EXISTS (SELECT FROM pg_index AS x WHERE x.indrelid = inhrelid
                        AND pg_get_indexdef(x.indexrelid) LIKE '%(workspace_id, id)')
  LOOP
    EXECUTE format('CREATE INDEX ON %s (workspace_id, id)', child);
  END LOOP;
END
$do$;
