-- Whose code runs with whose rights, where captured rows become events.

-- Why a role may not own functions that others call; NULL if it may.
CREATE OR REPLACE FUNCTION postrider.role_flaw(role text, may_belong_to text DEFAULT NULL) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT CASE
      WHEN r.rolsuper THEN 'is a superuser'
      WHEN r.rolcanlogin THEN 'can log in'
      WHEN r.rolcreaterole OR r.rolcreatedb OR r.rolreplication OR r.rolbypassrls
        THEN 'may create roles or databases, replicate, or pass by row security'
      ELSE (SELECT 'is a member of ' || string_agg(g.rolname, ', ')
            FROM pg_auth_members AS m JOIN pg_roles AS g ON g.oid = m.roleid
            WHERE m.member = r.oid AND g.rolname IS DISTINCT FROM may_belong_to) END
  FROM pg_roles AS r WHERE r.rolname = role
$$;

-- Runs a query ($1 in it is the input) as postrider_prober, which may do no more than a capture may. The caller rolls
-- back, always.
CREATE OR REPLACE FUNCTION postrider.evaluate(query text, input json DEFAULT NULL) RETURNS SETOF record
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN QUERY EXECUTE query USING input;
END
$$;
