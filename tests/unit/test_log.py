import json
import logging
import os
import pty
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import structlog

from postrider.edges.log import MASK, configure_logging


@pytest.fixture
def log_file(tmp_path: Path) -> Path:
    return tmp_path / "log"


def logged(log_file: Path, event: str = "delivery.succeeded", level: str = "info", **fields: Any) -> str:
    """What one call writes in the json format."""
    with log_file.open("w") as stream:
        configure_logging(level, "json", stream)
        structlog.get_logger().info(event, **fields)
    return log_file.read_text()


def test_json_is_one_line_with_time_level_and_event_first(log_file: Path) -> None:
    line = logged(log_file, delivery="dlv_1", reason="two\nlines", duration_ms=12.3)
    assert line.count("\n") == 1
    fields = json.loads(line)
    assert list(fields) == ["timestamp", "level", "event", "delivery", "reason", "duration_ms"]
    assert fields["level"] == "info"
    assert fields["event"] == "delivery.succeeded"
    assert fields["reason"] == "two\nlines"
    assert fields["timestamp"].endswith("Z")


def test_events_below_the_level_are_not_written(log_file: Path) -> None:
    assert logged(log_file, level="warning") == ""


@pytest.mark.parametrize(
    "key", ["secret", "signing_secrets", "password", "Authorization", "database_dsn", "api_key"]
)
def test_a_field_named_like_a_secret_is_masked_at_any_depth(log_file: Path, key: str) -> None:
    line = logged(
        log_file, endpoint="ep_1", headers={"Accept": "*/*", "nested": {key: "hunter2"}}, **{key: "hunter2"}
    )
    assert "hunter2" not in line
    fields = json.loads(line)
    assert fields[key] == MASK
    assert fields["headers"] == {"Accept": "*/*", "nested": {key: MASK}}
    assert fields["endpoint"] == "ep_1"


@dataclass
class Endpoint:
    name: str
    key: bytes = field(repr=False)


def test_an_object_is_written_as_its_repr_so_that_hidden_fields_stay_hidden(log_file: Path) -> None:
    assert (
        json.loads(logged(log_file, endpoint=Endpoint("a", b"hunter2")))["endpoint"] == "Endpoint(name='a')"
    )


@pytest.mark.parametrize("value", [2**70, "\ud800"])
def test_a_value_that_json_has_trouble_with_is_written_nevertheless(log_file: Path, value: Any) -> None:
    assert json.loads(logged(log_file, value=value))["value"] == value


def test_an_exception_is_one_string_field(log_file: Path) -> None:
    with log_file.open("w") as stream:
        configure_logging("info", "json", stream)
        try:
            raise RuntimeError("no such thing")
        except RuntimeError:
            structlog.get_logger().exception("service.failed")
    (line,) = log_file.read_text().splitlines()
    fields = json.loads(line)
    assert fields["level"] == "error"
    assert fields["exception"].startswith("Traceback")
    assert fields["exception"].endswith("RuntimeError: no such thing")


def test_warnings_of_libraries_come_out_of_the_same_renderer(log_file: Path) -> None:
    with log_file.open("w") as stream:
        configure_logging("debug", "json", stream)
        library = logging.getLogger("aiohttp.server")
        library.info("not this")
        library.warning("slow %s", "callback")
    (line,) = log_file.read_text().splitlines()
    fields = json.loads(line)
    del fields["timestamp"]
    assert fields == {
        "level": "warning",
        "event": "library.message",
        "logger": "aiohttp.server",
        "message": "slow callback",
    }


def test_lines_carry_their_priority_where_journald_reads_them(
    log_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_file.touch()
    status = log_file.stat()
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
    with log_file.open("w") as stream:
        configure_logging("info", "json", stream)
        structlog.get_logger().warning("endpoint.disabled")
        structlog.get_logger().info("endpoint.resumed")
    warning, info = log_file.read_text().splitlines()
    assert warning.startswith('<4>{"timestamp"')
    assert info.startswith('<6>{"timestamp"')


def test_auto_is_coloured_text_on_a_terminal_and_json_elsewhere(
    log_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal:
        configure_logging("info", "auto", terminal)
        structlog.get_logger().info("delivery.succeeded", reason="\x1b[2J")
        shown = os.read(ours, 4096).decode()
    os.close(ours)
    assert "\x1b[" in shown
    assert "\x1b[2J" not in shown
    assert "delivery.succeeded" in shown

    with log_file.open("w") as stream:
        configure_logging("info", "auto", stream)
        structlog.get_logger().info("delivery.succeeded")
    assert json.loads(log_file.read_text())["event"] == "delivery.succeeded"


def test_text_that_is_no_terminal_has_no_colour(log_file: Path) -> None:
    with log_file.open("w") as stream:
        configure_logging("info", "text", stream)
        structlog.get_logger().info("delivery.succeeded", delivery="dlv_1")
    assert "\x1b" not in log_file.read_text()
    assert "delivery=dlv_1" in log_file.read_text()


def test_a_reader_that_went_away_does_not_fail_the_caller() -> None:
    reading, writing = os.pipe()
    stream = os.fdopen(writing, "w")
    configure_logging("info", "json", stream)
    os.close(reading)
    structlog.get_logger().info("delivery.succeeded")
    with pytest.raises(BrokenPipeError):  # what the logger did not let out is still in the stream's buffer
        stream.close()
