-- When an endpoint was disabled, and from which event on to which it missed what matched.

-- The first event that an endpoint misses when it is disabled at a moment: the oldest of those that are not fanned
-- out yet. Those of transactions that have not committed can't be seen: they may have been open for an hour. What
-- happened before the endpoint was there is none of its own.
CREATE OR REPLACE FUNCTION postrider.first_missed(moment timestamptz, created_at timestamptz) RETURNS uuid
LANGUAGE sql STABLE
BEGIN ATOMIC
  SELECT greatest(postrider.first_id_at(created_at - interval '1 minute'), least(
    postrider.first_id_at(moment - interval '1 hour'),
    (SELECT event_id FROM postrider.pending ORDER BY event_id LIMIT 1),
    (SELECT event_ids[1] FROM postrider.claim ORDER BY event_ids[1] LIMIT 1)));
END;

-- Whoever changes the state, in the same transaction: a daemon of any release, a command, a person. An event can be
-- fanned out by the old state until that commits, which may take an hour more where a person left a transaction open,
-- or a standby does not answer; it is missed only if it has no delivery.
CREATE OR REPLACE FUNCTION postrider.endpoint_state_changed() RETURNS trigger LANGUAGE plpgsql
  SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  moment timestamptz := clock_timestamp();
BEGIN
  IF NEW.state = 'disabled' THEN
    INSERT INTO postrider.disabled_period (workspace_id, endpoint_id, since, first_event, reason)
      VALUES (NEW.workspace_id, NEW.id, moment, postrider.first_missed(moment, NEW.created_at), NEW.disabled_reason);
  ELSE
    UPDATE postrider.disabled_period AS p
      SET until = moment, last_event = postrider.first_id_at(moment + interval '1 hour')
      WHERE p.workspace_id = NEW.workspace_id AND p.endpoint_id = NEW.id AND p.until IS NULL;
  END IF;
  RETURN NULL;
END
$$;
