"""The admin server: what a load balancer, systemd and Prometheus ask."""

import json
import math
import resource
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from postrider.domain.model import EndpointState, ErrorKind
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


def samples(base: str) -> dict[tuple[str, ...], float]:
    """Metrics by their names and labels."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(get(base, "/metrics")[1])
        for sample in family.samples
    }


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

    wait_until(lambda: samples(base).get(("postrider_deliveries_total", "succeeded")) == 3, "the count")
    found = samples(base)
    assert found[("postrider_attempts_total", "ok")] == 3
    assert found[("postrider_delivery_lag_seconds_count",)] == 3
    assert found[("postrider_listener_up",)] == 1


FROM_THE_START = {
    "postrider_deliveries_total": ["succeeded", "retrying", "failed", "cancelled", "fenced"],
    "postrider_attempts_total": ["ok", *ErrorKind],
    "postrider_blocked_addresses_total": ["loopback", "private", "cloud-metadata", "foreign-port"],
    "postrider_lanes": ["throttled", "broken", "recovering", "slow", "limited", "behind"],
    "postrider_service_failures_total": ["dispatcher", "recorder", "reporter", "partitions"],
    "postrider_database_deliveries": ["waiting", "kept", "retrying"],
    "postrider_database_oldest_delivery_age_seconds": ["waiting", "kept", "retrying"],
    "postrider_database_endpoints": ["active", "failing", "unverified", "paused", "disabled"],
    "postrider_database_daemons": ["alive", "dead"],
    "postrider_database_partitions_ahead": ["outbox", "delivery", "attempt"],
}


def test_metrics_of_the_whole_database(database_dsn: str, tmp_path: Path) -> None:
    retrying = endpoint_in(database_dsn, "active", deliveries=3, state="retrying", hours=2)
    query(database_dsn, "UPDATE postrider.endpoint SET failing_since = now() WHERE id = $1", retrying)
    endpoint_in(database_dsn, "active", deliveries=0)
    endpoint_in(database_dsn, "disabled", deliveries=1, hours=3)
    endpoint_in(database_dsn, "paused", deliveries=4, hours=5)
    with running(database_dsn, tmp_path) as (daemon, port):
        base = f"http://127.0.0.1:{port}"

        def counted() -> bool:
            return samples(base)[("postrider_database_counted_timestamp_seconds",)] > daemon.started_at

        wait_until(counted, "the first count")
        wait_until(
            lambda: samples(base)[("postrider_database_partitions_ahead", "outbox")] == 7, "partitions"
        )
        found = samples(base)
        for name, values in FROM_THE_START.items():
            assert [value for value in values if (name, value) not in found] == []
        assert found[("postrider_database_deliveries", "retrying")] == 3
        assert 7200 <= found[("postrider_database_oldest_delivery_age_seconds", "retrying")] < 7300
        assert found[("postrider_database_deliveries", "kept")] == 5
        assert 18000 <= found[("postrider_database_oldest_delivery_age_seconds", "kept")] < 18100
        assert found[("postrider_database_deliveries", "waiting")] == 0
        assert found[("postrider_database_oldest_delivery_age_seconds", "waiting")] == 0
        states = {key[1]: value for key, value in found.items() if key[0] == "postrider_database_endpoints"}
        assert states == {"active": 1, "failing": 1, "unverified": 0, "paused": 1, "disabled": 1}
        assert found[("postrider_database_daemons", "alive")] == 1
        assert found[("postrider_restart_due",)] == 0


def test_no_metric_of_the_database_lies_before_it_was_reached(tmp_path: Path) -> None:
    config = write_config(tmp_path, "postgresql://nobody@127.0.0.1:1/none", admin={"listen": "127.0.0.1:0"})
    with DaemonProcess(config) as daemon:
        found = samples(admin_url(daemon))
        assert math.isnan(found[("postrider_database_daemons", "alive")])
        assert math.isnan(found[("postrider_database_deliveries", "waiting")])
        assert found[("postrider_deliveries_total", "failed")] == 0


def endpoint_in(
    dsn: str, endpoint_state: str, *, deliveries: int, state: str = "waiting", hours: int = 0
) -> int:
    """An endpoint, with deliveries of events that are so old."""
    endpoint = add_endpoint(dsn, "http://127.0.0.1:2/", state=EndpointState(endpoint_state))
    query(
        dsn,
        """INSERT INTO postrider.delivery (event_id, endpoint_id, workspace_id, state, due, updated_at)
           SELECT (lpad(to_hex($4::bigint), 12, '0') || lpad(to_hex(n), 20, '0'))::uuid,
                  $1, 'default', $3, CASE WHEN $3 = 'retrying' THEN now() + interval '1 h' END, now()
           FROM generate_series(1, $2) AS n""",
        endpoint,
        deliveries,
        state,
        int((time.time() - hours * 3600) * 1000),
    )
    return endpoint


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
            wait_until(lambda: get(base, "/readyz")[0] == 503, "unreadiness")
            assert get(base, "/healthz")[0] == 200
        finally:
            execute(server_dsn, f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        wait_until(lambda: get(base, "/readyz")[0] == 200, "readiness")


def test_a_port_in_use_is_a_clear_error(database_dsn: str, tmp_path: Path) -> None:
    with ReceiverProcess() as other:
        config = write_config(tmp_path, database_dsn, admin={"listen": f"127.0.0.1:{other.port}"})
        with DaemonProcess(config) as daemon:
            assert daemon.process.wait(20) == 1  # systemd starts it again
            text = daemon.log_path.read_text()
            assert "admin.listen: can't listen" in text
            assert "Traceback" not in text


HALF_REQUESTS = 900
DESCRIPTORS = 256


@contextmanager
def running(dsn: str, directory: Path, **admin: str) -> Iterator[tuple[DaemonProcess, int]]:
    """A daemon, and the port of its admin server."""
    with DaemonProcess(write_config(directory, dsn, admin={"listen": "127.0.0.1:0", **admin})) as daemon:
        port = int(admin_url(daemon).rpartition(":")[2])
        daemon.wait_for_log("daemon.started")
        yield daemon, port


def answer_to(port: int, request: bytes) -> bytes:
    """All that comes back until the server hangs up."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(65_536), b""))


