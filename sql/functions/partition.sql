-- Partitions by day of the event id, for outbox, delivery and attempt alike.

-- The column by which a table is partitioned; no other table is touched with the rights of these functions.
CREATE OR REPLACE FUNCTION postrider.partition_key(parent text) RETURNS text
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF parent NOT IN ('outbox', 'delivery', 'attempt') THEN
    RAISE EXCEPTION 'postrider has no partitioned table %', parent;
  END IF;
  RETURN CASE parent WHEN 'outbox' THEN 'id' ELSE 'event_id' END;
END
$$;

-- Makes the partition of one day, and tells whether it did. It attaches a finished table, which lets other
-- sessions go on writing; CREATE TABLE … PARTITION OF would lock them out. A day whose rows already went to
-- the default partition stays there. PostgreSQL looks through the default partition while nobody can write
-- to it, unless a constraint proves that it holds no such row (guard_default); without that proof nothing is
-- attached beside a large one.
CREATE OR REPLACE FUNCTION postrider.create_partition(parent text, day date) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  child    text := parent || '_' || to_char(day, 'YYYYMMDD');
  key      text := postrider.partition_key(parent);
  fallback regclass := format('postrider.%I', parent || '_default')::regclass;
  taken    boolean;
BEGIN
  IF to_regclass(format('postrider.%I', child)) IS NOT NULL THEN
    RETURN false;
  END IF;
  -- Two who make partitions at the same moment come one after the other; those who write don't notice.
  EXECUTE format('LOCK TABLE postrider.%I IN SHARE UPDATE EXCLUSIVE MODE', parent);
  IF to_regclass(format('postrider.%I', child)) IS NOT NULL THEN
    RETURN false;
  END IF;
  EXECUTE format('SELECT EXISTS (SELECT FROM %s WHERE %I >= $1 AND %I < $2)', fallback, key, key)
    INTO taken USING postrider.first_id_of(day), postrider.first_id_of(day + 1);
  IF taken OR NOT postrider.may_attach(parent, day) THEN
    RETURN false;
  END IF;
  EXECUTE format('CREATE TABLE postrider.%I (LIKE postrider.%I INCLUDING ALL)', child, parent);
  IF parent = 'delivery' THEN
    EXECUTE format('ALTER TABLE postrider.%I SET (fillfactor = 85)', child);
  ELSIF parent = 'outbox' THEN
    EXECUTE format('CREATE INDEX ON postrider.%I (workspace_id, id)', child);
  END IF;
  EXECUTE format('ALTER TABLE postrider.%I ATTACH PARTITION postrider.%I FOR VALUES FROM (%L) TO (%L)',
                 parent, child, postrider.first_id_of(day), postrider.first_id_of(day + 1));
  RETURN true;
END
$$;

-- Whether a partition of that day can be attached in a moment: the default partition is looked through in
-- one (8 MiB), or is proven not to hold the day. The proof's comment has its days.
CREATE OR REPLACE FUNCTION postrider.may_attach(parent text, day date) RETURNS boolean
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  fallback regclass := format('postrider.%I', parent || '_default')::regclass;
BEGIN
  RETURN pg_relation_size(fallback) <= 8388608 OR EXISTS (
    SELECT FROM pg_constraint AS c
    WHERE c.conrelid = fallback AND c.conname = 'postrider_days_elsewhere' AND c.convalidated
      AND daterange(split_part(obj_description(c.oid, 'pg_constraint'), ' ', 1)::date,
                    split_part(obj_description(c.oid, 'pg_constraint'), ' ', 2)::date) @> day);
END
$$;

-- Proves, in two steps of which each keeps nobody waiting, that the default partition holds no row of the
-- days from `first` up to and without `beyond`: `guard_default` refuses such rows from now on,
-- `validate_default` looks through it while others write. `create_unguarded` then makes the partitions and
-- lets such rows in again, both or neither; `unguard_default` only lets them in. In between an event of those
-- days could not be emitted, so they have to lie ahead: a daemon that dies meanwhile leaves the guard to the
-- next one.
CREATE OR REPLACE FUNCTION postrider.guard_default(parent text, first date, beyond date) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  key text := postrider.partition_key(parent);
BEGIN
  IF first < (clock_timestamp() AT TIME ZONE 'UTC')::date + 3 THEN
    RAISE EXCEPTION 'postrider.guard_default: % is too near: events of that day could come meanwhile', first;
  END IF;
  EXECUTE format('ALTER TABLE postrider.%I DROP CONSTRAINT IF EXISTS postrider_days_elsewhere, '
                 'ADD CONSTRAINT postrider_days_elsewhere CHECK (%I < %L OR %I >= %L) NOT VALID',
                 parent || '_default', key, postrider.first_id_of(first), key, postrider.first_id_of(beyond));
  EXECUTE format('COMMENT ON CONSTRAINT postrider_days_elsewhere ON postrider.%I IS %L',
                 parent || '_default', first || ' ' || beyond);
END
$$;

CREATE OR REPLACE FUNCTION postrider.validate_default(parent text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM postrider.partition_key(parent);
  EXECUTE format('ALTER TABLE postrider.%I VALIDATE CONSTRAINT postrider_days_elsewhere', parent || '_default');
END
$$;

CREATE OR REPLACE FUNCTION postrider.unguard_default(parent text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM postrider.partition_key(parent);
  IF EXISTS (SELECT FROM pg_constraint WHERE conname = 'postrider_days_elsewhere'
             AND conrelid = format('postrider.%I', parent || '_default')::regclass) THEN
    EXECUTE format('ALTER TABLE postrider.%I DROP CONSTRAINT postrider_days_elsewhere', parent || '_default');
  END IF;
END
$$;

-- Returns the days that have a partition now.
CREATE OR REPLACE FUNCTION postrider.create_unguarded(parent text, days date[]) RETURNS date[]
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  day  date;
  made date[] := '{}';
BEGIN
  FOREACH day IN ARRAY days LOOP
    IF postrider.create_partition(parent, day) THEN
      made := made || day;
    END IF;
  END LOOP;
  PERFORM postrider.unguard_default(parent);
  RETURN made;
END
$$;

-- Days of a parent's partitions, oldest first.
CREATE OR REPLACE FUNCTION postrider.partition_days(parent text) RETURNS SETOF date LANGUAGE sql STABLE
BEGIN ATOMIC
  SELECT to_date(right(c.relname, 8), 'YYYYMMDD')
  FROM pg_catalog.pg_inherits AS i JOIN pg_catalog.pg_class AS c ON c.oid = i.inhrelid
  WHERE i.inhparent = ('postrider.' || parent)::regclass AND c.relname ~ '_[0-9]{8}$'
  ORDER BY 1;
END;

-- Drops the partition of one day.
CREATE OR REPLACE FUNCTION postrider.drop_partition(parent text, day date) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM postrider.partition_key(parent);
  EXECUTE format('DROP TABLE IF EXISTS postrider.%I', parent || '_' || to_char(day, 'YYYYMMDD'));
END
$$;
