"""Header values of endpoints are secrets: given by file, sealed at rest, sent, and shown nowhere."""

import base64
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

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

TOKEN = "Bearer s3cr3t-t0k3n"


@pytest.fixture
def sealing(database_dsn: str, tmp_path: Path) -> Path:
    """A configuration with a key file."""
    key_file = tmp_path / "key"
    key_file.write_text(base64.b64encode(os.urandom(32)).decode())
    return write_config(tmp_path, database_dsn, "sealing", secrets={"key_file": str(key_file)})


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(TOKEN + "\n")
    return path


def stored(dsn: str) -> str:
    """All that the tables hold of endpoints, as text."""
    values = [tuple(row.values()) for row in query(dsn, "SELECT * FROM postrider.endpoint")]
    values += [tuple(row.values()) for row in query(dsn, "SELECT * FROM postrider.endpoint_secret")]
    return repr(values)


def test_a_header_from_a_file_is_sealed_sent_and_shown_by_name_only(
    database_dsn: str, sealing: Path, token_file: Path
) -> None:
    cli = Cli(sealing)
    with ReceiverProcess() as receiver:
        added = cli.json(
            "endpoint", "add", "--url", receiver.url("/a"), "--events", "*",
            "--header", f"Authorization:@{token_file}", "--header", "X-Plain: visible",
        )  # fmt: skip
        assert added["headers"] == ["Authorization", "X-Plain"]
        assert TOKEN not in stored(database_dsn)
        assert "visible" not in stored(database_dsn)
        with DaemonProcess(sealing) as daemon:
            emit(database_dsn)
            receiver.wait_for(1)
            headers = dict(receiver.requests(1)[0]["headers"])
            assert (headers["authorization"], headers["x-plain"]) == (TOKEN, "visible")
            cli("endpoint", "update", added["id"], "--description", "still with its headers")
            assert cli.json("endpoint", "show", added["id"])["headers"] == ["Authorization", "X-Plain"]
            cli("endpoint", "update", added["id"], "--header", f"X-Other:@{token_file}")
            assert cli.json("endpoint", "list")[0]["headers"] == ["X-Other"]
        assert TOKEN not in daemon.log_path.read_text()
    assert TOKEN not in cli("endpoint", "show", added["id"])


def test_a_daemon_with_a_key_leaves_no_secret_in_clear_text(
    database_dsn: str, tmp_path: Path, sealing: Path
) -> None:
    with ReceiverProcess(SECRET) as receiver:
        for number in range(150):
            add_endpoint(database_dsn, receiver.url("/a"), f"type_{number}", headers={"Authorization": TOKEN})
        assert TOKEN in stored(database_dsn)
        assert SECRET in stored(database_dsn)
        with DaemonProcess(sealing) as daemon:
            assert daemon.wait_for_log("secrets.sealed")["values"] == 300
            assert TOKEN not in stored(database_dsn)
            assert SECRET not in stored(database_dsn)
            emit(database_dsn, event_type="type_7")
            receiver.wait_for(1)
            assert dict(receiver.requests(1)[0]["headers"])["authorization"] == TOKEN
        assert not daemon.logged("endpoint.unusable")


def test_a_reload_that_brings_a_key_seals_too(database_dsn: str, tmp_path: Path, sealing: Path) -> None:
    config = write_config(tmp_path, database_dsn)
    add_endpoint(database_dsn, "http://127.0.0.1:99/", headers={"Authorization": TOKEN})
    with DaemonProcess(config) as daemon:
        daemon.wait_for_log("daemon.started")
        assert TOKEN in stored(database_dsn)
        config.write_text(sealing.read_text())
        daemon.signal(signal.SIGHUP)
        wait_until(lambda: TOKEN not in stored(database_dsn), "the sealing")
        assert daemon.wait_for_log("config.reloaded")["needs_restart"] == []


def test_headers_that_an_older_release_writes_replace_sealed_ones(
    database_dsn: str, sealing: Path, token_file: Path
) -> None:
    cli = Cli(sealing)
    added = cli.json(
        "endpoint",
        "add",
        "--url",
        "http://127.0.0.1:99/",
        "--events",
        "*",
        "--header",
        f"X-A:@{token_file}",
    )
    query(database_dsn, """UPDATE postrider.endpoint SET headers = '{"X-B": "b"}'""")
    assert cli.json("endpoint", "show", added["id"])["headers"] == ["X-B"]


