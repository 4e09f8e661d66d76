"""Configuration: one frozen Struct, read once from `DATELINE_*` variables and flags, and passed down.

Owns which settings exist, their types and where each value came from. An unknown `DATELINE_*` variable is a spelling mistake
that would otherwise be found in production, so it stops the start.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta, Struct

from shared.durability import Durability
from shared.errors import Misconfigured

PREFIX = "DATELINE_"

# What the newsroom verbs read, and no service.
CLIENT_SETTINGS = frozenset({"DATELINE_URL", "DATELINE_TOKEN"})

# Kubernetes gives every pod of a namespace variables for each service there, one called dateline included.
_KUBERNETES = re.compile(r".*(_SERVICE_HOST|_SERVICE_PORT(_.*)?|_PORT_[0-9]+_(TCP|UDP|SCTP)(_(PORT|PROTO|ADDR))?)")
_KUBERNETES_URL = re.compile(r".*_PORT(_.*)?=(tcp|udp|sctp)://.*")

Port = Annotated[int, Meta(ge=0, le=65535)]
Seconds = Annotated[float, Meta(gt=0, le=3600)]


class Config(Struct, frozen=True):
    """Every setting of every service. Sizes in the unit that ends the name."""

    redis_url: str | None = None
    data_dir: str = ".dateline"
    server_binary: str | None = None
    listen_host: str = "127.0.0.1"
    listen_port: Port = 8080
    # `/metrics` on a port of its own as well.
    metrics_port: Port | None = None
    public_url: str | None = None
    archive_url: str | None = None
    ops_token: str | None = None
    durability: Durability = "fsync"
    # How many replicas confirm a write that is to be `replicated`.
    replicas: Annotated[int, Meta(ge=1, le=100)] = 1
    drain_seconds: Seconds = 10
    # Processes of a writer or a gateway, or of both in `up`, on one port; unset it is one, and for `up` the machine says.
    workers: Annotated[int, Meta(ge=1, le=256)] | None = None
    # Of each process.
    readers_max: Annotated[int, Meta(ge=1)] = 10_000
    key_prefix: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,32}$")] = "dl"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "console", "json"] = "auto"

    @classmethod
    def load(cls, environ: Mapping[str, str], overrides: Mapping[str, Any] | None = None) -> "Config":
        """Flags win over variables, variables over defaults; Misconfigured names what is unknown or not valid."""
        return sources(environ, overrides).config


class Setting(NamedTuple):
    name: str
    value: Any
    source: Literal["default", "environment", "flag"]


class Loaded(NamedTuple):
    config: Config
    settings: list[Setting]


def sources(environ: Mapping[str, str], overrides: Mapping[str, Any] | None = None) -> Loaded:
    """The configuration with the origin of each value; `overrides` are flags by field name, None where not given."""
    flags = {name: value for name, value in (overrides or {}).items() if value is not None}
    variables = {name: environ[env] for name in Config.__struct_fields__ if (env := PREFIX + name.upper()) in environ}
    for variable, value in environ.items():
        if not _known(variable, value):
            raise Misconfigured(f"{variable} is no setting of Dateline; `dateline config` lists them", setting=variable)
    values: dict[str, Any] = {**variables, **flags}
    for name, value in values.items():
        try:
            msgspec.convert({name: value}, Config, strict=False)
        except msgspec.ValidationError as error:
            origin = f"the flag --{name.replace('_', '-')}" if name in flags else PREFIX + name.upper()
            raise Misconfigured(f"{origin}: {str(error).partition(' - at')[0]}", setting=name) from error
    config = msgspec.convert(values, Config, strict=False)

    def origin_of(name: str) -> Literal["default", "environment", "flag"]:
        return "flag" if name in flags else "environment" if name in variables else "default"

    return Loaded(config, [Setting(name, getattr(config, name), origin_of(name)) for name in Config.__struct_fields__])


def setting_names() -> frozenset[str]:
    """The `DATELINE_*` variables that services read."""
    return frozenset(PREFIX + name.upper() for name in Config.__struct_fields__)


def _known(variable: str, value: str) -> bool:
    if not variable.startswith(PREFIX):
        return True
    if variable in setting_names() | CLIENT_SETTINGS:
        return True
    return bool(_KUBERNETES.fullmatch(variable) or _KUBERNETES_URL.fullmatch(f"{variable}={value}"))
