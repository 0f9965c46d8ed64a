"""The system user as whom a command reaches the database."""

import os
import pwd

from postrider.domain.dsn import DsnMistake, by_peer
from postrider.domain.errors import UsageError


def become(user: str, dsn: str) -> str:
    """As root, become that system user for good; return the DSN by which he reaches the database over its
    Unix socket. What only root may read has to have been read before."""
    if os.geteuid() != 0:
        raise UsageError(f"only root may act as {user}", "Run it as root, or as that user without --as.")
    try:
        facts = pwd.getpwnam(user)
    except KeyError:
        raise UsageError(f"this host has no user {user}", "Name the system user of PostgreSQL.") from None
    try:
        theirs = by_peer(dsn, user)
    except DsnMistake:
        raise UsageError(
            "--as takes this host's Unix socket, but database.dsn names another host",
            "Give the DSN of a superuser in $POSTRIDER_DATABASE_DSN instead.",
        ) from None
    os.initgroups(user, facts.pw_gid)
    os.setgid(facts.pw_gid)
    os.setuid(facts.pw_uid)
    os.environ["HOME"] = facts.pw_dir  # where the driver looks for certificates and passwords
    return theirs
