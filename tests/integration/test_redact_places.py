"""The operators' redaction over every place at once: log, archive, generations, and what happens when one cannot be cleared."""

import gzip
from pathlib import Path

import pytest

from services.cli.ops import redact as redact_module
from services.cli.ops.receipt import Receipt
from services.cli.ops.redact import carry_out
from services.cli.ops.server import Server
from services.projector.builds import Builds
from shared.archive import segments
from shared.archive.archiving import Archiving
from shared.archive.trimming import Trimming
from shared.config import Config
from shared.keys import Keys
from shared.log import Log
from shared.position import ORIGIN
from shared.redis import Redis, command
from tests.integration.builders import (
    carry_out as carry_out_request,
)
from tests.integration.builders import (
    correcting,
    desk_of,
    dump,
    folded,
    generation_of,
    log_positions,
    opening,
    project,
    publishing,
)
from tests.integration.conftest import RunningServer

FEED = "final"
SECRET = "the name of the child"


@pytest.fixture
def installation(server: RunningServer, redis: Redis, keys: Keys) -> Server:
    config = Config(redis_url=server.url, key_prefix=keys.prefix)
    return Server(config, redis, server.url, None)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "SEGMENT_EVENTS_MAX", 3)


async def trial(redis: Redis, keys: Keys) -> None:
    desk = desk_of(redis, keys)
    await carry_out_request(desk, FEED, opening())
    await carry_out_request(desk, FEED, publishing("named", headline=SECRET))
    for number in range(6):
        await carry_out_request(desk, FEED, publishing(f"entry-{number}"))
    await carry_out_request(desk, FEED, correcting("named", 1, headline=f"{SECRET} again"))
    await carry_out_request(desk, FEED, publishing("last"))
    await project(redis, keys, FEED)


async def redact(installation: Server) -> Receipt:
    return await carry_out(installation, FEED, "named", reason="order 7", by="ops:ann")


def in_archive(folder: Path) -> bytes:
    files = [file for file in folder.rglob("*") if file.is_file()]
    return b"".join(gzip.decompress(f.read_bytes()) if f.suffix == ".gz" else f.read_bytes() for f in files)


async def test_what_is_archived_and_trimmed_loses_the_content_too(
    installation: Server, redis: Redis, keys: Keys, tmp_path: Path
) -> None:
    await trial(redis, keys)
    await Archiving(redis, keys).archive(FEED, url=str(tmp_path))
    await Trimming(redis, keys).trim(FEED)
    assert SECRET.encode() in in_archive(tmp_path)
    assert len(await log_positions(redis, keys, FEED)) < 10
    receipt = await redact(installation)
    assert receipt.complete, receipt
    assert SECRET.encode() not in in_archive(tmp_path)
    assert SECRET not in repr(await dump(redis, keys))
    assert len([p for p in receipt.places if p.place.startswith("archive file://")]) == 2
    whole = [entry async for entry in Log(redis, keys).read(FEED, after=ORIGIN)]
    assert [entry.position.n for entry in whole] == list(range(1, 12))
    assert await generation_of(redis, keys, FEED, 1) == folded(FEED, whole)


async def test_a_build_under_way_and_retired_generations_keep_nothing(
    installation: Server, redis: Redis, keys: Keys
) -> None:
    await trial(redis, keys)
    await Builds(redis, keys).ask(FEED, reason="rebuild", by="ops:ann")
    receipt = await redact(installation)
    assert receipt.complete, receipt
    await Builds(redis, keys).ask(FEED, reason="rebuild", by="ops:ann")
    async with installation.projecting():
        pass
    assert SECRET not in repr(await dump(redis, keys))


async def test_a_damaged_archive_is_listed_and_keeps_no_other_place_from_being_cleared(
    installation: Server, redis: Redis, keys: Keys, tmp_path: Path
) -> None:
    await trial(redis, keys)
    await Archiving(redis, keys).archive(FEED, url=str(tmp_path))
    for file in tmp_path.rglob("*.gz"):
        file.write_bytes(file.read_bytes()[:-1] + b"x")
    receipt = await redact(installation)
    assert [p.place for p in receipt.places if not p.confirmed] == [f"archive {tmp_path.as_uri()}"]
    assert not receipt.complete
    assert SECRET not in repr(await dump(redis, keys))


async def test_without_a_projector_that_comes_so_far_the_read_models_are_not_confirmed(
    installation: Server, redis: Redis, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    await trial(redis, keys)
    monkeypatch.setattr(redact_module, "FOLD_SECONDS_MAX", 0.2)
    # Somebody announces itself and projects nothing.
    await command(redis, "ZADD", keys.projectors, 2**52, "silent")
    receipt = await redact(installation)
    assert "read models" in [p.place for p in receipt.places if not p.confirmed]
