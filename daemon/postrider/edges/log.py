"""Structured logs: one line per fact, JSON for journald and collectors, coloured text for a terminal.

Code takes `log = structlog.get_logger()` and calls `log.info("delivery.succeeded", delivery="dlv_…",
duration_ms=12.3)`. Warnings of the libraries, which use the standard `logging`, come out of the same
renderer.
"""

import json
import logging
import os
import re
import sys
from collections.abc import MutableMapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, TextIO

import orjson
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

MASK = "[hidden]"
_SECRET = re.compile(r"secret|passw|authorization|cookie|token|api_?key|private_?key|credential|dsn", re.I)
_JOURNAL_PRIORITY = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}


# A suppressed call costs next to nothing, because the class of the loggers has no body for its method.
# Modules keep their loggers; a new level gives that class another base.
_Logger = type("_Logger", (structlog.make_filtering_bound_logger("info"),), {})


def configure_logging(
    level: str,
    format: str,  # noqa: A002 - the configuration's word
    stream: TextIO = sys.stderr,
) -> None:
    """Send all logs of the process to `stream`; call it once, before the first event is logged.

    `level` is debug, info, warning, error or critical. `format` is json (one object a line: timestamp in UTC,
    level, event, then the fields), text, or auto: text where `stream` is a terminal, else json.
    """
    text = not is_json(format, stream)
    structlog.configure(
        processors=_text_processors(stream) if text else _json_processors(stream),
        wrapper_class=_Logger,
        logger_factory=_LineLogger(stream).get,
        cache_logger_on_first_use=True,
    )
    logging.getLogger().handlers = [_Bridge()]
    set_log_level(level)


def set_log_level(level: str) -> None:
    """Let all loggers write what is of that level or above, also those that were used before."""
    _Logger.__bases__ = (structlog.make_filtering_bound_logger(level),)
    logging.getLogger().setLevel(max(logging.WARNING, logging.getLevelNamesMapping()[level.upper()]))


def is_json(format: str, stream: TextIO = sys.stderr) -> bool:  # noqa: A002
    """Whether that format writes JSON to `stream`."""
    return format == "json" or (format == "auto" and not stream.isatty())


def _text_processors(stream: TextIO) -> list[Processor]:
    colors = stream.isatty() and not os.environ.get("NO_COLOR")
    # The default formatter would print local variables, and with them secrets.
    renderer = structlog.dev.ConsoleRenderer(
        colors=colors, sort_keys=False, exception_formatter=structlog.dev.plain_traceback
    )
    return [_stamp, _mask_secrets, _escape_controls, renderer]


def _json_processors(stream: TextIO) -> list[Processor]:
    processors: list[Processor] = [structlog.processors.format_exc_info, _stamp, _mask_secrets, _render_json]
    return [*processors, _prefix_priority] if _is_journal(stream) else processors


def _stamp(_logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {"timestamp": now, "level": method, "event": event.pop("event"), **event}


def _mask_secrets(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """The last guard: nobody should log a secret, and one that is logged by its name is not written."""
    return _masked(event)


def _masked(fields: MutableMapping[Any, Any]) -> MutableMapping[Any, Any]:
    for key, value in fields.items():
        if _names_secret(str(key)):
            fields = {**fields, key: MASK}
        elif isinstance(value, dict):
            fields = {**fields, key: _masked(value)}
    return fields


@lru_cache(maxsize=1024)
def _names_secret(key: str) -> bool:
    return _SECRET.search(key) is not None


def _escape_controls(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Keep what a receiver or a URL put into a field from driving the terminal or forging a line."""
    for key, value in event.items():
        if isinstance(value, str) and not value.isprintable():
            event[key] = repr(value)[1:-1]
    return event


def _render_json(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    # orjson would write out every field of a dataclass; its repr leaves out what must not be seen.
    options = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_NON_STR_KEYS
    try:
        return orjson.dumps(event, default=str, option=options).decode()
    except TypeError:  # integers above 64 bits and lone surrogates
        return json.dumps(event, default=str, skipkeys=True)


def _is_journal(stream: TextIO) -> bool:
    """Whether systemd connected `stream` to journald (systemd.exec(5), JOURNAL_STREAM)."""
    journal = os.environ.get("JOURNAL_STREAM")
    if journal is None:
        return False
    try:
        status = os.fstat(stream.fileno())
    except OSError:
        return False
    return journal == f"{status.st_dev}:{status.st_ino}"


def _prefix_priority(_logger: WrappedLogger, method: str, line: Any) -> str:
    """journald takes the prefix off and files the line under its priority, for `journalctl -p warning`."""
    return f"<{_JOURNAL_PRIORITY[method]}>{line}"


class _LineLogger:
    """What structlog hands the rendered line to, under the name of each level."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def get(self, *_args: Any) -> "_LineLogger":
        return self

    def _write(self, line: str) -> None:
        # A log that can't be written (its reader went away, its file is closed) must not fail a delivery.
        with suppress(OSError, ValueError):
            self._stream.write(line + "\n")
            self._stream.flush()

    debug = info = warning = error = critical = _write


class _Bridge(logging.Handler):
    """Passes records of the standard library's `logging` on to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        level = min(record.levelno // 10 * 10, logging.CRITICAL)
        structlog.get_logger().log(
            level,
            "library.message",
            logger=record.name,
            message=record.getMessage(),
            exc_info=record.exc_info,
        )
