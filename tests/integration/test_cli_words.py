"""How commands are called: help, mistyped names, where --config may stand, completion, times."""

import json
import os
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from postrider.cli import cli
from postrider.operations.wording import ago
from tests.support.cli import Cli
from tests.support.daemon_process import query, write_config


def run(*arguments: str, **environ: str) -> "subprocess.CompletedProcess[str]":
    """`postrider` without any configuration but what `environ` says."""
    bare = {name: value for name, value in os.environ.items() if not name.startswith("POSTRIDER_")}
    return subprocess.run(
        [sys.executable, "-m", "postrider", *arguments],
        capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, env=bare | environ,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("names", "usage"),
    [
        ([], "Usage: postrider [OPTIONS] COMMAND"),
        (["endpoint"], "Usage: postrider endpoint [OPTIONS] COMMAND"),
        (["endpoint", "add"], "Usage: postrider endpoint add [OPTIONS]"),
        (["emit"], "Usage: postrider emit [OPTIONS] TYPE"),
    ],
)
def test_help_is_a_command_too(names: list[str], usage: str) -> None:
    done = CliRunner().invoke(cli, ["help", *names], prog_name="postrider")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.startswith(usage)
    assert done.stdout == CliRunner().invoke(cli, [*names, "--help"], prog_name="postrider").stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["endpont", "list"], "No such command 'endpont'. Did you mean 'endpoint'?"),
        (["endpoint", "lst"], "No such command 'lst'. Did you mean 'list'?"),
        (["help", "delivry"], "No such command 'delivry'. Did you mean 'delivery'?"),
        (["help", "delivery", "retri"], "No such command 'retri'. Did you mean 'retry'?"),
        (["help", "emit", "x"], "postrider emit has no commands"),
        (["qqq"], "No such command 'qqq'."),
        (["event", "list", "--limt", "3"], "--limit"),
    ],
)
def test_a_mistyped_name_is_told_the_nearest(arguments: list[str], said: str) -> None:
    done = CliRunner().invoke(cli, arguments, prog_name="postrider")
    assert done.exit_code == 2
    assert said in done.stderr


def test_the_configuration_may_be_named_before_the_command(database_dsn: str, tmp_path: Path) -> None:
    config = str(write_config(tmp_path, database_dsn))
    for arguments in (
        ["--config", config, "endpoint", "list", "--json"],
        ["endpoint", "--config", config, "list", "--json"],
        ["endpoint", "list", "--json", "--config", config],
        ["--config", "/nowhere", "endpoint", "list", "--json", "--config", config],
    ):
        done = run(*arguments)
        assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
    assert "/nowhere" in run("--config", "/nowhere", "status").stderr


def test_a_shell_completes_commands() -> None:
    assert "_postrider_completion" in run(_POSTRIDER_COMPLETE="bash_source").stdout
    done = run(_POSTRIDER_COMPLETE="bash_complete", COMP_WORDS="postrider endpoint re", COMP_CWORD="2")
    assert {"plain,resume"} <= set(done.stdout.split())


@pytest.mark.parametrize("environ", [{}, {"POSTRIDER_CONFIG": "/nowhere.toml"}])
def test_dialects_are_shown_without_a_configuration(environ: dict[str, str]) -> None:
    done = run("dialect", "list", **environ)
    assert done.returncode == 0, done.stderr
    assert "workestra" in done.stdout
    assert ("/nowhere.toml" in done.stderr) == bool(environ)
    assert "X-Stover-Signature" in run("dialect", "show", "stover", **environ).stdout
    assert "/missing" in run("dialect", "list", "--config", "/missing").stderr


def test_dialects_are_shown_where_the_configuration_names_no_database(tmp_path: Path) -> None:
    config = tmp_path / "some.toml"
    config.write_text('[dialect]\ndefault = "heffl"\n')
    assert "heffl (default)" in run("dialect", "list", "--config", str(config)).stdout


def test_a_secret_that_can_be_guessed_is_refused_with_what_is_enough(
    database_dsn: str, tmp_path: Path
) -> None:
    postrider = Cli(write_config(tmp_path, database_dsn))
    endpoint = ("endpoint", "add", "--url", "https://example.com/h", "--events", "*", "--secret-file")
    secret = tmp_path / "secret"
    secret.write_text("12345\n")
    said = postrider(*endpoint, str(secret), exit_code=2)
    assert "at least 16 bytes" in said
    assert "openssl rand -hex 32" in said
    assert "12345" not in said
    assert postrider.json("endpoint", "list") == []
    secret.write_text("0123456789abcdef\n")
    postrider(*endpoint, str(secret))


def test_times_say_their_zone(database_dsn: str, tmp_path: Path) -> None:
    postrider = Cli(write_config(tmp_path, database_dsn))
    postrider("endpoint", "add", "--url", "https://example.com/h", "--events", "*")
    ep = postrider.json("endpoint", "list")[0]["id"]
    event = postrider("emit", "deal.updated", "--data", "{}").strip()
    with_zone = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d"
    assert re.search(rf"created_at: +{with_zone}\n", postrider("endpoint", "show", ep))
    assert re.search(with_zone, postrider("event", "list"))
    assert re.search(rf"occurred_at: +{with_zone}\n", postrider("event", "show", event))


