"""The log: one JSON object a line on standard error."""

from __future__ import annotations

import datetime
import json
import logging
import sys
import threading
from logging.handlers import WatchedFileHandler
from typing import Any

log = logging.getLogger(__name__)
STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}
"""What every record has, and uvicorn's second message with colours; the rest was given with `extra`."""


class JsonLines(logging.Formatter):
    """A record as JSON: time (RFC 3339, UTC), level, logger, message, the fields of `extra`, and a trace."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        time = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        fields = {
            "time": time.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields |= {name: value for name, value in vars(record).items() if name not in STANDARD}
        if record.exc_info:
            fields["trace"] = self.formatException(record.exc_info)
        return json.dumps(fields, default=str, ensure_ascii=False)


class TextLine(logging.Formatter):
    """A line of the access log for people: time, method and status, then the other fields as NAME=VALUE."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        time = datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds")
        fields = {name: value for name, value in vars(record).items() if name not in STANDARD}
        method, code = fields.pop("method"), fields.pop("code")
        rest = " ".join(f"{name}={value}" for name, value in fields.items())
        return f"{time.replace('+00:00', 'Z')} {method} {code} {rest}"


class AccessLog:
    """Writes the fields of a call as a line to a file, or to standard output for "-".

    A file is opened again when it was moved away, so `logrotate` needs no signal. Raises `OSError` if it cannot be
    opened. A line that cannot be written later is lost, and the log says why, once until lines are written again.
    """

    def __init__(self, path: str, form: str) -> None:
        """`form` is "json" or "text"."""
        self._handler = logging.StreamHandler(sys.stdout) if path == "-" else WatchedFileHandler(path)
        self._handler.setFormatter(TextLine() if form == "text" else JsonLines())
        self._handler.handleError = lambda _: self._note_failure()  # type: ignore[assignment] # prints traces
        self._log = logging.Logger("gruve.access")
        self._log.addHandler(self._handler)
        self._path, self._failure = path, ""

    def __call__(self, fields: dict[str, Any]) -> None:
        """Writes one line."""
        before, self._failure = self._failure, ""
        try:
            self._log.info("call", extra=fields)
        except OSError:  # the file cannot be opened again
            self._note_failure()
        if self._failure and not before:
            log.error("the access log cannot be written", extra={"file": self._path, "why": self._failure})

    def _note_failure(self) -> None:
        """Keeps why a line could not be written, in the handler of the exception."""
        self._failure = str(sys.exception())

    def close(self) -> None:
        """Closes the file."""
        self._handler.close()


def log_error(message: str) -> None:
    """Logs the error that ends the command, in place of `say_error`."""
    log.critical(" ".join(message.split()))


def log_to_standard_error(level: str) -> None:
    """Sends every logger's records, Python's warnings and exceptions that nothing handles to standard error.

    asyncio logs those of its tasks and callbacks by itself.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread
    sys.unraisablehook = _log_unraisable


def _log_uncaught(*error: Any) -> None:
    log.critical("failed inside: an error that nothing handles ends the process", exc_info=error)


def _log_uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_type is not SystemExit:
        where = {"where": args.thread.name if args.thread else ""}
        error: Any = args[:3]
        log.error("failed inside: an error that nothing handles ends a thread", exc_info=error, extra=where)


def _log_unraisable(args: sys.UnraisableHookArgs) -> None:
    where = {"where": repr(args.object)}
    error: Any = (args.exc_type, args.exc_value, args.exc_traceback)
    log.error("failed inside: an error where none can be raised", exc_info=error, extra=where)
