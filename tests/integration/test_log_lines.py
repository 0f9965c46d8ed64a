"""What an operator reads in the log of a daemon beside dead endpoints, and when it can't go on."""

import json
from pathlib import Path
from typing import Any

import pytest

from postrider.domain.model import endpoint_public_id
from tests.support.daemon_process import (
    DaemonProcess,
    add_endpoint,
    emit,
    query,
    wait_until,
    write_config,
)
from tests.support.receiver_process import ReceiverProcess

STATES = "SELECT state, count(*) AS n FROM postrider.delivery GROUP BY state"


def wait_for_deliveries(dsn: str, state: str, count: int) -> None:
    wait_until(lambda: {row["state"]: row["n"] for row in query(dsn, STATES)}.get(state) == count, state)


def lines_about(daemon: DaemonProcess, endpoint: int) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in daemon.log_path.read_text().splitlines()]
    name = endpoint_public_id(endpoint)
    return [line for line in lines if line.get("endpoint") == name and not line["event"].startswith("lane.")]


def test_a_dead_endpoint_is_told_at_once_and_then_counted(database_dsn: str, tmp_path: Path) -> None:
    config = write_config(tmp_path, database_dsn, retry={"schedule": ["0s", "1h"]})
    with ReceiverProcess(mode="500") as receiver, DaemonProcess(config) as daemon:
        endpoint = add_endpoint(database_dsn, receiver.url("/a"), concurrency=1)
        daemon.wait_for_log("daemon.started")
        emit(database_dsn, 4)
        assert daemon.wait_for_log("delivery.retrying")["reason"] == "HTTP 500"
        wait_for_deliveries(database_dsn, "retrying", 4)
        assert daemon.terminate() == 0
        first, rest = lines_about(daemon, endpoint)
        assert (first["event"], first["level"], first["attempt"]) == ("delivery.retrying", "info", 1)
        assert (rest["event"], rest["level"]) == ("endpoint.failures", "info")
        assert (rest["retrying"], rest["failed"], rest["reasons"]) == (3, 0, {"HTTP 500": 3})


def test_deliveries_that_are_given_up_are_counted_in_a_warning(database_dsn: str, tmp_path: Path) -> None:
    config = write_config(tmp_path, database_dsn, retry={"schedule": ["0s"]}, log={"level": "warning"})
    with ReceiverProcess(mode="500") as receiver, DaemonProcess(config) as daemon:
        endpoint = add_endpoint(database_dsn, receiver.url("/a"), concurrency=1)
        emit(database_dsn, 4)
        wait_for_deliveries(database_dsn, "failed", 4)
        assert daemon.terminate() == 0
        first, rest = lines_about(daemon, endpoint)
        assert (first["event"], first["level"]) == ("delivery.failed", "warning")
        assert (rest["event"], rest["level"], rest["failed"]) == ("endpoint.failures", "warning", 3)


def test_at_debug_each_delivery_has_its_line(database_dsn: str, tmp_path: Path) -> None:
    config = write_config(tmp_path, database_dsn, retry={"schedule": ["0s", "1h"]}, log={"level": "debug"})
    with ReceiverProcess(mode="500") as receiver, DaemonProcess(config) as daemon:
        add_endpoint(database_dsn, receiver.url("/a"), concurrency=1)
        emit(database_dsn, 4)
        wait_until(lambda: len(daemon.logged("delivery.retrying")) == 4, "all lines")
        levels = [line["level"] for line in daemon.logged("delivery.retrying")]
        assert levels == ["info", "debug", "debug", "debug"]


def test_a_forbidden_address_is_told_once(database_dsn: str, tmp_path: Path) -> None:
    config = write_config(tmp_path, database_dsn, network={"allow": []}, retry={"schedule": ["0s"]})
    with DaemonProcess(config) as daemon:
        add_endpoint(database_dsn, "http://127.0.0.1:9999/a", concurrency=1)
        emit(database_dsn, 4)
        wait_for_deliveries(database_dsn, "failed", 4)
        assert daemon.terminate() == 0
        first, rest = daemon.logged("address.blocked")
        assert first["address"] == "127.0.0.1"
        assert "loopback" in first["reason"]
        assert (rest["address"], rest["requests"]) == ("127.0.0.1", 3)


@pytest.mark.parametrize("log", ["auto", "json", "text"])
def test_what_ends_a_daemon_is_json_in_a_json_log(database_dsn: str, tmp_path: Path, log: str) -> None:
    with ReceiverProcess() as other:
        config = write_config(
            tmp_path, database_dsn, admin={"listen": f"127.0.0.1:{other.port}"}, log={"format": log}
        )
        with DaemonProcess(config) as daemon:
            assert daemon.process.wait(20) == 1
            said = daemon.log_path.read_text()
            if log == "text":
                assert said.startswith("postrider: admin.listen: can't listen")
                return
            (last,) = [json.loads(line) for line in said.splitlines()]
            assert (last["event"], last["level"]) == ("daemon.failed", "critical")
            assert "admin.listen: can't listen" in last["reason"]
            assert "Choose a free port" in last["hint"]


def test_so_is_a_configuration_that_can_not_be_read(tmp_path: Path) -> None:
    config = tmp_path / "bad.toml"
    config.write_text("[databse]\n")
    with DaemonProcess(config) as daemon:
        assert daemon.process.wait(20) == 2
        (last,) = daemon.logged("daemon.failed")
        assert "databse" in last["reason"]


def test_so_is_one_that_is_no_file(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path) as daemon:
        assert daemon.process.wait(20) == 2
        (last,) = daemon.logged("daemon.failed")
        assert f"{tmp_path} can't be read: Is a directory" in last["reason"]


def test_so_is_a_defect(database_dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write_config(tmp_path, database_dsn)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "sitecustomize.py").write_text("import uvloop\nuvloop.new_event_loop = lambda: 1 / 0\n")
    monkeypatch.setenv("PYTHONPATH", f"{broken}:{Path(__file__).parents[2] / 'daemon'}")
    with DaemonProcess(config) as daemon:
        assert daemon.process.wait(20) == 1
        (last,) = [json.loads(line) for line in daemon.log_path.read_text().splitlines()]
        assert last["reason"].startswith("ZeroDivisionError")
        assert "Traceback" in last["exception"]


def test_a_schema_that_is_not_there_is_told_in_json(empty_database_dsn: str, tmp_path: Path) -> None:
    with DaemonProcess(write_config(tmp_path, empty_database_dsn)) as daemon:
        assert daemon.process.wait(20) != 0
        assert "postrider migrate" in daemon.logged("daemon.failed")[0]["hint"]