def test_a_sample_is_triggered_as_a_real_event(database_dsn: str, tmp_path: Path) -> None:
    postrider = Cli(write_config(tmp_path, database_dsn, dialect={"default": "heffl"}))
    event = postrider("trigger", "deal.created", "--workspace", "ws_1").strip()
    shown = postrider.json("event", "show", event)
    assert (shown["type"], shown["workspace"], shown["test"]) == ("deal.created", "ws_1", False)
    assert shown["data"]
    assert query(database_dsn, "SELECT count(*) FROM postrider.pending")[0][0] == 1
    assert "Did you mean deal.created?" in postrider("trigger", "deal.craeted", exit_code=2)
    said = postrider("trigger", "deal.created", "--dialect", "standard", exit_code=2)
    assert "has no catalogue" in said
    assert "postrider emit" in said


def test_an_event_is_sent_again_by_the_id_that_a_receiver_logged(database_dsn: str, tmp_path: Path) -> None:
    postrider = Cli(write_config(tmp_path, database_dsn))
    endpoint = ("endpoint", "add", "--url", "https://example.com/h", "--events", "deal.*", "--json")
    ep = json.loads(postrider(*endpoint))["id"]
    query(database_dsn, "UPDATE postrider.endpoint SET state = 'paused'")
    event = postrider("emit", "deal.updated", "--data", "{}").strip()
    query(database_dsn, "DELETE FROM postrider.pending")
    logged = event.replace("evt_", "msg_")
    assert "is queued" in postrider("event", "resend", logged, "--endpoint", ep)
    assert "is not an event id" in postrider("event", "resend", "evt_1", "--endpoint", ep, exit_code=2)


@pytest.mark.parametrize("command", [["event", "list"], ["event", "tail"], ["delivery", "list"]])
def test_a_pattern_that_matches_nothing_is_refused(command: list[str], tmp_path: Path) -> None:
    done = run(*command, "--type", "*.updated", "--config", str(tmp_path / "none.toml"))
    assert (done.returncode, done.stdout) == (2, "")
    assert "'*.updated' is not an event pattern" in done.stderr


@pytest.mark.parametrize("command", [["check"], ["status"]])
def test_help_is_set_in_paragraphs(command: list[str]) -> None:
    shown = CliRunner().invoke(cli, [*command, "--help"], prog_name="postrider").stdout
    described = shown.split("Options:")[0].splitlines()[1:]
    assert {len(line) - len(line.lstrip()) for line in described if line} == {2}
    assert not any("  " in line.strip() for line in described)


def test_nouns_have_the_names_of_the_contract(database_dsn: str, tmp_path: Path) -> None:
    postrider = Cli(write_config(tmp_path, database_dsn))
    endpoint = postrider.json("endpoint", "add", "--url", "https://example.com/h", "--events", "*")
    assert set(endpoint) >= {
        "id", "workspace", "url", "description", "state", "disabled_reason", "failing_since", "events",
        "exclude", "dialect", "concurrency", "rate_per_s", "headers", "ordered", "filter", "external_id",
        "last_delivery", "created_at", "updated_at", "secret",
    }  # fmt: skip
    query(database_dsn, "UPDATE postrider.endpoint SET state = 'paused'")
    evt = postrider.json("emit", "deal.updated", "--data", "{}")["id"]
    query(database_dsn, "DELETE FROM postrider.pending")
    dlv = postrider.json("event", "resend", evt, "--endpoint", endpoint["id"])["delivery"]
    event = {
        "id", "type", "workspace", "occurred_at", "object_type", "object_id", "data", "previous_attributes",
        "actor", "related", "test",
    }  # fmt: skip
    delivery = {
        "id", "event", "event_type", "endpoint", "workspace", "state", "attempts", "due", "reason",
        "updated_at",
    }  # fmt: skip
    for arguments, names in (
        (("event", "show", evt), event),
        (("event", "list"), event),
        (("delivery", "list"), delivery),
        (("delivery", "show", dlv), {*delivery, "history"}),
    ):
        shown = postrider.json(*arguments)
        assert set(shown[0] if isinstance(shown, list) else shown) >= names, arguments


def test_notes_of_a_dialect_fit_the_terminal() -> None:
    shown = run("dialect", "show", "workestra", COLUMNS="60").stdout
    notes = shown[shown.index("The document describes") : shown.index("event type ")]
    assert max(map(len, notes.splitlines())) <= 60
    assert "closed_catalogue:   yes\n" in shown


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0 s ago"), (-0.2, "0 s ago"), (-2, "in 2 s"), (90, "2 m ago")]
)
def test_the_database_s_clock_may_be_a_moment_ahead(seconds: float, text: str) -> None:
    now = datetime.now(UTC)
    assert ago(now - timedelta(seconds=seconds), now) == text
