"""Starts `tests.support.receiver` as a process of its own and talks to it."""

import json
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import ProxyHandler, Request, build_opener

from tests.support.forked import CONTEXT
from tests.support.receiver import main

_OPENER = build_opener(ProxyHandler({}))  # no proxy from the environment: the receiver is on this machine


class ReceiverProcess:
    """A running receiver; a context manager. Its calls block: in async tests use `asyncio.to_thread`.

    `secrets` gives single paths a secret of their own. The modes and the meaning of the counts stand in
    `tests.support.receiver`.
    """

    def __init__(
        self,
        secret: str | None = None,
        *,
        mode: str = "ok",
        secrets: Mapping[str, str] | None = None,
        port: int = 0,
    ) -> None:
        arguments = ["--mode", mode, "--port", str(port)]
        if secret:
            arguments += ["--secret", secret]
        for path, own in (secrets or {}).items():
            arguments += ["--secret-for", f"{path}={own}"]
        listening, announce = CONTEXT.Pipe(duplex=False)
        self._process = CONTEXT.Process(target=main, args=(arguments, announce.send), daemon=True)
        self._process.start()
        announce.close()
        with listening:
            try:
                self.port: int = listening.recv()
            except EOFError:
                self.stop()
                raise AssertionError("the receiver ended at once; its error stands on stderr") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def url(self, path: str = "/") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def stats(self, path: str | None = None) -> dict[str, Any]:
        """Counts of all paths, or of one: received, distinct, accepted, duplicates, bad_signatures, statuses,
        first_at, last_at."""
        return _of(self._call("GET", "/_stats"), path)

    def ids(self, path: str) -> dict[str, int]:
        """The webhook ids that came to `path` with their number of requests, in order of first arrival."""
        ids: dict[str, int] = self._call("GET", "/_ids").get(path, {})
        return ids

    def requests(self, limit: int = 100) -> list[dict[str, Any]]:
        """The last requests, oldest first: at, path, status, headers (names in lower case), body."""
        requests: list[dict[str, Any]] = self._call("GET", "/_requests", {"limit": limit})
        return requests

    def wait_for(
        self, count: int, key: str = "accepted", *, path: str | None = None, timeout: float = 60
    ) -> dict[str, Any]:
        """The stats as soon as their count `key` reaches `count`; fails with the stats after `timeout` s."""
        parameters: dict[str, Any] = {"key": key, "count": count, "timeout": timeout} | (
            {"path": path} if path else {}
        )
        try:
            return _of(self._call("GET", "/_wait", parameters, timeout + 10), path)
        except HTTPError as error:
            with error:
                raise AssertionError(
                    f"{key} is not {count} after {timeout} s: {error.read().decode()}"
                ) from None

    def set_mode(self, mode: str, path: str | None = None) -> None:
        parameters = {"mode": mode} | ({"path": path} if path else {})
        self._call("POST", "/_mode", parameters)

    def reset(self) -> None:
        self._call("POST", "/_reset")

    def stop(self) -> None:
        """End the process; its port then refuses connections."""
        self._process.terminate()
        self._process.join(10)
        assert self._process.exitcode is not None, "the receiver does not end"

    def _call(
        self, method: str, route: str, parameters: Mapping[str, Any] | None = None, timeout: float = 30
    ) -> Any:
        request = Request(f"{self.url(route)}?{urlencode(parameters or {})}", method=method)
        with _OPENER.open(request, timeout=timeout) as response:
            return json.load(response)


def _of(stats: dict[str, Any], path: str | None) -> dict[str, Any]:
    found: dict[str, Any] = stats["paths"].get(path, {}) if path else stats
    return found
