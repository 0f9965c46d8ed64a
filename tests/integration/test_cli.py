"""The commands, as people run them: what they print, and what they say about a mistake."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli import Cli
from tests.support.daemon_process import DaemonProcess, assert_settled, query, write_config
from tests.support.receiver_process import ReceiverProcess


@pytest.fixture
def cli(database_dsn: str, tmp_path: Path) -> Cli:
    return Cli(write_config(tmp_path, database_dsn, retry={"schedule": ["0s"]}))


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
        (["endpoint", "show", "ep_1"], "16 hexadecimal digits"),
        (["endpoint", "show", "ep_00000000000000ff"], "there is no endpoint"),
        (["event", "show", "evt_" + "0" * 32], "there is no event"),
        (["delivery", "show", "dlv_" + "0" * 48], "there is no delivery"),
        (["delivery", "retry"], "Name deliveries"),
        (["emit", "deal updated", "--data", "{}"], "letters, digits"),
        (["emit", "deal.updated", "--data", "{"], "valid JSON"),
        (["emit", "deal.updated", "--data", "@/nonexistent"], "can't be read"),
    ],
)
def test_a_mistake_is_explained(cli: Cli, arguments: list[str], said: str) -> None:
    assert said in cli(*arguments, exit_code=2)


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
    cli("endpoint", "add", "--url", "http://127.0.0.1:1/", "--events", "*")
    assert "no connection" in cli("check", exit_code=1)
