-- What an endpoint missed while it was disabled: no row for each event, but when that was.

-- An event that matches the endpoint, lies between first_event and last_event, has no delivery and is not on its
-- way any more, was missed. until and last_event are NULL while the endpoint is disabled.
CREATE TABLE postrider.disabled_period (
  workspace_id text NOT NULL,
  endpoint_id  bigint NOT NULL,
  since        timestamptz NOT NULL,
  until        timestamptz,
  first_event  uuid NOT NULL,
  last_event   uuid,
  reason       text,
  PRIMARY KEY (workspace_id, endpoint_id, since)
) WITH (autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 1000);
CREATE INDEX disabled_period_last ON postrider.disabled_period (last_event);

-- The smallest event id of a moment.
CREATE FUNCTION postrider.first_id_at(moment timestamptz) RETURNS uuid LANGUAGE sql STABLE PARALLEL SAFE
  RETURN (lpad(to_hex((extract(epoch FROM moment) * 1000)::bigint), 12, '0') || repeat('0', 20))::uuid;

-- The first event that an endpoint misses when it is disabled at a moment: the oldest of those that are not fanned
-- out yet. Those of transactions that have not committed can't be seen: they may have been open for an hour. What
-- happened before the endpoint was there is none of its own.
CREATE FUNCTION postrider.first_missed(moment timestamptz, created_at timestamptz) RETURNS uuid LANGUAGE sql STABLE
BEGIN ATOMIC
  SELECT greatest(postrider.first_id_at(created_at - interval '1 minute'), least(
    postrider.first_id_at(moment - interval '1 hour'),
    (SELECT event_id FROM postrider.pending ORDER BY event_id LIMIT 1),
    (SELECT event_ids[1] FROM postrider.claim ORDER BY event_ids[1] LIMIT 1)));
END;

-- Whoever changes the state, in the same transaction: a daemon of any release, a command, a person. An event can be
-- fanned out by the old state until that commits, which may take an hour more where a person left a transaction open,
-- or a standby does not answer; it is missed only if it has no delivery.
CREATE FUNCTION postrider.endpoint_state_changed() RETURNS trigger LANGUAGE plpgsql
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

CREATE TRIGGER endpoint_disabled AFTER INSERT ON postrider.endpoint
  FOR EACH ROW WHEN (NEW.state = 'disabled') EXECUTE FUNCTION postrider.endpoint_state_changed();
CREATE TRIGGER endpoint_state_changed AFTER UPDATE OF state ON postrider.endpoint
  FOR EACH ROW WHEN ((OLD.state = 'disabled') <> (NEW.state = 'disabled'))
  EXECUTE FUNCTION postrider.endpoint_state_changed();

-- Those that are disabled already: whoever did it noted when, but an update since then did so too. It was not before
-- the endpoint began to fail.
INSERT INTO postrider.disabled_period (workspace_id, endpoint_id, since, first_event, reason)
SELECT workspace_id, id, updated_at, postrider.first_missed(least(updated_at, failing_since), created_at),
       disabled_reason
FROM postrider.endpoint WHERE state = 'disabled';

REVOKE ALL ON FUNCTION postrider.first_id_at(timestamptz), postrider.first_missed(timestamptz, timestamptz),
  postrider.endpoint_state_changed() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION postrider.first_id_at(timestamptz), postrider.first_missed(timestamptz, timestamptz)
  TO postrider_daemon;
GRANT SELECT, INSERT, UPDATE, DELETE ON postrider.disabled_period TO postrider_daemon;
