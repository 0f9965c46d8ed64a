"""Migrations as a test makes them: by the clock of this host."""

from postrider.edges.clock import SystemClock
from postrider.store import migrations
from postrider.store.database import Connection
from postrider.store.migrations import Migration, Schema
from postrider.store.patience import PATIENCE, Patience
from postrider.store.sql_functions import FunctionFile


async def migrate(
    connection: Connection, schema: Schema, to: int | None = None, *, patience: Patience = PATIENCE
) -> list[Migration | FunctionFile]:
    return await migrations.migrate(connection, schema, to, sleep=SystemClock().sleep, patience=patience)
