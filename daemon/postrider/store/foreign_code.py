"""Whether something of somebody else's would run where `migrate` reads and writes.

The schema belongs to whoever made it, perhaps to a login with few rights. What that login puts on a table,
such as a trigger, or in place of it, such as a view, runs with the rights of whoever migrates next: of a
superuser, most often.
"""

from typing import Literal

from postrider.store.database import Connection, DatabaseError

_READ = "ACCESS SHARE"
_WRITE = "SHARE ROW EXCLUSIVE"

# Tables as migrations made them have nothing but these. That a function is one of PostgreSQL's would not do
# as a rule: some run any query that they are given.
_FOREIGN = """
SELECT c.relname, r.rolname AS owner, f.what
FROM pg_class AS c JOIN pg_roles AS r ON r.oid = c.relowner CROSS JOIN LATERAL (
  SELECT 'a view or the like in place of the table' AS what WHERE c.relkind <> 'r'
  UNION ALL SELECT 'trigger ' || tgname FROM pg_trigger WHERE tgrelid = c.oid
  UNION ALL SELECT 'rule ' || rulename FROM pg_rewrite WHERE ev_class = c.oid AND c.relkind = 'r'
  UNION ALL SELECT 'default ' || pg_get_expr(adbin, adrelid) FROM pg_attrdef WHERE adrelid = c.oid
    AND pg_get_expr(adbin, adrelid) NOT IN ('now()', 'false', 'true', '''''::text', '''available''::text')
  UNION ALL SELECT 'constraint ' || conname FROM pg_constraint WHERE conrelid = c.oid
    AND (contype NOT IN ('p', 'n', 'c')
         OR contype = 'c' AND pg_get_constraintdef(oid)
           NOT IN ('CHECK ((breaks < number))', 'CHECK (only_row)'))
  UNION ALL SELECT 'index ' || indexrelid::regclass FROM pg_index WHERE indrelid = c.oid
    AND (indexprs IS NOT NULL OR indpred IS NOT NULL)
  UNION ALL SELECT 'column ' || attname FROM pg_attribute AS a JOIN pg_type AS t ON t.oid = a.atttypid
    WHERE attrelid = c.oid AND attnum > 0 AND t.typnamespace <> 'pg_catalog'::regnamespace
  UNION ALL SELECT 'row security' WHERE c.relrowsecurity
  UNION ALL SELECT 'inheritance' FROM pg_inherits WHERE c.oid IN (inhrelid, inhparent)
) AS f
WHERE c.relnamespace = 'postrider'::regnamespace AND c.relname = ANY ($1::text[])
  AND r.rolname <> current_user AND NOT r.rolsuper
ORDER BY 1, 3 LIMIT 1
"""


async def hold(connection: Connection, *tables: str, to: Literal["read", "write"]) -> None:
    """Lock tables of the schema until the transaction ends, so that nobody puts something on them any more.
    Raises DatabaseError where something would run that is not Postrider's. The transaction is pinned."""
    names = ", ".join(f"postrider.{name}" for name in tables)
    await connection.execute(f"LOCK TABLE {names} IN {_READ if to == 'read' else _WRITE} MODE")
    row = await connection.fetchrow(_FOREIGN, list(tables))
    if row is not None:
        raise DatabaseError(
            f"not as `postrider migrate` made it: postrider.{row['relname']}, of {row['owner']}, has "
            f"{row['what']}; it could run with your rights, so nothing was changed",
            f"Look at what {row['owner']} has put there, take it away, and migrate again.",
        )
