"""Log lines hold facts, and never the locals of a frame: those hold tokens and content."""

import io
import json

import pytest
import structlog

from shared.config import Config
from shared.logs import configure_logs


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_traceback_shows_where_but_no_locals(log_format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr("sys.stderr", out)
    configure_logs(Config(log_format=log_format), service="writer")  # type: ignore[arg-type]  # parametrised literal
    try:
        token = "a-secret-token"
        raise RuntimeError(f"{len(token)} characters")
    except RuntimeError:
        structlog.get_logger().exception("request_failed", path="/v1")
    finally:
        structlog.reset_defaults()
        structlog.contextvars.clear_contextvars()
    line = out.getvalue()
    assert "test_a_traceback_shows_where" in line
    assert "14 characters" in line
    assert "a-secret-token" not in line
    if log_format == "json":
        assert json.loads(line)["service"] == "writer"
