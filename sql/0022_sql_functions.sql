-- Which text of each file in sql/functions stands in the database: these are applied again when they have changed.

SET LOCAL search_path = pg_catalog, pg_temp;

CREATE TABLE postrider.sql_function (
  file       text PRIMARY KEY,
  checksum   text NOT NULL,
  applied_at timestamptz NOT NULL DEFAULT now()
);

GRANT SELECT ON postrider.sql_function TO postrider_daemon;