def status_for(port: int, host: str) -> int:
    answer = answer_to(port, f"GET /healthz HTTP/1.1\r\n{host}Connection: close\r\n\r\n".encode())
    return int(answer.split()[1])


def test_half_requests_hold_few_descriptors_and_keep_no_good_one_out(
    database_dsn: str, tmp_path: Path
) -> None:
    with running(database_dsn, tmp_path) as (daemon, port), ExitStack() as stack:
        resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))
        for _ in range(HALF_REQUESTS):
            half = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
            half.sendall(b"GET /healthz HTTP/1.1\r\nHost: ")
        for path in ("/healthz", "/readyz", "/metrics"):
            assert get(f"http://127.0.0.1:{port}", path)[0] == 200
        assert len(list(Path(f"/proc/{daemon.process.pid}/fd").iterdir())) < 128


def test_connection_without_a_complete_request_is_closed(database_dsn: str, tmp_path: Path) -> None:
    half = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
    drips = {b"": b"", half: b"X: 1\r\n", half + b"\r\nGET": b" "}  # more of a head wins no more time
    with running(database_dsn, tmp_path) as (_, port), ExitStack() as stack:
        still_open = {}
        for begun, drip in drips.items():
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=0.2))
            connection.sendall(begun)
            still_open[connection] = drip

        def is_closed(connection: socket.socket, drip: bytes) -> bool:
            try:
                while connection.recv(65_536):
                    pass
            except TimeoutError:
                with suppress(ConnectionError):
                    connection.sendall(drip)
                return False
            except ConnectionError:
                pass
            return True

        ends_at = time.monotonic() + 60
        while still_open:
            assert time.monotonic() < ends_at, f"still open after {still_open.values()}"
            still_open = {each: drip for each, drip in still_open.items() if not is_closed(each, drip)}


MALFORMED = [
    b"\x16\x03\x01\x02\x00 a TLS client\r\n\r\n",
    b"GET /healthz\r\n\r\n",
    b"GET /healthz HTTP/9.9\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nX: " + b"a" * 20_000 + b"\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\n" + b"X: a\r\n" * 5000 + b"\r\n",
    b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n",
    b"GET http://[ HTTP/1.1\r\n\r\n",
    b"POST /healthz HTTP/1.1\r\nContent-Length: x\r\n\r\n",
    b"POST /healthz HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"GET /healthz HTTP/1.1\r\nContent-Length: 9\r\n\r\n",
]


def test_malformed_requests_are_no_events_of_the_log(database_dsn: str, tmp_path: Path) -> None:
    with running(database_dsn, tmp_path) as (daemon, port):
        for request in MALFORMED:
            with (
                socket.create_connection(("127.0.0.1", port), timeout=30) as connection,
                suppress(ConnectionError),
            ):
                connection.sendall(request)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65_536):
                    pass
            assert status_for(port, "Host: localhost\r\n") == 200, request
            text = daemon.log_path.read_text()
            assert "Traceback" not in text, request
            assert "library.message" not in text, request
        assert daemon.terminate() == 0
        text = daemon.log_path.read_text()
        assert "Traceback" not in text
        assert "library.message" not in text


def test_only_names_of_its_own_are_answered(database_dsn: str, tmp_path: Path) -> None:
    own = ["127.0.0.1", "localhost", "LocalHost", "[::1]", "127.8.8.8", "hooks.example", "Hooks.Example"]
    foreign = ["evil.example", "10.0.0.1", "localhost.evil.example", "a b", "[", ""]
    with running(database_dsn, tmp_path, public_url="https://hooks.example/admin") as (_, port):
        for host in own:
            assert status_for(port, f"Host: {host}\r\n") == 200
            assert status_for(port, f"Host: {host}:{port}\r\n") == 200
        for host in foreign:
            assert status_for(port, f"Host: {host}\r\n") in (400, 421)
            assert status_for(port, f"Host: {host}:{port}\r\n") in (400, 421)
        assert b"200 OK" in answer_to(port, b"GET /healthz HTTP/1.0\r\n\r\n")  # a load balancer's check
