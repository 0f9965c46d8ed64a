-- Which text of each file in sql/functions stands in the database: these are applied again when they have changed.

SET LOCAL search_path = pg_catalog, pg_temp;

CREATE TABLE postrider.sql_function (
  file       text PRIMARY KEY,
  checksum   text NOT NULL,
  applied_at timestamptz NOT NULL DEFAULT now()
);

GRANT SELECT ON postrider.sql_function TO postrider_daemon;

-- Which tables are partitioned, and by which column; sql/functions/partition.sql says it, in place of this body.
CREATE FUNCTION postrider.partition_key(parent text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS 'SELECT NULL::text';
REVOKE ALL ON FUNCTION postrider.partition_key FROM PUBLIC;
GRANT EXECUTE ON FUNCTION postrider.partition_key TO postrider_owner;
