"""`dateline ops status` as operators run it: on a running and on a stopped `up`, with nothing wrong and with each thing wrong.

What machines may rely on of `--json` is pinned here.
"""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from services.cli.data_dir import ServerRecord
from shared.epochs.admission import Admission
from shared.keys import Keys
from shared.log import Log
from shared.redis import check_installation, command, connect
from tests.acceptance.harness import (
    Ended,
    Installation,
    RedisServer,
    clean_environment,
    dateline,
    descendants,
    eventually,
    fields_of,
    free_port,
    later,
    newsroom_at,
)
from tests.integration.builders import appending_entry, damaged, open_feed, published

FEED_FIELDS = {
    "": "feed shard status entries head recorded_at checkpoint lag_events lag_seconds generation fold_version epoch"
    " quarantine log archive build",
    "epoch": "number raised_at reason because",
    "quarantine": "open discarded",
    "log": "events memory_bytes first",
    "archive": "url archived_to trimmed_to bytes",
}
INSTALLATION_FIELDS = {
    "": "release at running data_dir key_prefix server projectors gateways shards",
    "server": "name version role replicas run_id up_seconds durability problem memory_used_bytes memory_max_bytes aof",
}
SHARD_FIELDS = "shard tag holder fence seconds_left feeds dirty_feeds builds admission"
TOTALS_FIELDS = (
    "feeds entries log_events log_memory_bytes lagging_feeds lag_events lag_seconds quarantined_feeds"
    " quarantined_events discarded_events building_feeds archived_feeds archive_bytes"
)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """An installation with one feed, `calm`, of one entry."""
    installation = Installation(tmp_path_factory.mktemp("status") / "data", free_port()).start()
    place = {"DATELINE_URL": installation.base_url, "DATELINE_DATA_DIR": str(installation.data_dir)}
    for words in (("open", "calm", "--title", "Calm"), ("publish", "calm", "It is on")):
        ended = dateline(*words, environment=clean_environment(**place))
        assert ended.code == 0, ended.error
    yield installation
    for pid in projectors_of(installation) if installation.service else []:
        os.kill(pid, signal.SIGCONT)
    installation.kill()


def status(*words: str, **settings: str) -> Ended:
    return dateline("ops", "status", *words, environment=clean_environment(**settings))


def read(own: Installation, *feeds: str) -> tuple[int, dict[str, Any]]:
    """The exit code and the JSON document."""
    ended = status(*feeds, "--json", "--data-dir", str(own.data_dir))
    assert ended.output, ended.error
    return ended.code, json.loads(ended.output)


def codes(found: dict[str, Any]) -> list[tuple[str, str | None]]:
    return [(trouble["code"], trouble["feed"]) for trouble in found["troubles"]]


def projectors_of(own: Installation) -> list[int]:
    assert own.running.process is not None
    return [pid for pid, line in descendants(own.running.process.pid).items() if "services.projector" in line]


def test_nothing_wrong_is_exit_0_and_every_field_is_there(own: Installation) -> None:
    code, found = read(own)
    assert (code, found["troubles"], found["trouble_counts"]) == (0, [], {})
    assert set(found) == fields_of("installation feeds ok totals troubles trouble_counts")
    assert found["ok"] is True
    [feed] = found["feeds"]
    for part, names in FEED_FIELDS.items():
        assert set(feed[part] if part else feed) == fields_of(names)
    for part, names in INSTALLATION_FIELDS.items():
        assert set(found["installation"][part] if part else found["installation"]) == fields_of(names)
    assert all(set(one) == fields_of("name fold_version read_models") for one in found["installation"]["projectors"])
    assert all(set(shard) == fields_of(SHARD_FIELDS) for shard in found["installation"]["shards"])
    admissions = [shard["admission"] for shard in found["installation"]["shards"]]
    assert all(set(one) == fields_of("admitted admitted_at raising raised_at raised_because") for one in admissions)
    assert all(one["admitted"] and one["raising"] is None for one in admissions)
    assert set(found["totals"]) == fields_of(TOTALS_FIELDS)
    assert (feed["feed"], feed["head"], feed["checkpoint"], feed["lag_events"]) == ("calm", "1-2", "1-2", 0)
    assert feed["build"] is None
    assert set(feed["archive"].values()) == {None}
    assert (feed["lag_seconds"], feed["generation"], feed["entries"], feed["status"]) == (0.0, 1, 1, "open")
    installation = found["installation"]
    assert (installation["running"], installation["server"]["durability"]) == (True, "fsync")
    assert len(installation["projectors"]) == 1
    assert {shard["holder"] for shard in installation["shards"]} == {
        projector["name"] for projector in installation["projectors"]
    }


def test_people_read_a_table_and_feeds_can_be_named(own: Installation) -> None:
    ended = status("calm", "--shards", "--data-dir", str(own.data_dir))
    assert ended.code == 0, ended.error
    assert ended.output.startswith("All is well.\n")
    assert "durability fsync" in ended.output
    assert "16 of 16 held" in ended.output
    [row] = [line.split() for line in ended.output.splitlines() if line.startswith("calm ")]
    assert row[:6] == ["calm", "open", "1", "1-2", "0", "1"]


