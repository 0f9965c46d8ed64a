"""An endpoint whose key or row is damaged stops nobody but itself, and loses nothing."""

import asyncio
import base64
import signal
from collections.abc import Awaitable
from functools import partial
from pathlib import Path

import asyncpg
import pytest
from structlog.testing import capture_logs

from postrider.app import Daemon
from postrider.domain.errors import PostriderError
from postrider.domain.model import endpoint_public_id
from postrider.edges.config import load_config
from tests.support.cli import Cli
from tests.support.daemon_process import (
    SECRET,
    DaemonProcess,
    add_endpoint,
    emit,
    query,
    wait_until,
    write_config,
)
from tests.support.receiver_process import ReceiverProcess
from tests.support.stage import Stage, eventually, staged

KEY, OTHER_KEY = (base64.b64encode(bytes([byte]) * 32).decode() for byte in (1, 2))

DAMAGES = {
    "secret of another": """UPDATE postrider.endpoint_secret
                            SET sealed = '\\x01' || decode(repeat('ab', 40), 'hex')""",
    "secret of no known form": "UPDATE postrider.endpoint_secret SET sealed = '\\x02aa'",
    "empty secret": "UPDATE postrider.endpoint_secret SET sealed = ''",
    "secret not UTF-8": "UPDATE postrider.endpoint_secret SET sealed = '\\x00fffefd'",
    "no secret": "DELETE FROM postrider.endpoint_secret",
    "headers are a list": "UPDATE postrider.endpoint SET headers = '[1]'",
    "headers hold a number": """UPDATE postrider.endpoint SET headers = '{"X-A": 1}'""",
    "headers are nested deeply": """UPDATE postrider.endpoint
                                    SET headers = (repeat('[', 5000) || repeat(']', 5000))::json""",
    "sealed headers are damaged": "UPDATE postrider.endpoint SET sealed_headers = '\\x0102'",
    "no URL": "UPDATE postrider.endpoint SET url = ''",
    "a URL that can't be read": "UPDATE postrider.endpoint SET url = 'http://[::1'",
    "a bad pattern": "UPDATE postrider.endpoint SET patterns = '{**,deal.*}'",
    "a pattern that is NULL": "UPDATE postrider.endpoint SET patterns = '{NULL,deal.*}'",
    "an unknown dialect": "UPDATE postrider.endpoint SET dialect = 'klingon'",
    "an endless rate": "UPDATE postrider.endpoint SET rate = 'NaN'",
    "an unknown state": """ALTER TABLE postrider.endpoint DROP CONSTRAINT endpoint_state_check;
                           UPDATE postrider.endpoint SET state = 'quarantined'""",
}


def damage(dsn: str, endpoint_id: int, statement: str) -> None:
    table_key = "endpoint_id" if "endpoint_secret" in statement else "id"
    *first, last = statement.split(";")
    for each in first:
        query(dsn, each)
    query(dsn, f"{last} WHERE {table_key} = {endpoint_id}")


async def states(stage: Stage, damaged: int) -> dict[str, str]:
    rows = await stage.connection.fetch("SELECT endpoint_id, state FROM postrider.delivery")
    return {"damaged" if row["endpoint_id"] == damaged else "healthy": row["state"] for row in rows}


def sees(receiver: ReceiverProcess, count: int, path: str) -> Awaitable[object]:
    return asyncio.to_thread(receiver.wait_for, count, path=path)


