"""The files of sql/functions: the definition of each function stands there once, and is applied again, after
the migrations, when its file has changed.

A migration makes a function, with its owner and who may call it, and may take it away; what its file says
later replaces the body and leaves owner and rights as they are. All files that have changed are applied in
one transaction, under the lock of the migrations and with a checksum each: two hosts may be at it at once,
and one may die.

Which of two texts is the newer one, the number of the schema tells: files belong to the last migration that
their program knows, and a release that changes one has a migration more than the release before it. A program
that is older than the schema neither applies its files nor asks for them. It goes on beside newer ones: they
serve the previous release too, as migrations do. While `migrate` runs, the functions of before stand beside
the new tables for a moment: a migration that takes away what they use has to replace them itself.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from postrider.store.database import Connection, DatabaseError
from postrider.store.patience import Unfinished
from postrider.store.script import Script

_NAME = re.compile(r"^\s*CREATE OR REPLACE FUNCTION postrider\.(\w+)\(", re.MULTILINE)

# Owners of functions that this session may not replace, since it has not their rights.
_OTHER_OWNERS = """
SELECT quote_ident(current_user) AS mine, string_agg(DISTINCT p.proowner::regrole::text, ', ') AS owners,
       bool_or(r.rolcanlogin OR r.rolsuper) AS somebody
FROM pg_proc AS p JOIN pg_roles AS r ON r.oid = p.proowner
WHERE p.pronamespace = (SELECT oid FROM pg_namespace WHERE nspname = 'postrider')
  AND p.proname = ANY ($1::text[]) AND NOT pg_has_role(p.proowner, 'USAGE')
HAVING count(*) > 0
"""


@dataclass(frozen=True, slots=True)
class FunctionFile(Script):
    def __str__(self) -> str:
        return f"functions/{self.name}"

    @property
    def functions(self) -> list[str]:
        """The names that it defines."""
        return _NAME.findall(self.sql)


def read_functions(directory: Path) -> tuple[FunctionFile, ...]:
    """The files NAME.sql of `directory`."""
    return tuple(FunctionFile(path.stem, path.read_text()) for path in sorted(directory.glob("*.sql")))


async def outdated(connection: Connection, files: Sequence[FunctionFile]) -> list[FunctionFile]:
    """Those of `files` that are not what was applied last; the schema is the one that they belong to."""
    rows = await connection.fetch("SELECT file, checksum FROM postrider.sql_function")
    applied = {row["file"]: row["checksum"] for row in rows}
    return [each for each in files if applied.get(each.name) != each.checksum]


async def apply(connection: Connection, files: Sequence[FunctionFile]) -> None:
    """Replace what `files` define, and note it, in the transaction of the caller, who excludes others."""
    await _demand_rights(connection, [name for each in files for name in each.functions])
    for each in files:
        try:
            await connection.execute(each.sql)
        except asyncpg.InternalServerError as error:
            if "tuple concurrently updated" in str(error):  # by somebody who grants, say
                raise Unfinished from error
            raise
        await connection.execute(
            """INSERT INTO postrider.sql_function (file, checksum) VALUES ($1, $2)
               ON CONFLICT (file) DO UPDATE SET checksum = excluded.checksum, applied_at = now()""",
            each.name,
            each.checksum,
        )


async def _demand_rights(connection: Connection, names: Sequence[str]) -> None:
    row = await connection.fetchrow(_OTHER_OWNERS, names)
    if row is None:
        return
    hint = "Run it as a superuser: postrider migrate --as postgres"
    if not row["somebody"]:
        hint = (
            f"Let a superuser run: GRANT {row['owners']} TO {row['mine']};  then migrate again. Membership "
            "holds in every database of the server: "
            f"REVOKE {row['owners']} FROM {row['mine']} once it is done."
        )
    raise DatabaseError(
        f"migrate lacks a right: {row['mine']} may not replace functions of {row['owners']}", hint
    )
