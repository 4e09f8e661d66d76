"""Logs: facts, not prose, to standard error; for people on a terminal, one JSON object a line otherwise.

Owns structlog's configuration. What is logged stands where it happens.
"""

import logging
import sys

import structlog

from shared.config import Config


def configure_logs(config: Config, *, service: str, worker: str | None = None) -> None:
    """Set up logging for this process, which is one of several where it is a worker; called once, by the program."""
    console = config.log_format == "console" or (config.log_format == "auto" and sys.stderr.isatty())
    # Tracebacks without the frames' locals: those hold tokens and content that a redaction could not reach.
    tracebacks = structlog.processors.ExceptionRenderer(
        structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    )
    renderer: list[structlog.typing.Processor] = (
        [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)]
        if console
        else [tracebacks, structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, config.log_level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    structlog.contextvars.bind_contextvars(service=service, **({} if worker is None else {"worker": worker}))
