"""Settings: read once, typed, and a name that nobody knows stops the start."""

import pytest

from shared.config import Config, setting_names, sources
from shared.errors import Misconfigured


def test_flags_win_over_variables_and_variables_over_defaults() -> None:
    loaded = sources(
        {"DATELINE_LISTEN_PORT": "9000", "DATELINE_LISTEN_HOST": "::1"}, {"listen_port": 9001, "data_dir": None}
    )
    assert (loaded.config.listen_port, loaded.config.listen_host, loaded.config.data_dir) == (9001, "::1", ".dateline")
    origins = {setting.name: setting.source for setting in loaded.settings}
    assert (origins["listen_port"], origins["listen_host"], origins["data_dir"]) == ("flag", "environment", "default")


def test_an_unknown_variable_stops_the_start_with_its_name() -> None:
    with pytest.raises(Misconfigured, match="DATELINE_DURABILTY"):
        Config.load({"DATELINE_DURABILTY": "fsync"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DATELINE_SERVICE_HOST", "10.0.0.1"),
        ("DATELINE_SERVICE_PORT", "8080"),
        ("DATELINE_SERVICE_PORT_HTTP", "8080"),
        ("DATELINE_PORT", "tcp://10.0.0.1:8080"),
        ("DATELINE_PORT_8080_TCP", "tcp://10.0.0.1:8080"),
        ("DATELINE_PORT_8080_TCP_PROTO", "tcp"),
        ("DATELINE_PORT_8080_TCP_ADDR", "10.0.0.1"),
        ("DATELINE_WRITER_SERVICE_HOST", "10.0.0.1"),
        ("DATELINE_URL", "http://desk"),
        ("DATELINE_TOKEN", "t"),
        ("PATH", "/bin"),
    ],
)
def test_what_kubernetes_and_the_newsroom_verbs_set_is_let_be(name: str, value: str) -> None:
    assert Config.load({name: value}) == Config()


def test_a_port_that_is_no_url_is_not_from_kubernetes() -> None:
    with pytest.raises(Misconfigured, match="DATELINE_PORT"):
        Config.load({"DATELINE_PORT": "8080"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LISTEN_PORT", "70000"),
        ("LISTEN_PORT", "x"),
        ("DURABILITY", "maybe"),
        ("DRAIN_SECONDS", "0"),
        ("KEY_PREFIX", "{a}"),
    ],
)
def test_a_value_that_is_not_valid_is_named(name: str, value: str) -> None:
    with pytest.raises(Misconfigured, match=f"DATELINE_{name}"):
        Config.load({f"DATELINE_{name}": value})


def test_the_settings_of_the_contract_are_there() -> None:
    named = "REDIS_URL DATA_DIR LISTEN_HOST LISTEN_PORT PUBLIC_URL OPS_TOKEN DURABILITY DRAIN_SECONDS"
    assert {f"DATELINE_{name}" for name in named.split()} <= setting_names()
