"""What a database says of the functions of the schema `postrider`."""

from tests.support.daemon_process import query

_FUNCTIONS = """
SELECT oid::regprocedure::text AS name, pg_get_functiondef(oid) AS definition,
       proowner::regrole::text AS owner,
       ARRAY(SELECT each::text FROM unnest(proacl) AS each ORDER BY 1) AS rights, proconfig AS settings
FROM pg_proc WHERE pronamespace = 'postrider'::regnamespace
"""


def functions_of(dsn: str) -> dict[str, dict[str, object]]:
    """Definition, owner, rights and settings of each, by its name and arguments."""
    return {row["name"]: dict(row) for row in query(dsn, _FUNCTIONS)}
