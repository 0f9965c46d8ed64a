"""Whether the functions by which Postrider's own sessions look at captures are those that `migrate` made.

The roles that own functions are the whole server's: who was made a member of them, to migrate another
database, may replace what they own here, and put a namesake beside the rest. Such a function would run with
the rights of whoever calls it next.
"""

from postrider.store.database import Connection, DatabaseError

# Every name in full: this comes before anything that is trusted. What postrider_capture owns is for `plan` to
# tell and for `apply` to mend; it runs by evaluate() alone.
_CHANGED = """
SELECT pg_catalog.string_agg(f.oid::pg_catalog.regprocedure::pg_catalog.text, ', ')
FROM (
  SELECT p.oid, p.proname, p.prosecdef, o.rolname,
    coalesce(p.proconfig OPERATOR(pg_catalog.@>) ARRAY['search_path=pg_catalog, pg_temp'], false) AS pinned,
    pg_catalog.count(*) OVER (PARTITION BY p.proname) AS namesakes
  FROM pg_catalog.pg_proc AS p
    JOIN pg_catalog.pg_namespace AS s ON s.oid OPERATOR(pg_catalog.=) p.pronamespace
    JOIN pg_catalog.pg_roles AS o ON o.oid OPERATOR(pg_catalog.=) p.proowner
  WHERE s.nspname OPERATOR(pg_catalog.=) 'postrider'
) AS f
WHERE (f.rolname OPERATOR(pg_catalog.=) ANY (ARRAY['postrider_owner', 'postrider_writer', 'postrider_prober'])
       OR f.proname OPERATOR(pg_catalog.=) 'evaluate')
    AND NOT (f.prosecdef AND f.pinned)
  OR f.proname OPERATOR(pg_catalog.=) 'evaluate' AND f.rolname OPERATOR(pg_catalog.<>) 'postrider_prober'
  OR f.proname OPERATOR(pg_catalog.=) ANY (ARRAY['evaluate', 'role_flaw'])
    AND f.namesakes OPERATOR(pg_catalog.>) 1
"""


async def demand_own_functions(connection: Connection) -> None:
    """Raise DatabaseError where one of them was replaced, or has a namesake. It calls none."""
    if changed := await connection.fetchval(_CHANGED):
        raise DatabaseError(
            f"not as `postrider migrate` made it: {changed}; it could run with your rights, so none was run",
            "REVOKE postrider_owner, postrider_writer and postrider_prober from their members; then let a "
            "superuser drop what does not belong there, and restore the rest as sql/ of Postrider has it.",
        )
