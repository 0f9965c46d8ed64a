"""What a user needs to apply captures, and does not have: told as the GRANTs that give it, all at once."""

from collections.abc import Sequence

from postrider.store.capture_inspector import CaptureInspector
from postrider.store.capture_sql import CAPTURE_ROLE
from postrider.store.database import Connection, DatabaseError

# Functions are made in the schema postrider and given to postrider_capture, which has to have the right to
# create there for that moment.
_OF_POSTRIDER = f"""
SELECT grants.statement FROM (VALUES
  (pg_has_role('{CAPTURE_ROLE}', $1) AND pg_has_role('{CAPTURE_ROLE}', 'USAGE'), format(
    'GRANT {CAPTURE_ROLE} TO %I', current_user)),
  (has_table_privilege('postrider.capture', 'INSERT') AND has_table_privilege('postrider.capture', 'UPDATE')
   AND has_table_privilege('postrider.capture', 'DELETE')
   AND has_table_privilege('postrider.audit_log', 'INSERT'), format(
    'GRANT postrider_daemon TO %I', current_user)),
  (NOT $2 OR has_schema_privilege('postrider', 'CREATE WITH GRANT OPTION'), format(
    'GRANT CREATE ON SCHEMA postrider TO %I WITH GRANT OPTION', current_user))
) AS grants (given, statement) WHERE NOT given
"""  # noqa: S608 (constant)

_OF_TABLES = """
SELECT format('GRANT TRIGGER ON %s TO %I', name, current_user) AS statement
FROM unnest($1::text[]) AS name WHERE NOT has_table_privilege(name, 'TRIGGER')
"""


async def demand_rights(connection: Connection, wanted: Sequence[CaptureInspector]) -> None:
    """Raise DatabaseError unless this user may do all that takes: make these captures, or drop some if there
    are none."""
    user = await connection.fetchval("SELECT current_user")
    mode = "SET" if connection.get_server_version().major >= 16 else "MEMBER"
    ours = await connection.fetch(_OF_POSTRIDER, mode, bool(wanted))
    names = {name for each in wanted for name in each.triggered}
    theirs = [row["statement"] for row in await connection.fetch(_OF_TABLES, sorted(names))]
    theirs += dict.fromkeys(grant.statement for each in wanted for grant in each.refused)
    if not ours and not theirs:
        return
    hints = []
    if ours:
        hints.append(f"Let a superuser run: {'; '.join(row['statement'] for row in ours)};")
    if theirs:
        hints.append(f"Let the owner of the tables run: {'; '.join(theirs)};")
    raise DatabaseError(
        f"{user} lacks rights that captures take; nothing was changed",
        "  ".join([*hints, "What is granted holds until it is revoked, a membership in every database."]),
    )