@pytest.mark.parametrize("statement", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_endpoint_keeps_its_deliveries_and_others_get_theirs(
    database_dsn: str, tmp_path: Path, statement: str
) -> None:
    with ReceiverProcess(SECRET) as receiver:
        damaged = add_endpoint(database_dsn, receiver.url("/damaged"))
        add_endpoint(database_dsn, receiver.url("/healthy"))
        damage(database_dsn, damaged, statement)

        async def story() -> None:
            with capture_logs() as logs:
                async with staged(database_dsn, tmp_path) as stage:
                    await stage.emit()
                    await sees(receiver, 1, "/healthy")
                    await eventually(
                        partial(states, stage, damaged), {"healthy": "succeeded", "damaged": "waiting"}
                    )
            lines = [line for line in logs if line["event"] == "endpoint.unusable"]
            assert [line["endpoint"] for line in lines] == [endpoint_public_id(damaged)]
            assert lines[0]["log_level"] == "error"

        asyncio.run(story())
        assert not receiver.stats("/damaged")


def test_a_key_file_that_is_mended_lets_deliveries_go_on(database_dsn: str, tmp_path: Path) -> None:
    key_file = tmp_path / "key"
    key_file.write_text(KEY)
    config = write_config(tmp_path, database_dsn, secrets={"key_file": str(key_file)})
    cli = Cli(config)
    with ReceiverProcess() as receiver:
        added = cli.json("endpoint", "add", "--url", receiver.url("/sealed"), "--events", "*")
        plain = add_endpoint(database_dsn, receiver.url("/plain"))
        key_file.write_text(OTHER_KEY)
        with DaemonProcess(config) as daemon:
            daemon.wait_for_log("daemon.started")
            (unusable,) = daemon.logged("endpoint.unusable")
            assert unusable["endpoint"] == added["id"]
            assert "secrets.key_file" in unusable["reason"]
            emit(database_dsn)
            receiver.wait_for(1, path="/plain")
            wait_until(lambda: deliveries(cli, added["id"]) == ["waiting"], "the delivery that waits")
            wait_until(lambda: bool(cli.json("status")["endpoints_in_trouble"]), "the daemon's report")
            status = cli.json("status")
            assert [each["state"] for each in status["endpoints_in_trouble"]] == ["unusable"]
            assert any("can't use 1 endpoint" in problem for problem in status["problems"])
            assert "can't be decrypted" in cli("status")
            assert "can't be decrypted" in cli.json("endpoint", "show", added["id"])["unusable"]
            assert "active, unusable" in cli("endpoint", "list")
            assert not receiver.stats("/sealed")

            key_file.write_text("no key")
            daemon.signal(signal.SIGHUP)
            daemon.wait_for_log("config.refused")
            key_file.write_text(KEY)
            daemon.signal(signal.SIGHUP)
            receiver.wait_for(1, path="/sealed")
            assert daemon.wait_for_log("endpoint.usable")["endpoint"] == added["id"]
            wait_until(lambda: deliveries(cli, added["id"]) == ["succeeded"], "the success")
            # What was in clear text was not sealed with the wrong key.
            assert deliveries(cli, endpoint_public_id(plain)) == ["succeeded"]
            assert cli.json("endpoint", "show", endpoint_public_id(plain))["unusable"] is None
        log = daemon.log_path.read_text()
    for secret in (added["secret"], KEY, OTHER_KEY, SECRET):
        assert secret not in log


def deliveries(cli: Cli, endpoint: str) -> list[str]:
    return [each["state"] for each in cli.json("delivery", "list", "--endpoint", endpoint)]


def test_a_reload_that_is_refused_changes_nothing(database_dsn: str, tmp_path: Path) -> None:
    missing = tmp_path / "ca.pem"
    missing.write_text("")

    async def story() -> None:
        async with staged(database_dsn, tmp_path) as stage:
            before = await catalogue(stage)
            settings, config = stage.daemon.services.sender.settings, stage.daemon.config
            refused = load_config(
                write_config(
                    tmp_path,
                    database_dsn,
                    "refused",
                    dialect={"default": "workestra"},
                    network={"ca_file": str(missing)},
                ),
                {},
            )
            with pytest.raises(PostriderError):
                await stage.daemon.reload(refused)
            assert await catalogue(stage) == before
            assert stage.daemon.config is config
            assert stage.daemon.services.sender.settings is settings
            await stage.emit("of.any.type")

    asyncio.run(story())


def test_a_reload_whose_catalogue_can_not_be_published_changes_nothing(
    database_dsn: str, tmp_path: Path
) -> None:
    async def story() -> None:
        async with staged(database_dsn, tmp_path) as stage:
            before = await catalogue(stage)
            await stage.connection.execute(
                "ALTER TABLE postrider.catalogue ADD CHECK (dialect = 'standard') NOT VALID"
            )
            settings, config = stage.daemon.services.sender.settings, stage.daemon.config
            other = write_config(tmp_path, database_dsn, "other", dialect={"default": "workestra"})
            with pytest.raises(asyncpg.CheckViolationError):
                await stage.daemon.reload(load_config(other, {}))
            assert await catalogue(stage) == before
            assert stage.daemon.config is config
            assert stage.daemon.services.sender.settings is settings

    asyncio.run(story())


async def catalogue(stage: Stage) -> object:
    return (
        await stage.connection.fetch("SELECT * FROM postrider.catalogue"),
        await stage.connection.fetch("SELECT name FROM postrider.event_type ORDER BY name"),
    )


def test_a_daemon_that_can_not_start_publishes_no_catalogue(database_dsn: str, tmp_path: Path) -> None:
    before = query(database_dsn, "SELECT * FROM postrider.catalogue")
    # Whatever keeps it from taking up its work: here its endpoints can't be read.
    query(database_dsn, "ALTER TABLE postrider.endpoint RENAME COLUMN url TO uri")

    async def story() -> None:
        config = write_config(tmp_path, database_dsn, dialect={"default": "workestra"})
        daemon = Daemon(load_config(config, {}))
        with pytest.raises(PostriderError):
            await daemon.start()
        await daemon.stop()

    asyncio.run(story())
    assert query(database_dsn, "SELECT * FROM postrider.catalogue") == before