def test_deleting_an_endpoint_deletes_its_headers(database_dsn: str, tmp_path: Path) -> None:
    cli = Cli(write_config(tmp_path, database_dsn))
    added = cli.json(
        "endpoint", "add", "--url", "http://127.0.0.1:99/", "--events", "*", "--header", f"X-Key: {TOKEN}"
    )
    assert TOKEN in stored(database_dsn)
    cli("endpoint", "delete", added["id"], "--yes")
    assert TOKEN not in stored(database_dsn)


def test_a_header_comes_from_stdin(database_dsn: str, tmp_path: Path) -> None:
    config = write_config(tmp_path, database_dsn)
    command = ["endpoint", "add", "--url", "http://127.0.0.1:99/", "--events", "*", "--header", "X-Key:@-"]
    done = subprocess.run(
        [sys.executable, "-m", "postrider", *command, "--config", str(config)],
        input=TOKEN + "\n",
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stdout + done.stderr
    assert (
        query(database_dsn, "SELECT headers->>'X-Key' AS value FROM postrider.endpoint")[0]["value"] == TOKEN
    )


def test_a_header_file_that_can_not_be_used_is_refused_without_a_word_of_it(
    database_dsn: str, tmp_path: Path
) -> None:
    cli = Cli(write_config(tmp_path, database_dsn))
    missing, empty, lines = tmp_path / "missing", tmp_path / "empty", tmp_path / "lines"
    empty.write_text("\n")
    lines.write_text("two\nlines of s3cr3t")
    for path, said in ((missing, "can't be read"), (empty, "is empty"), (lines, "line break")):
        refusal = cli(
            "endpoint", "add", "--url", "http://127.0.0.1:99/", "--events", "*", "--header", f"X-Key:@{path}",
            exit_code=2,
        )  # fmt: skip
        assert said in refusal
        assert "s3cr3t" not in refusal


@pytest.fixture
def other_key(database_dsn: str, tmp_path: Path) -> Path:
    """A configuration with another key than the daemon's."""
    key_file = tmp_path / "other"
    key_file.write_text(base64.b64encode(os.urandom(32)).decode())
    return write_config(tmp_path, database_dsn, "other", secrets={"key_file": str(key_file)})


def test_nothing_is_sealed_with_another_key_than_the_daemons(
    database_dsn: str, sealing: Path, other_key: Path, token_file: Path
) -> None:
    """Neither would the daemon open what is added, nor go on with an endpoint that works."""
    header = ("--header", f"Authorization:@{token_file}")
    cli, other = Cli(sealing), Cli(other_key)
    added = cli.json("endpoint", "add", "--url", "http://127.0.0.1:2/", "--events", "*", *header)
    before = stored(database_dsn)
    other("endpoint", "update", added["id"], *header, exit_code=1)
    other("endpoint", "add", "--url", "http://127.0.0.1:2/", "--events", "*", exit_code=1)
    assert stored(database_dsn) == before
    assert cli.json("endpoint", "show", added["id"])["unusable"] is None
    cli("endpoint", "update", added["id"], *header)


def test_a_key_that_opens_only_headers_is_the_right_one(
    database_dsn: str, tmp_path: Path, sealing: Path, other_key: Path, token_file: Path
) -> None:
    """The secret lies in clear text, from before there was a key; the header does not."""
    plain = Cli(write_config(tmp_path, database_dsn, "plain"))
    endpoint = ("--url", "http://127.0.0.1:2/", "--events", "*")
    header = ("--header", f"Authorization:@{token_file}")
    added = plain.json("endpoint", "add", *endpoint)
    Cli(sealing)("endpoint", "update", added["id"], *header)
    Cli(other_key)("endpoint", "update", added["id"], *header, exit_code=1)
    Cli(other_key)("endpoint", "add", *endpoint, exit_code=1)
    assert Cli(sealing).json("endpoint", "show", added["id"])["unusable"] is None


def test_headers_that_could_never_be_sent_together_are_refused(database_dsn: str, tmp_path: Path) -> None:
    cli = Cli(write_config(tmp_path, database_dsn))
    endpoint = ("endpoint", "add", "--url", "http://127.0.0.1:2/", "--events", "*")
    most = [part for n in range(2) for part in ("--header", f"X-Long-{n}: {'a' * 7000}")]
    cli(*endpoint, *most)
    said = cli(*endpoint, *most, "--header", f"X-More: {'a' * 2000}", exit_code=2)
    assert "the headers take 16,0" in said
