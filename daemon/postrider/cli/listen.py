"""`postrider listen`: a local receiver for people who develop against webhooks."""

import asyncio
import errno
import json
import logging
import re
import signal
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

import click
import orjson
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from postrider.cli.common import config_option
from postrider.cli.forwarding import Answer, Forward, check_forward_url, forwarding
from postrider.cli.registration import registered
from postrider.domain.errors import PostriderError, UsageError
from postrider.domain.model import DEFAULT_WORKSPACE
from postrider.domain.signing import SignatureError, secret_key, verify_v1
from postrider.edges.clock import SystemClock
from postrider.edges.durations import parse_duration
from postrider.edges.randomness import new_secret, random_share

_MAX_BODY_BYTES = 64 * 1024 * 1024
_MAX_SHOWN_CHARACTERS = 16_384
# Control characters, line separators and direction overrides; a tab and a newline are harmless.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_SIGNATURE_STYLES = {"ok": "green", "bad": "bold red", "unchecked": "yellow"}


@dataclass(frozen=True, slots=True)
class Answers:
    """How the receiver behaves."""

    keys: tuple[bytes, ...]
    """Signing keys of which any may match; without one signatures are not checked."""
    status: int
    delay: float
    """Seconds."""
    fail_rate: float
    """Share of the requests, 0 to 1, that get a 500."""


@dataclass(frozen=True, slots=True)
class Received:
    """A request and what it was answered. Body and type are as they came, not yet fit for a terminal."""

    at: datetime
    method: str
    path: str
    type: str | None
    """`type` or `event` of the body, where it is a JSON object that has one."""
    id: str | None
    signature: str
    """ok, bad or unchecked."""
    reason: str | None
    """Why it was not accepted."""
    status: int
    size: int
    """Bytes of the body."""
    body: str
    parsed: Any
    """The body's JSON value; None where it is not JSON."""
    forwarded: bool = False
    """The status is that of the application that it was forwarded to."""


@click.command()
@click.option(
    "--port", default=8900, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one."
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--secret-file",
    type=click.File(encoding="utf-8", errors="surrogateescape"),
    help="File with the endpoint's signing secret (- is stdin); several, one a line, during a rotation.",
)
@click.option(
    "--status", default=200, show_default=True, type=click.IntRange(200, 599), help="Answer with this."
)
@click.option("--delay", default="0s", show_default=True, help="Answer after this time, as in 2s.")
@click.option(
    "--fail-rate",
    default=0.0,
    show_default=True,
    type=click.FloatRange(0, 1),
    help="Answer this share of the requests with 500.",
)
@click.option(
    "--forward-to",
    metavar="URL",
    help="Hand requests on to this URL, as they came, and answer what it answers.",
)
@click.option(
    "--subscribe",
    metavar="P,…",
    help="Register this receiver as an endpoint for events of these patterns, until it ends.",
)
@click.option(
    "--workspace", default=DEFAULT_WORKSPACE, show_default=True, help="Whose events --subscribe gets."
)
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON line per request.")
def listen(
    *,
    port: int,
    host: str,
    secret_file: TextIO | None,
    status: int,
    delay: str,
    fail_rate: float,
    forward_to: str | None,
    subscribe: str | None,
    workspace: str,
    config_path: Path | None,
    as_json: bool,
) -> None:
    """Receive webhooks on this machine, verify their signatures, and print what arrives.

    A request with a bad signature is answered with 401. Ctrl-C ends it.

    --subscribe adds an endpoint with a secret of its own and deletes it at the end; what a killed listener
    left is deleted by the next one on this host. The daemon's configuration has to permit sending to this
    machine: network.allow = ["127.0.0.0/8"] and network.https_only = false.

    Example: postrider listen --subscribe 'deal.*' --forward-to http://localhost:3000/hooks
    """
    if forward_to is not None:
        check_forward_url(forward_to)
        if status != 200:
            raise UsageError("--status and --forward-to contradict each other", "Leave one of them out.")
    if subscribe is not None and secret_file is not None:
        raise UsageError("--subscribe makes a secret of its own", "Leave --secret-file out.")
    secret = new_secret() if subscribe is not None else None
    keys = _keys(secret_file) if secret is None else (secret_key(secret),)
    answers = Answers(keys, status, parse_duration(delay), fail_rate)
    show = _show_json if as_json else _pretty_printer()

    def register(url: str) -> AbstractAsyncContextManager[str | None]:
        if subscribe is None or secret is None:
            return nullcontext()
        return registered(config_path, url, events=subscribe, workspace=workspace, secret=secret)

    forwarder = nullcontext() if forward_to is None else forwarding(forward_to)
    counts = asyncio.run(_serve(host, port, answers, show, forwarder, register))
    click.echo(_summary(counts), err=True)


