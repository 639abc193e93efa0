"""Log records as lines of JSON or, on a terminal, as readable text, each with the id and the client of its request.

Modules log with the standard library. Structlog formats their records and those of uvicorn, and adds the context
variables that the middleware binds for each request.
"""

from __future__ import annotations

import logging
import sys
from typing import Literal

import structlog
from structlog.stdlib import ExtraAdder, ProcessorFormatter, add_log_level, add_logger_name
from structlog.typing import EventDict, Processor

LogFormat = Literal["auto", "json", "console"]


def configure_logging(style: LogFormat = "auto") -> None:
    """Write the log records of this process, from level INFO, to standard error.

    Args:
        style: `json` for one object per line, `console` for readable text, `auto` for text on a terminal only.
    """
    terminal = sys.stderr.isatty()
    readable = style == "console" or (style == "auto" and terminal)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(console_formatter(colours=terminal) if readable else json_formatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    if readable:  # the server reports its start and stop itself
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)


def json_formatter() -> logging.Formatter:
    """Return a formatter that writes one JSON object per record: time, level, logger, message and further fields."""
    return _formatter(
        add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        structlog.processors.EventRenamer("message"),
        structlog.processors.format_exc_info,
        _name_traceback,
        structlog.processors.JSONRenderer(ensure_ascii=False),
    )


def console_formatter(*, colours: bool) -> logging.Formatter:
    """Return a formatter that writes the local time, level, message and further fields of a record as text."""
    return _formatter(
        structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False, key="time"),
        structlog.dev.ConsoleRenderer(
            colors=colours,
            pad_event_to=0,
            timestamp_key="time",
            exception_formatter=structlog.dev.plain_traceback,
        ),
    )


def _formatter(*processors: Processor) -> logging.Formatter:
    return ProcessorFormatter(
        foreign_pre_chain=[structlog.contextvars.merge_contextvars, add_log_level, ExtraAdder(), _drop_colours],
        # The logger's name is in the record, which is removed last.
        processors=[*processors[:-1], ProcessorFormatter.remove_processors_meta, processors[-1]],
    )


def _drop_colours(_: object, __: str, event: EventDict) -> EventDict:
    """Drop uvicorn's second copy of its message, with colours."""
    event.pop("color_message", None)
    return event


def _name_traceback(_: object, __: str, event: EventDict) -> EventDict:
    if "exception" in event:
        event["traceback"] = event.pop("exception")
    return event
