"""Redis: how Dateline connects (`connecting`), asks (`asking`), and what it demands of the server (`server`)."""

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.exceptions import AuthenticationError, NoScriptError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError

from shared.redis.asking import (
    Arg,
    Call,
    Script,
    ask,
    command,
    exchange,
    packed,
    packed_command,
    read_streams,
    run_pipeline,
    run_scripts,
)
from shared.redis.connecting import UNREACHABLE, connect, connect_for_blocking, needed_url, redis_errors
from shared.redis.server import check_installation, check_server, durability_kept, means_of, server_name

__all__ = [
    "UNREACHABLE",
    "Arg",
    "AuthenticationError",
    "Call",
    "NoScriptError",
    "Pipeline",
    "Redis",
    "RedisConnectionError",
    "RedisError",
    "Script",
    "ask",
    "check_installation",
    "check_server",
    "command",
    "connect",
    "connect_for_blocking",
    "durability_kept",
    "exchange",
    "means_of",
    "needed_url",
    "packed",
    "packed_command",
    "read_streams",
    "redis_errors",
    "run_pipeline",
    "run_scripts",
    "server_name",
]
