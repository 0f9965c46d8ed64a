-- Partitions by day of the event id, for outbox, delivery and attempt alike.

-- The smallest event id of a day (UTC).
CREATE FUNCTION postrider.first_id_of(day date) RETURNS uuid LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
  SELECT (lpad(to_hex((extract(epoch FROM day::timestamp) * 1000)::bigint), 12, '0') || repeat('0', 20))::uuid
$$;

-- Catches rows of days that have no partition, so that emit never fails for want of a janitor.
CREATE TABLE postrider.outbox_default PARTITION OF postrider.outbox DEFAULT;
CREATE TABLE postrider.delivery_default PARTITION OF postrider.delivery DEFAULT;
CREATE TABLE postrider.attempt_default PARTITION OF postrider.attempt DEFAULT;

-- Makes the partition of one day, and tells whether it did. It attaches a finished table, which lets other
-- sessions go on writing; CREATE TABLE … PARTITION OF would lock them out. A day whose rows already went to
-- the default partition stays there.
CREATE FUNCTION postrider.create_partition(parent text, day date) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  child text := parent || '_' || to_char(day, 'YYYYMMDD');
  key   text := CASE parent WHEN 'outbox' THEN 'id' ELSE 'event_id' END;
  taken boolean;
BEGIN
  IF parent NOT IN ('outbox', 'delivery', 'attempt') THEN
    RAISE EXCEPTION 'postrider has no partitioned table %', parent;
  END IF;
  IF to_regclass(format('postrider.%I', child)) IS NOT NULL THEN
    RETURN false;
  END IF;
  EXECUTE format('SELECT EXISTS (SELECT FROM postrider.%I WHERE %I >= $1 AND %I < $2)', parent || '_default', key, key)
    INTO taken USING postrider.first_id_of(day), postrider.first_id_of(day + 1);
  IF taken THEN
    RETURN false;
  END IF;
  EXECUTE format('CREATE TABLE postrider.%I (LIKE postrider.%I INCLUDING ALL)', child, parent);
  IF parent = 'delivery' THEN
    EXECUTE format('ALTER TABLE postrider.%I SET (fillfactor = 85)', child);
  END IF;
  EXECUTE format('ALTER TABLE postrider.%I ATTACH PARTITION postrider.%I FOR VALUES FROM (%L) TO (%L)',
                 parent, child, postrider.first_id_of(day), postrider.first_id_of(day + 1));
  RETURN true;
END
$$;

-- Days of a parent's partitions, oldest first.
CREATE FUNCTION postrider.partition_days(parent text) RETURNS SETOF date LANGUAGE sql STABLE AS $$
  SELECT to_date(right(c.relname, 8), 'YYYYMMDD')
  FROM pg_catalog.pg_inherits AS i JOIN pg_catalog.pg_class AS c ON c.oid = i.inhrelid
  WHERE i.inhparent = ('postrider.' || parent)::regclass AND c.relname ~ '_[0-9]{8}$'
  ORDER BY 1
$$;

-- Drops the partition of one day.
CREATE FUNCTION postrider.drop_partition(parent text, day date) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF parent NOT IN ('outbox', 'delivery', 'attempt') THEN
    RAISE EXCEPTION 'postrider has no partitioned table %', parent;
  END IF;
  EXECUTE format('DROP TABLE IF EXISTS postrider.%I', parent || '_' || to_char(day, 'YYYYMMDD'));
END
$$;

SELECT postrider.create_partition(parent, ((now() AT TIME ZONE 'UTC')::date + day)::date)
FROM unnest(ARRAY['outbox', 'delivery', 'attempt']) AS parent, generate_series(0, 2) AS day;
