"""The commands, as people run them: what they print, and what they say about a mistake."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli import Cli
from tests.support.daemon_process import SECRET, DaemonProcess, assert_settled, query, write_config
from tests.support.receiver_process import ReceiverProcess


@pytest.fixture
def cli(database_dsn: str, tmp_path: Path) -> Cli:
    config = write_config(tmp_path, database_dsn, retry={"schedule": ["0s"]})
    config.chmod(0o600)
    return Cli(config)


def test_an_endpoint_from_add_to_delete(cli: Cli) -> None:
    added = cli.json(
        "endpoint", "add", "--url", "https://example.com/h", "--events", "deal.*,contact.created",
        "--exclude", "deal.deleted", "--header", "X-Api-Key: hunter2", "--concurrency", "3",
    )  # fmt: skip
    assert added["secret"].startswith("whsec_")
    assert (added["events"], added["exclude"]) == (["deal.*", "contact.created"], ["deal.deleted"])
    ep = added["id"]
    shown = cli.json("endpoint", "show", ep)
    assert "secret" not in shown
    assert "hunter2" not in json.dumps(shown)
    assert cli.json("endpoint", "show", ep, "--secret")["secret"] == added["secret"]
    assert cli.json("endpoint", "update", ep, "--events", "*")["events"] == ["*"]
    assert "paused" in cli("endpoint", "pause", ep)
    assert cli.json("endpoint", "list")[0]["state"] == "paused"
    assert "resumed" in cli("endpoint", "resume", ep)
    assert "needs a confirmation" in cli("endpoint", "delete", ep, exit_code=2)
    assert "deleted" in cli("endpoint", "delete", ep, "--yes")
    assert cli.json("endpoint", "list") == []
    assert cli.json("endpoint", "list", "--all")[0]["state"] == "deleted"
    cli("endpoint", "pause", ep, exit_code=1)


def test_bounds_of_an_endpoint_are_set_kept_and_lifted(cli: Cli) -> None:
    def bounds(facts: Any) -> tuple[int | None, float | None]:
        return facts["concurrency"], facts["rate_per_s"]

    added = cli.json(
        "endpoint", "add", "--url", "https://example.com/h", "--events", "*",
        "--concurrency", "3", "--rate", "0.1/s",
    )  # fmt: skip
    ep = added["id"]
    assert bounds(added) == (3, 0.1)
    assert bounds(cli.json("endpoint", "update", ep, "--description", "x")) == (3, 0.1)
    assert bounds(cli.json("endpoint", "update", ep, "--rate", "30/m")) == (3, 0.5)
    assert bounds(cli.json("endpoint", "list")[0]) == (3, 0.5)
    assert "rate_per_s:       0.5\n" in cli("endpoint", "show", ep)
    assert bounds(cli.json("endpoint", "update", ep, "--rate", "none")) == (3, None)
    assert bounds(cli.json("endpoint", "update", ep, "--concurrency", "none")) == (None, None)
    assert "Write a number above 0 and /s" in cli("endpoint", "update", ep, "--rate", "0/s", exit_code=2)
    cli("endpoint", "update", ep, "--concurrency", "0", exit_code=2)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["endpoint", "add", "--url", "ftp://x/", "--events", "*"], "http"),
        (["endpoint", "add", "--url", "https://x.example/", "--events", "deals*"], "deals.*"),
        (
            ["endpoint", "add", "--url", "https://x.example/", "--events", "*", "--dialect", "standrd"],
            "standard",
        ),
        (["endpoint", "add", "--url", "https://x.example/", "--events", "*", "--header", "Host: y"], "Host"),
        (["endpoint", "add", "--url", "https://x.example/", "--events", "*", "--rate", "5"], "such as 5/s"),
        (
            ["endpoint", "add", "--url", "https://10.0.0.1/", "--events", "*"],
            "10.0.0.1/32 to network.allow",
        ),
        (["endpoint", "add", "--url", "https://a.example:25/", "--events", "*"], "network.allow_ports"),
        (["endpoint", "add", "--url", "https://010.0.0.1/", "--events", "*"], "leading zero"),
        (["endpoint", "show", "ep_1"], "16 hexadecimal digits"),
        (["endpoint", "show", "ep_00000000000000ff"], "there is no endpoint"),
        (["event", "show", "evt_" + "0" * 32], "there is no event"),
        (["delivery", "show", "dlv_" + "0" * 48], "there is no delivery"),
        (["delivery", "retry"], "Name deliveries"),
        (["delivery", "retry", "--since", "1h"], "(--status)"),
        (["delivery", "retry", "--since", "1h", "--status", "waiting"], "(--status)"),
        (["emit", "deal updated", "--data", "{}"], "letters, digits"),
        (["emit", "deal.updated", "--data", "{"], "valid JSON"),
        (["emit", "deal.updated", "--data", "@/nonexistent"], "can't be read"),
    ],
)
def test_a_mistake_is_explained(cli: Cli, arguments: list[str], said: str) -> None:
    assert said in cli(*arguments, exit_code=2)


def test_an_endpoint_is_not_moved_to_an_address_that_is_never_sent_to(cli: Cli) -> None:
    ep = cli.json("endpoint", "add", "--url", "https://example.com/h", "--events", "*")["id"]
    said = cli("endpoint", "update", ep, "--url", "http://169.254.169.254/latest", exit_code=2)
    assert "169.254.169.254 is cloud-metadata" in said
    assert "allow" not in said
    assert cli.json("endpoint", "show", ep)["url"] == "https://example.com/h"


def test_a_support_person_finds_out_why_it_failed_and_sends_it_again(
    cli: Cli, database_dsn: str, tmp_path: Path
) -> None:
    with ReceiverProcess(mode="500") as receiver:
        ep = cli.json("endpoint", "add", "--url", receiver.url("/a"), "--events", "*")["id"]
        assert "HTTP 500" in cli("endpoint", "test", ep, exit_code=1)
        event_id = cli("emit", "deal.updated", "--data", '{"id":"dl_1"}').strip()
        assert cli.json("event", "show", event_id)["pending"] is True
        with DaemonProcess(tmp_path / "postrider.toml"):
            assert_settled(database_dsn, ("failed",))
            (failed, tried) = cli.json("delivery", "list", "--endpoint", ep, "--status", "failed")
            assert tried["event_type"] == "postrider.test"
            assert (failed["event"], failed["reason"]) == (event_id, "HTTP 500")
            (attempt,) = cli.json("delivery", "show", failed["id"])["history"]
            assert attempt["status"] == 500
            receiver.set_mode("ok")
            assert cli.json("delivery", "retry", failed["id"])["queued"] == [failed["id"]]
            receiver.wait_for(1)
        assert_settled(database_dsn, ("succeeded", "failed"))
        assert "succeeded" in cli("delivery", "list")
        assert event_id in cli("event", "list", "--type", "deal.*")
        assert query(database_dsn, "SELECT count(*) FROM postrider.every_attempt")[0][0] == 3


def test_check_finds_everything_in_order_but_no_daemon(cli: Cli) -> None:
    findings = {finding["what"]: finding["level"] for finding in cli.json("check")}
    assert findings.pop("daemon") == "warn"
    assert set(findings.values()) == {"ok"}


def test_check_names_an_endpoint_that_can_not_be_reached(cli: Cli) -> None:
    cli("endpoint", "add", "--url", "http://127.0.0.1:2/", "--events", "*")
    assert "no connection" in cli("check", exit_code=3)


@pytest.mark.parametrize(
    ("mode", "level", "hint"),
    [
        (0o600, "ok", ""),
        (0o640, "ok", ""),
        (0o644, "warn", "chmod g-w,o= "),
        (0o660, "warn", "chmod g-w,o= "),
        (0o622, "fail", "chmod g-w,o= "),
    ],
)
def test_check_warns_of_secrets_that_other_users_can_read_or_change(
    database_dsn: str, tmp_path: Path, mode: int, level: str, hint: str
) -> None:
    key_file = tmp_path / "a key"
    key_file.write_text("A" * 43 + "=\n")
    key_file.chmod(mode)
    config = write_config(tmp_path, database_dsn, secrets={"key_file": str(key_file)})
    config.write_text('#dsn = "postgresql://postrider:hunter2@localhost/crm"\n' + config.read_text())
    config.chmod(mode)
    printed = Cli(config)("check", "--json", exit_code=int(level == "fail"))
    found = {finding["what"]: finding for finding in json.loads(printed)}
    for what, path in (("configuration file", f"{config}"), ("key file", f"'{key_file}'")):
        assert found[what]["level"] == level
        assert found[what]["hint"] == (hint and hint + path) or level == "ok"


def test_check_lets_everybody_read_a_configuration_without_a_password(
    database_dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(tmp_path, "postgresql://postrider@localhost/crm")
    config.chmod(0o644)
    monkeypatch.setenv("POSTRIDER_DATABASE_DSN", database_dsn)
    found = Cli(config).json("check")
    assert found[1]["what"] == "configuration file"
    assert found[1]["level"] == "ok"


NOT_UTF_8 = "caf\udce9"
"""The byte e9, as an argument that is not UTF-8 comes to a program."""


@pytest.mark.parametrize(
    "arguments",
    [
        ["endpoint", "list", "--workspace", NOT_UTF_8],
        ["endpoint", "add", "--url", "http://127.0.0.1:2/", "--events", "*", "--workspace", NOT_UTF_8],
        ["endpoint", "add", "--url", "http://127.0.0.1:2/", "--events", "*", "--description", NOT_UTF_8],
        ["emit", "deal.updated", "--data", "{}", "--workspace", NOT_UTF_8],
        ["emit", "deal.updated", "--data", '{"name":"' + NOT_UTF_8 + '"}'],
        ["event", "list", "--workspace", NOT_UTF_8],
        ["event", "list", "--type", NOT_UTF_8],
        ["capture", "retry", NOT_UTF_8],
    ],
)
def test_an_argument_that_is_not_utf_8_is_explained(cli: Cli, arguments: list[str]) -> None:
    assert "Traceback" not in cli(*arguments, exit_code=2)


def test_a_secret_that_is_not_utf_8_is_explained(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_bytes(b"caf\xe9")
    endpoint = ("endpoint", "add", "--url", "http://127.0.0.1:2/", "--events", "*")
    assert "can't be read" in cli(*endpoint, "--secret-file", str(path), exit_code=2)


@pytest.mark.parametrize("workspace", ["", "w" * 257])
def test_a_workspace_that_no_event_can_have_is_refused(cli: Cli, workspace: str) -> None:
    endpoint = ("endpoint", "add", "--url", "http://127.0.0.1:2/", "--events", "*")
    assert "1 to 256 characters" in cli(*endpoint, "--workspace", workspace, exit_code=2)
    cli(*endpoint, "--workspace", "w" * 256)


def test_data_that_is_no_json_object_is_not_sent(cli: Cli) -> None:
    with ReceiverProcess(SECRET) as receiver:
        ep = cli.json("endpoint", "add", "--url", receiver.url(), "--events", "deal.updated")["id"]
        for data in ("{", "", "[]", '{"a":NaN}', "{" * 3000):
            assert "the data is not" in cli("endpoint", "test", ep, "--data", data, exit_code=2)
        assert receiver.stats()["received"] == 0


def test_an_id_that_no_endpoint_can_have_is_explained(cli: Cli) -> None:
    for ep in ("ep_ffffffffffffffff", "ep_+000000000000001"):
        assert "is not an endpoint id" in cli("endpoint", "show", ep, exit_code=2)
        assert "is not a delivery id" in cli("delivery", "show", f"dlv_{'0' * 32}{ep[3:]}", exit_code=2)