def _keys(secret_file: TextIO | None) -> tuple[bytes, ...]:
    if secret_file is None:
        return ()
    secrets = [line.strip() for line in secret_file.read().split("\n") if line.strip()]
    if not secrets:
        raise UsageError(
            f"no signing secret in {secret_file.name}",
            "Put the secret there that `postrider endpoint add` printed.",
        )
    return tuple(secret_key(secret) for secret in secrets)


async def _serve(
    host: str,
    port: int,
    answers: Answers,
    show: Callable[[Received], None],
    forwarder: AbstractAsyncContextManager[Forward | None],
    register: Callable[[str], AbstractAsyncContextManager[str | None]],
) -> Counter[str]:
    """Receive until a signal; raises BrokenPipeError when nobody reads any more what is printed."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup leaves it
            loop.add_signal_handler(number, _end, ended)
    counts: Counter[str] = Counter()
    logging.getLogger("aiohttp.server").addFilter(_without_traceback)
    async with forwarder as forward:
        app = _application(answers, show, forward, counts, ended)
        # What still waits for its delay at the end is cut off.
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await runner.setup()
        try:
            await _bind(runner, host, port)
            async with register(_url(runner)) as ep:
                as_whom = "" if ep is None else f" as {ep}"
                click.echo(f"Listening on {_url(runner)}{as_whom}, Ctrl-C ends it.", err=True)
                await ended
        finally:
            await runner.cleanup()
    return counts


def _application(
    answers: Answers,
    show: Callable[[Received], None],
    forward: Forward | None,
    counts: Counter[str],
    ended: asyncio.Future[None],
) -> web.Application:
    async def handle(request: web.Request) -> web.Response:
        body = await request.read()
        received = _received(request, body, answers)
        answer = Answer(received.status, (received.reason or "").encode())
        if forward is not None and received.status == answers.status:
            answer = await forward(request, body)
            received = replace(
                received, status=answer.status, reason=answer.problem, forwarded=answer.problem is None
            )
        counts.update((f"signature {received.signature}", f"status {received.status}"))
        try:
            show(received)
        except BrokenPipeError as error:
            _end(ended, error)
        await SystemClock().sleep(answers.delay)
        headers = {"content-type": answer.content_type or "text/plain; charset=utf-8"}
        return web.Response(status=answer.status, body=answer.body, headers=headers)

    app = web.Application(client_max_size=_MAX_BODY_BYTES)
    app.router.add_route("*", "/{path:.*}", handle)
    return app


def _without_traceback(record: logging.LogRecord) -> bool:
    """What is not valid HTTP is the sender's mistake, to be told in one line."""
    if record.exc_info and isinstance(record.exc_info[1], HttpProcessingError):
        record.msg, record.exc_info = "Not valid HTTP, refused: a request from %s", None
    return True


def _end(ended: asyncio.Future[None], error: BrokenPipeError | None = None) -> None:
    if not ended.done():
        ended.set_exception(error) if error else ended.set_result(None)


async def _bind(runner: web.AppRunner, host: str, port: int) -> None:
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        hint = (
            "Another program listens there: stop it, or take another --port (0 finds a free one)."
            if error.errno == errno.EADDRINUSE
            else "Choose an address of this machine with --host, and a --port that you may use."
        )
        raise PostriderError(f"cannot listen on {host} port {port}: {error.strerror}", hint) from error


