"""The admin server: what a load balancer, systemd and Prometheus ask."""

import json
import urllib.error
import urllib.request
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import execute
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


def get(base: str, path: str) -> tuple[int, str]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(base + path, timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def admin_url(daemon: DaemonProcess) -> str:
    return f"http://{daemon.wait_for_log('admin.listening')['addresses'][0]}"


def test_health_readiness_and_metrics(database_dsn: str, tmp_path: Path) -> None:
    config = write_config(tmp_path, database_dsn, admin={"listen": "127.0.0.1:0"})
    with ReceiverProcess(SECRET) as receiver:
        add_endpoint(database_dsn, receiver.url("/a"))
        with DaemonProcess(config) as daemon:
            check_answers(database_dsn, daemon, receiver)


def check_answers(database_dsn: str, daemon: DaemonProcess, receiver: ReceiverProcess) -> None:
    daemon.wait_for_log("daemon.started")
    base = admin_url(daemon)
    assert get(base, "/healthz")[0] == 200
    status, body = get(base, "/readyz")
    assert (status, json.loads(body)) == (200, {"database": True, "schema": True, "listener": True})
    emit(database_dsn, 3)
    receiver.wait_for(3)

    def samples() -> dict[tuple[str, ...], float]:
        return {
            (sample.name, *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(get(base, "/metrics")[1])
            for sample in family.samples
        }

    wait_until(lambda: samples().get(("postrider_deliveries_total", "succeeded")) == 3, 5, "the count")
    found = samples()
    assert found[("postrider_attempts_total", "ok")] == 3
    assert found[("postrider_delivery_lag_seconds_count",)] == 3
    assert found[("postrider_listener_up",)] == 1


def test_it_is_not_ready_with_another_schema(database_dsn: str, tmp_path: Path) -> None:
    config = write_config(tmp_path, database_dsn, admin={"listen": "127.0.0.1:0"})
    with DaemonProcess(config) as daemon:
        daemon.wait_for_log("daemon.started")
        query(database_dsn, "UPDATE postrider.migration SET checksum = 'x' WHERE number = 1")
        status, body = get(admin_url(daemon), "/readyz")
        assert (status, json.loads(body)["schema"]) == (503, False)


def test_it_is_not_ready_but_healthy_while_the_database_is_away(
    database_dsn: str, server_dsn: str, tmp_path: Path
) -> None:
    name = query(database_dsn, "SELECT current_database() AS name")[0]["name"]
    config = write_config(tmp_path, database_dsn, admin={"listen": "127.0.0.1:0"})
    with DaemonProcess(config) as daemon:
        daemon.wait_for_log("daemon.started")
        base = admin_url(daemon)
        execute(
            server_dsn,
            f"ALTER DATABASE {name} ALLOW_CONNECTIONS false",
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'",
        )
        try:
            wait_until(lambda: get(base, "/readyz")[0] == 503, 10, "unreadiness")
            assert get(base, "/healthz")[0] == 200
        finally:
            execute(server_dsn, f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        wait_until(lambda: get(base, "/readyz")[0] == 200, 10, "readiness")


def test_a_port_in_use_is_a_clear_error(database_dsn: str, tmp_path: Path) -> None:
    with ReceiverProcess() as other:
        config = write_config(tmp_path, database_dsn, admin={"listen": f"127.0.0.1:{other.port}"})
        with DaemonProcess(config) as daemon:
            assert daemon.process.wait(20) == 2
            text = daemon.log_path.read_text()
            assert "admin.listen: can't listen" in text
            assert "Traceback" not in text
