"""postrider check names what is wrong, goes on to the next, and leaves no traceback."""

import base64
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from postrider.domain.model import EndpointState, endpoint_public_id
from postrider.edges.config import Config, DatabaseConfig
from postrider.edges.dialect_files import load_dialects
from postrider.edges.resources import config_dir
from postrider.operations.check_promises import sending_findings
from tests.conftest import execute
from tests.support.cli import Cli
from tests.support.daemon_process import add_endpoint, query, write_config
from tests.support.logins import login, user_of
from tests.support.receiver_process import ReceiverProcess

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


def failures(cli: Cli, *, exit_code: int = 1) -> list[dict[str, Any]]:
    findings = json.loads(cli("check", "--json", exit_code=exit_code))
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
        assert [finding["what"][:8] for finding in failures(cli, exit_code=3)] == ["endpoint"]


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


def promise(directory: Path, *networks: str) -> dict[str, dict[str, Any]]:
    """A configuration whose default dialect promises that requests come from these networks."""
    shipped = (config_dir() / "dialects" / "workestra.toml").read_text()
    own, count = re.subn(r"sending_addresses = .*", f"sending_addresses = {json.dumps(networks)}", shipped)
    assert count == 1
    (directory / "workestra.toml").write_text(own)
    return {"dialect": {"default": "workestra", "paths": [str(directory / "workestra.toml")]}}


def sending(cli: Cli, *arguments: str) -> dict[str, Any]:
    """What check finds of the addresses that requests leave from."""
    done = subprocess.run(cli.command("check", "--json", *arguments), capture_output=True, check=False)
    (found,) = [each for each in json.loads(done.stdout) if each["what"] == "dialect workestra"]
    return {str(key): value for key, value in found.items()}


def test_addresses_that_a_dialect_promises_are_compared_with_what_leaves(
    database_dsn: str, tmp_path: Path
) -> None:
    with ReceiverProcess() as receiver:
        add_endpoint(database_dsn, receiver.url("/a"), dialect="workestra")
        kept = promise(tmp_path, "127.0.0.2/32", "198.51.100.0/24")
        unbound = Cli(write_config(tmp_path, database_dsn, "unbound", **kept))
        assert sending(unbound)["level"] == "warn"
        assert "requests leave from 127.0.0.1, and it promises" in sending(unbound)["message"]
        nothing = sending(unbound, "--no-endpoints")
        assert (nothing["level"], "nothing shows" in nothing["message"]) == ("warn", True)
        kept["network"] = {"source_addresses": ["127.0.0.2"]}
        bound = sending(Cli(write_config(tmp_path, database_dsn, "bound", **kept)))
        assert (bound["level"], bound["message"]) == (
            "ok",
            "requests leave from 127.0.0.2, as it promises (127.0.0.2/32, 198.51.100.0/24)",
        )
        kept["network"] = {"proxy": "http://127.0.0.1:3128"}
        proxied = sending(Cli(write_config(tmp_path, database_dsn, "proxied", **kept)))
        assert (proxied["level"], "from the proxy" in proxied["message"]) == ("warn", True)


def test_a_public_address_that_is_not_promised_is_a_failure() -> None:
    (workestra,) = [each for each in load_dialects(()).values() if each.name == "workestra"]
    config = Config(database=DatabaseConfig(dsn=""))
    (finding,) = sending_findings([workestra], {"workestra": {"203.0.113.7", "8.8.8.8"}}, config)
    assert (finding.level, "leave from 8.8.8.8, and" in finding.message) == ("fail", True)
    (finding,) = sending_findings([workestra], {"workestra": {"203.0.113.7", "198.51.100.9"}}, config)
    assert finding.level == "ok"


def test_a_source_address_that_this_host_lacks_is_told(database_dsn: str, tmp_path: Path) -> None:
    config = write_config(tmp_path, database_dsn, network={"source_addresses": ["192.0.2.1"]})
    (finding,) = failures(Cli(config))
    assert finding["what"] == "configuration"
    assert "network.source_addresses: nothing can be sent from 192.0.2.1" in finding["message"]


def test_an_endpoint_that_is_down_is_not_a_sick_service(database_dsn: str, tmp_path: Path) -> None:
    cli = Cli(write_config(tmp_path, database_dsn))
    with ReceiverProcess() as receiver:
        ids = [
            add_endpoint(database_dsn, receiver.url("/failing")),
            add_endpoint(database_dsn, "http://127.0.0.1:2/away"),
            add_endpoint(database_dsn, "http://127.0.0.1:2/disabled", state=EndpointState.DISABLED),
            add_endpoint(database_dsn, "http://127.0.0.1:2/paused", state=EndpointState.PAUSED),
        ]
        query(database_dsn, "UPDATE postrider.endpoint SET failing_since = now() WHERE id = $1", ids[0])
        found = failures(cli, exit_code=3)
        assert {finding["scope"] for finding in found} == {"endpoint"}
        assert {finding["what"].split()[1] for finding in found} == set(map(endpoint_public_id, ids[:3]))
        assert any("every attempt has failed since" in finding["message"] for finding in found)
        assert "The service is in order; 3 endpoints are not" in cli("check", exit_code=3)
        assert "The service is in order\n" in cli("check", "--no-endpoints")
        execute(database_dsn, "UPDATE postrider.migration SET checksum = 'x' WHERE number = 1")
        assert "The service is not in order, 1 failed" in cli("check", exit_code=1)


def test_a_daemon_that_no_longer_reports_is_a_sick_service(database_dsn: str, tmp_path: Path) -> None:
    cli = Cli(write_config(tmp_path, database_dsn))
    query(
        database_dsn,
        """INSERT INTO postrider.daemon
             (hostname, pid, version, started_at, heartbeat_at, pooled, reported_at)
           VALUES ('elsewhere', 1, '9.9', now(), now(), true, now() - interval '1 minute')""",
    )
    (finding,) = failures(cli)
    assert (finding["what"], finding["scope"]) == ("service", "service")
    assert "has not reported since" in finding["message"]


def test_what_makes_status_call_the_service_sick_fails_the_check_too(
    database_dsn: str, tmp_path: Path
) -> None:
    cli = Cli(write_config(tmp_path, database_dsn))
    query(
        database_dsn,
        """INSERT INTO postrider.daemon
             (hostname, pid, version, started_at, heartbeat_at, pooled, reported_at)
           VALUES ('elsewhere', 1, '9.9', now(), now(), true, now())""",
    )
    query(
        database_dsn,
        """INSERT INTO postrider.pending (event_id, workspace_id)
           VALUES ('01800000-0000-7000-8000-000000000000', 'w')""",
    )
    query(
        database_dsn,
        """INSERT INTO postrider.capture_rejected (capture, operation, reason)
           VALUES ('deal', 'INSERT', 'why')""",
    )
    oldest, set_aside = [each["message"] for each in failures(cli)]
    assert oldest.startswith("The oldest event came ")
    assert set_aside.startswith("1 captured row is set aside")
    facts = json.loads(cli("status", "--exit-code", "--json", exit_code=1))
    assert facts["service_problems"] == [oldest, set_aside]