def test_the_server_can_be_given_by_url(own: Installation, tmp_path: Path) -> None:
    record = ServerRecord.read(own.data_dir)
    assert record is not None
    for words, settings in ((["--redis-url", record.url], {}), ([], {"DATELINE_REDIS_URL": record.url})):
        ended = status(*words, "--json", **settings)
        assert ended.code == 0, ended.error
        found = json.loads(ended.output)
        assert [feed["feed"] for feed in found["feeds"]] == ["calm"]
        assert found["installation"]["data_dir"] is None


def test_what_cannot_be_looked_at_is_one_sentence(own: Installation, tmp_path: Path) -> None:
    for words, says in (
        (["nowhere", "--data-dir", str(own.data_dir)], "There is no feed 'nowhere'"),
        (["--data-dir", str(tmp_path)], "there is no data of an `up`"),
        (["--redis-url", f"redis://127.0.0.1:{free_port()}/0"], "Error"),
    ):
        ended = status(*words)
        assert (ended.code, ended.output) == (1, "")
        assert says in ended.error
        assert "Traceback" not in ended.error
    assert status("--limit", "-1").code == 2


async def test_a_replica_can_be_looked_at_and_an_empty_server_is_left_empty(tmp_path: Path) -> None:
    servers = []
    try:
        for name in ("primary", "replica"):
            (tmp_path / name).mkdir()
            servers.append(RedisServer(tmp_path / name).start())
        primary, replica = (connect(server.url) for server in servers)
        ended = status("--redis-url", servers[0].url)
        assert (ended.code, ended.output) == (1, "")
        assert "there is no installation" in ended.error
        assert await command(primary, "DBSIZE") == 0
        await check_installation(primary, Keys())
        await Admission(primary, Keys()).admit()
        await open_feed(Log(primary, Keys()), "calm")
        await command(replica, "REPLICAOF", "127.0.0.1", servers[0].port)

        async def copied() -> bool:
            return bool(await command(replica, "EXISTS", Keys().feed("calm").log))

        await eventually(copied, what="the replica has the feed")
        found = json.loads(status("--json", "--redis-url", servers[1].url).output)
        assert found["installation"]["server"]["role"] == "replica"
        assert [(feed["feed"], feed["head"], feed["lag_events"]) for feed in found["feeds"]] == [("calm", "1-1", 1)]
        for client in (primary, replica):
            await client.aclose()
    finally:
        for server in servers:
            server.kill()


async def test_a_projector_that_stands_still_is_said_with_the_lag(own: Installation) -> None:
    [projector] = projectors_of(own)
    os.kill(projector, signal.SIGSTOP)
    try:
        async with newsroom_at(own.base_url, own.token) as newsroom:
            before = (await newsroom.feed("calm"))["position"]
            for number in range(3):
                await newsroom.publish("calm", f"Unread {number}")

        def nobody_projects() -> Any:
            code, found = read(own)
            [feed] = found["feeds"]
            assert (feed["lag_events"], feed["head"], feed["checkpoint"]) == (3, later(before, 3), before)
            assert feed["lag_seconds"] > 0
            return codes(found) == [("projectors", None)] and code == 1

        await eventually(nobody_projects, what="the projector's lease runs out", every_seconds=0.2)
        ended = status("--data-dir", str(own.data_dir))
        assert ended.output.startswith("This needs somebody:\n  projectors  no projector is alive")
        assert "0 of 16 held" in ended.output
    finally:
        os.kill(projector, signal.SIGCONT)

    def folded() -> bool:
        code, found = read(own)
        return code == 0 and found["feeds"][0]["lag_events"] == 0

    await eventually(folded, what="the lag is folded")


async def test_a_quarantined_event_needs_somebody_on_a_running_and_on_a_stopped_installation(
    own: Installation,
) -> None:
    async with newsroom_at(own.base_url, own.token) as newsroom:
        await newsroom.open_feed("torn")
    record = ServerRecord.read(own.data_dir)
    assert record is not None
    redis = connect(record.url)
    await Log(redis, Keys()).append("torn", appending_entry("e1", event=damaged(published("e1"))))
    await redis.aclose()

    def quarantined() -> bool:
        code, found = read(own)
        return code == 1 and codes(found) == [("quarantine", "torn")]

    await eventually(quarantined, what="the event is in quarantine")
    assert read(own, "calm")[0] == 0
    ended = status("--data-dir", str(own.data_dir))
    assert "quarantine  torn: 1 event in quarantine" in ended.output
    rows = [line.split()[0] for line in ended.output.splitlines() if line.startswith(("calm ", "torn "))]
    assert rows == ["torn", "calm"]

    assert own.stop() == 0
    code, found = read(own)
    assert (code, found["ok"], codes(found)) == (1, False, [("quarantine", "torn")])
    assert (found["installation"]["running"], found["installation"]["projectors"]) == (False, [])
    assert sorted(feed["feed"] for feed in found["feeds"]) == ["calm", "torn"]
    assert read(own, "calm")[0] == 0
    # Given up, it stays out and needs nobody any more.
    given_up = ("quarantine", "discard", "torn", "1-2", "--reason", "sent twice", "--data-dir", str(own.data_dir))
    ended = dateline("ops", *given_up, environment=clean_environment())
    assert ended.code == 0, ended.error
    code, found = read(own, "torn")
    assert (code, found["ok"], found["feeds"][0]["quarantine"]) == (0, True, {"open": 0, "discarded": 1})
    # The look has left nothing running, and nothing locked.
    own.start()
    assert read(own, "calm")[0] == 0
