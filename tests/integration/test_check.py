"""postrider check names what is wrong, goes on to the next, and leaves no traceback."""

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import execute
from tests.support.cli import Cli
from tests.support.daemon_process import write_config
from tests.support.logins import login, user_of

DEALS = """
[[capture]]
table = "crm.deals"
object_type = "deal"
[capture.columns]
id = "id"
"""


def key_file(path: Path) -> dict[str, dict[str, str]]:
    path.write_bytes(base64.b64encode(os.urandom(32)))
    path.chmod(0o600)
    return {"secrets": {"key_file": str(path)}}


def failures(cli: Cli, *arguments: str) -> list[dict[str, Any]]:
    findings = json.loads(cli("check", "--json", *arguments, exit_code=1))
    return [finding for finding in findings if finding["level"] == "fail"]


def test_a_schema_that_is_closed_to_the_daemon_is_named_with_its_grant(
    database_dsn: str, tmp_path: Path
) -> None:
    """The documented setup: the daemon's login is a member of postrider_daemon and of nothing else."""
    execute(database_dsn, "CREATE SCHEMA crm", "CREATE TABLE crm.deals (id bigint PRIMARY KEY)")
    with login(database_dsn, member_of=["postrider_daemon"]) as daemon_dsn:
        config = write_config(tmp_path, daemon_dsn)
        config.write_text(config.read_text() + DEALS)
        cli = Cli(config)
        cli("endpoint", "add", "--url", "http://127.0.0.1:2/", "--events", "*")
        capture, endpoint = failures(cli)
        assert (capture["what"], endpoint["what"][:8]) == ("capture", "endpoint")
        assert f"GRANT USAGE ON SCHEMA crm TO {user_of(daemon_dsn)}" in capture["message"]
        execute(database_dsn, f"GRANT USAGE ON SCHEMA crm TO {user_of(daemon_dsn)}")
        assert [finding["what"][:8] for finding in failures(cli)] == ["endpoint"]


def test_an_older_schema_is_the_only_thing_that_is_told_of_its_tables(
    empty_database_dsn: str, tmp_path: Path
) -> None:
    cli = Cli(write_config(tmp_path, empty_database_dsn))
    cli("migrate", "--to", "12")
    (finding,) = failures(cli)
    assert (finding["what"], finding["hint"]) == ("schema", "Run `postrider migrate`.")


def test_an_endpoint_that_can_not_be_used_is_told_as_such(database_dsn: str, tmp_path: Path) -> None:
    right = Cli(write_config(tmp_path, database_dsn, "right", **key_file(tmp_path / "right.key")))
    added = right.json("endpoint", "add", "--url", "http://127.0.0.1:2/", "--events", "*")
    wrong = Cli(write_config(tmp_path, database_dsn, "wrong", **key_file(tmp_path / "wrong.key")))
    (finding,) = failures(wrong)
    assert added["id"] in finding["what"]
    assert "can't be decrypted with the key of secrets.key_file" in finding["message"]


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_ca_file_that_can_not_be_used_is_told(
    database_dsn: str, tmp_path: Path, content: str | None
) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    config = write_config(tmp_path, database_dsn, network={"ca_file": str(path)})
    (finding,) = failures(Cli(config))
    assert finding["what"] == "configuration"
    assert "network.ca_file" in finding["message"]