def _url(runner: web.AppRunner) -> str:
    """Where it is reached from this machine."""
    host, port = runner.addresses[0][:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 (not bound to here)
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def _received(request: web.Request, body: bytes, answers: Answers) -> Received:
    now = SystemClock().now()
    signature, reason = _judge_signature(request, body, answers.keys, int(now.timestamp()))
    if signature == "bad":
        status = 401
    elif random_share() < answers.fail_rate:
        status = 500
    else:
        status = answers.status
    parsed = _parsed(body)
    event_type = parsed.get("type", parsed.get("event")) if isinstance(parsed, dict) else None
    return Received(
        at=now,
        method=request.method,
        path=_safe(request.path_qs),
        type=event_type if isinstance(event_type, str) else None,
        id=_safe(request.headers["webhook-id"]) if "webhook-id" in request.headers else None,
        signature=signature,
        reason=reason,
        status=status,
        size=len(body),
        body=body.decode(errors="replace"),
        parsed=parsed,
    )


def _judge_signature(
    request: web.Request, body: bytes, keys: tuple[bytes, ...], now: int
) -> tuple[str, str | None]:
    if not keys:
        return "unchecked", None
    # A header may hold bytes that are not text; escaped, they can't match, which is the verdict wanted.
    headers = {name: _safe(value) for name, value in request.headers.items()}
    try:
        verify_v1(keys, headers, body, now)
    except SignatureError as error:
        return "bad", _safe(error.message)
    return "ok", None


def _parsed(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except ValueError:
        return None


def _show_json(received: Received) -> None:
    """One line; a JSON body is spliced in as it came, so that numbers and key order are the sender's."""
    fragment: Any = received.body
    if received.parsed is not None:
        # JSON has newlines only between its tokens, where a space means the same.
        fragment = orjson.Fragment(received.body.replace("\n", " ").replace("\r", " "))
    line = orjson.dumps(
        {
            "time": received.at,
            "method": received.method,
            "path": received.path,
            "type": received.type,
            "id": received.id,
            "signature": received.signature,
            "reason": received.reason,
            "status": received.status,
            "forwarded": received.forwarded,
            "bytes": received.size,
            "body": fragment,
        }
    )
    click.echo(_safe(line.decode()))


def _pretty_printer() -> Callable[[Received], None]:
    from rich.console import Console
    from rich.highlighter import JSONHighlighter
    from rich.text import Text

    console = Console(highlight=False)
    highlight = JSONHighlighter()

    def show(received: Received) -> None:
        head = Text.assemble(
            (f"{received.at.astimezone().timetz().isoformat('seconds')} ", "dim"),
            f"{received.method} {received.path} ",
            (" ".join(_safe(received.type or "(no type)").split()), "bold cyan"),
            f" {received.id or '(no id)'} ",
            (f"signature {received.signature}", _SIGNATURE_STYLES[received.signature]),
            f" ({received.reason})" if received.reason else "",
            f", {received.size:,} bytes, {'forwarded, ' if received.forwarded else ''}answered ",
            (str(received.status), "green" if received.status < 300 else "bold red"),
        )
        with console.capture() as capture:
            console.print(head, highlight(Text(_shown_body(received))), sep="\n", soft_wrap=True)
        click.echo(capture.get(), nl=False)

    return show


def _shown_body(received: Received) -> str:
    text = received.body
    if received.parsed is not None and len(text) <= _MAX_SHOWN_CHARACTERS:
        # Nested too deep to indent, or a number too long to convert: shown as it came.
        with suppress(RecursionError, ValueError):
            text = json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    more = len(text) - _MAX_SHOWN_CHARACTERS
    return _safe(text[:_MAX_SHOWN_CHARACTERS]) + (f"\n… {more:,} more characters" if more > 0 else "")


def _safe(text: str) -> str:
    """`text` with what could drive a terminal or forge a line written as JSON escapes."""
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _summary(counts: Counter[str]) -> str:
    requests = sum(count for name, count in counts.items() if name.startswith("status "))
    if not requests:
        return "No requests."
    return f"Requests {requests}: " + ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
