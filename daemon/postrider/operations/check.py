"""Tests the live system, and says what is wrong and how to mend it."""

import shlex
import stat
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

from postrider.domain.audit import EVERYWHERE
from postrider.domain.errors import PostriderError
from postrider.edges.clock import SystemClock
from postrider.edges.config import Config, config_source, holds_password, load_config
from postrider.edges.dialect_files import default_dialect, load_dialects
from postrider.edges.dialing import tls_context
from postrider.edges.settings import network_options, read_sealer
from postrider.edges.sources import SourceAddresses
from postrider.operations.check_endpoints import Prober, endpoint_findings
from postrider.operations.check_promises import overruled_findings, sending_findings
from postrider.operations.check_service import service_findings
from postrider.operations.finding import Finding
from postrider.store import endpoints
from postrider.store.database import Database


async def check(
    config_path: Path | None, environ: Mapping[str, str], *, with_endpoints: bool = True
) -> AsyncIterator[Finding]:
    """One check after the other; those that need what failed are left out."""
    try:
        config = load_config(config_path, environ)
        dialects = load_dialects(config.dialect.paths, config.dialect.values)
        default = default_dialect(dialects, config.dialect.default)
        sealer = read_sealer(config)
        tls = tls_context(config.network.ca_file)
        leave_from = SourceAddresses(network_options(config).source_addresses)
    except PostriderError as error:
        yield Finding("fail", "configuration", error.message, error.hint)
        return
    yield Finding("ok", "configuration", "valid")
    for finding in _permission_findings(config_path, environ, config):
        yield finding
    database = Database(config.database.dsn, pool_size=2, keyed=False)
    try:
        try:
            await database.open()
            fits = True
            async for finding in service_findings(config, database, SystemClock()):
                yield finding
                fits = fits and (finding.what, finding.level) != ("schema", "fail")
            if not fits:
                return
            async with database.connection() as connection:
                rows = await endpoints.page(connection, sealer, EVERYWHERE)
        except PostriderError as error:
            yield Finding("fail", "database", error.message, error.hint)
            return
        in_use = {default.name, *(row.endpoint.dialect for row in rows)} & dialects.keys()
        used = [dialects[name] for name in sorted(in_use)]
        for finding in overruled_findings(used, config):
            yield finding
        sources: dict[str, set[str]] = defaultdict(set)
        prober = Prober(config, dialects, tls, leave_from, sources)
        probed = [row.endpoint for row in rows if with_endpoints]
        async for finding in endpoint_findings(probed, prober):
            yield finding
        for finding in sending_findings(used, sources, config):
            yield finding
    finally:
        await database.close()


def _permission_findings(
    config_path: Path | None, environ: Mapping[str, str], config: Config
) -> Iterator[Finding]:
    """Whether other users can read what is secret, or change what the daemon obeys."""
    source = config_source(config_path, environ)
    if source.exists():
        yield _permission_finding("configuration file", source, secret=holds_password(source))
    if config.secrets.key_file is not None:
        yield _permission_finding("key file", Path(config.secrets.key_file), secret=True)


def _permission_finding(what: str, path: Path, *, secret: bool) -> Finding:
    mode = path.stat().st_mode
    hint = f"chmod {'g-w,o=' if secret else 'go-w'} {shlex.quote(str(path))}"
    if mode & stat.S_IWOTH:
        return Finding("fail", what, f"every user can change {path}", hint)
    if secret and mode & stat.S_IROTH:
        return Finding("warn", what, f"{path} holds a secret, and every user can read it", hint)
    if mode & stat.S_IWGRP:
        return Finding("warn", what, f"the group of {path} can change it", hint)
    return Finding("ok", what, "its permissions are narrow enough")
