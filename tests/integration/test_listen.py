import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from http.client import HTTPConnection
from pathlib import Path
from time import monotonic, time
from typing import Any

import pytest
from click.testing import CliRunner
from standardwebhooks.webhooks import Webhook

from postrider.cli.listen import listen
from postrider.domain.errors import PostriderError, UsageError

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER_SECRET = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"


class Listener:
    """A running `postrider listen`."""

    def __init__(self, *options: str, stdout: int = subprocess.PIPE) -> None:
        code = "from postrider.cli.listen import listen; listen()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, "--port", "0", *options],
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stderr
        self.greeting = self._process.stderr.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)/", self.greeting)
        if not found:
            self._process.kill()
            _, err = self._process.communicate()
            raise AssertionError(f"the listener did not start: {self.greeting}{err}")
        self.port = int(found[1])

    def post(self, body: bytes, headers: Mapping[str, str] | None = None, path: str = "/hook") -> int:
        """The status of the answer."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("POST", path, body, dict(headers or {}))
            return connection.getresponse().status
        finally:
            connection.close()

    def line(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline()

    def record(self) -> dict[str, Any]:
        """The next line of --json."""
        record: dict[str, Any] = json.loads(self.line())
        return record

    def stop(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str, str]:
        """Exit code, and what it still printed to stdout and stderr."""
        self._process.send_signal(number)
        out, err = self._process.communicate(timeout=20)
        return self._process.returncode, out or "", err

    def close_output(self) -> None:
        assert self._process.stdout
        self._process.stdout.close()

    def wait(self) -> tuple[int, str]:
        """Exit code and the rest of stderr of a listener that ends by itself."""
        code = self._process.wait(timeout=20)
        assert self._process.stderr
        with self._process.stderr as stderr:
            return code, stderr.read()

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()


@contextmanager
def listening(*options: str, stdout: int = subprocess.PIPE) -> Iterator[Listener]:
    listener = Listener(*options, stdout=stdout)
    try:
        yield listener
    finally:
        listener.kill()


@pytest.fixture
def secret_file(tmp_path: Path) -> str:
    path = tmp_path / "secret"
    path.write_text(SECRET + "\n")
    return str(path)


def signed(body: bytes, secret: str = SECRET, webhook_id: str = "evt_1") -> dict[str, str]:
    now = datetime.now(UTC)
    return {
        "webhook-id": webhook_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Webhook(secret).sign(webhook_id, now, body.decode()),
    }


def test_a_signed_request_is_printed_and_accepted(secret_file: str) -> None:
    body = b'{"type":"deal.updated","data":{"id":12345678901234567890123,"rate":1.10}}'
    with listening("--json", "--secret-file", secret_file) as listener:
        assert listener.post(body, signed(body), "/hook?a=1") == 200
        line = listener.line()
        record = json.loads(line)
        assert body.decode() in line  # not a digit of the sender's JSON is changed
        assert datetime.fromisoformat(record.pop("time")).tzinfo is not None
        assert record == {
            "method": "POST",
            "path": "/hook?a=1",
            "type": "deal.updated",
            "id": "evt_1",
            "signature": "ok",
            "reason": None,
            "status": 200,
            "forwarded": False,
            "bytes": len(body),
            "body": json.loads(body),
        }


def test_a_bad_signature_is_answered_with_401_and_the_reason_printed(secret_file: str) -> None:
    with listening("--json", "--secret-file", secret_file) as listener:
        assert listener.post(b"{}", signed(b"{}", OTHER_SECRET)) == 401
        other_key = listener.record()
        assert listener.post(b"{}") == 401
        no_headers = listener.record()
    assert other_key["signature"] == no_headers["signature"] == "bad"
    assert other_key["reason"] != no_headers["reason"]
    assert "webhook-id" in no_headers["reason"]


def test_during_a_rotation_either_secret_is_good(tmp_path: Path) -> None:
    secrets = tmp_path / "secrets"
    secrets.write_text(f"{OTHER_SECRET}\n{SECRET}\n")
    with listening("--json", "--secret-file", str(secrets)) as listener:
        assert listener.post(b"{}", signed(b"{}", SECRET)) == 200
        assert listener.post(b"{}", signed(b"{}", OTHER_SECRET)) == 200


def test_without_a_secret_signatures_are_not_checked() -> None:
    with listening("--json") as listener:
        assert listener.post(b"{}") == 200
        assert listener.record()["signature"] == "unchecked"


def test_status_delay_and_fail_rate_shape_the_answer() -> None:
    with listening("--json", "--status", "503", "--delay", "1s") as listener:
        before = monotonic()
        assert listener.post(b"{}") == 503
        assert monotonic() - before >= 1
    with listening("--json", "--fail-rate", "1") as listener:
        assert listener.post(b"{}") == 500


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"plain text, \xff\xfe not even UTF-8",
        b'{"pretty":\r\n  1}',
        b"[" * 100_000 + b"]" * 100_000,
        b"[" * 600 + b"]" * 600,
        b"9" * 5000,
        b'"' + b"x" * 10_000_000 + b'"',
    ],
    ids=["empty", "not-utf8", "pretty", "too-deep", "deep", "long-number", "10-MB"],
)
@pytest.mark.parametrize("options", [(), ("--json",)], ids=["text", "json"])
def test_an_odd_body_is_printed_and_answered(body: bytes, options: tuple[str, ...]) -> None:
    with listening(*options) as listener, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(listener.post, body)  # it answers once its line, maybe a long one, is written
        if options:
            assert listener.record()["bytes"] == len(body)
        else:
            assert f"{len(body):,} bytes" in listener.line()
        assert answer.result() == 200
        code, _, err = listener.stop()
    assert code == 0
    assert "Traceback" not in err


def test_odd_headers_and_what_is_not_http_do_no_harm(secret_file: str) -> None:
    with listening("--json", "--secret-file", secret_file) as listener:
        for request in (
            b"POST /\xff HTTP/1.1\r\nHost: x\r\nwebhook-id: \xff\xfe\r\nContent-Length: 2\r\n\r\n{}",
            b"POST / HTTP/1.1\r\nHost: x\r\nwebhook-id: \xff\r\nwebhook-timestamp: %d\r\n"
            b"webhook-signature: v1,\xff\r\nContent-Length: 2\r\n\r\n{}" % time(),
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        ):
            with socket.create_connection(("127.0.0.1", listener.port), timeout=10) as connection:
                connection.sendall(request)
                assert re.match(rb"HTTP/1.[01] 4\d\d ", connection.recv(4096))
        assert listener.post(b"{}", signed(b"{}")) == 200
        _, _, err = listener.stop()
    assert "Traceback" not in err


def test_a_body_cannot_drive_the_terminal() -> None:
    evil = '{"type":"a\\u001b[2J\\nforged","data":"\x9b2J \u202e \x7f"}'.encode() + b"\x1b]0;title\x07"
    for body in (evil, evil.removesuffix(b"\x1b]0;title\x07")):
        ours, theirs = pty.openpty()
        with listening(stdout=theirs) as listener:
            os.close(theirs)
            assert listener.post(body) == 200
            shown = os.read(ours, 65536).decode()
            listener.stop()
        os.close(ours)
        assert "\x1b[" in shown  # our own colours
        assert "\\u001b" in shown
        assert not re.search("\x1b\\[2J|\x1b\\]|[\x07\x7f\x9b\u202e]", shown)
        assert not re.search("^(\x1b\\[[0-9;]*m)*forged", shown, re.MULTILINE)


def test_json_lines_cannot_drive_the_terminal_either() -> None:
    body = '{"data":"\x9b2J \u202e \x7f"}'.encode()
    with listening("--json") as listener:
        assert listener.post(body) == 200
        line = listener.line()
    assert line.isascii()
    assert json.loads(line)["body"] == json.loads(body)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_with_a_summary(secret_file: str, number: signal.Signals) -> None:
    with listening("--json", "--secret-file", secret_file) as listener:
        listener.post(b"{}", signed(b"{}"))
        listener.post(b"{}")
        code, _, err = listener.stop(number)
    assert code == 0
    assert err == "Requests 2: signature bad 1, signature ok 1, status 200 1, status 401 1\n"


def test_a_request_that_waits_for_its_delay_does_not_hold_up_the_end() -> None:
    with listening("--json", "--delay", "60s") as listener:
        connection = HTTPConnection("127.0.0.1", listener.port)
        connection.request("POST", "/", b"{}")
        assert listener.record()["status"] == 200
        code, _, _ = listener.stop()
        connection.close()
    assert code == 0


def test_it_ends_when_nobody_reads_its_output() -> None:
    with listening("--json") as listener:
        listener.close_output()
        assert listener.post(b"{}") == 200
        code, err = listener.wait()
    assert code == 1
    assert "Traceback" not in err
    assert "Exception" not in err


def test_a_port_in_use_is_an_error_with_a_next_step() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = CliRunner().invoke(listen, ["--port", str(port)])
    assert isinstance(result.exception, PostriderError)
    assert f"127.0.0.1 port {port}" in result.exception.message
    assert "--port" in result.exception.hint


@pytest.mark.parametrize("content", ["", "\n", "whsec_tooshort"])
def test_a_secret_file_without_a_usable_secret_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "secret"
    path.write_text(content)
    result = CliRunner().invoke(listen, ["--secret-file", str(path)])
    assert isinstance(result.exception, UsageError)
    assert "tooshort" not in str(result.exception)
