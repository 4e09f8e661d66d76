"""Verify with an archive: what is archived and trimmed verifies as one with the stream, and each kind of damage is named."""

from pathlib import Path

import msgspec
import pytest

from shared.archive import segments
from shared.archive.archiving import Archiving
from shared.archive.restoring import Restoring
from shared.archive.trimming import Trimming
from shared.epochs.admission import Admission
from shared.keys import Keys
from shared.position import Position
from shared.redis import Redis, command
from tests.integration.builders import carry_out, desk_of, log_entries, project, publishing, remove_archived
from tests.integration.test_verify import FEED, changing, named, redact, rewrite, verified, write_a_history


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "archives"


@pytest.fixture(autouse=True)
async def archived(redis: Redis, keys: Keys, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "SEGMENT_EVENTS_MAX", 10)
    await write_a_history(redis, keys)
    await project(redis, keys, FEED)
    await Archiving(redis, keys).archive(FEED, url=str(folder))


def objects(folder: Path) -> list[Path]:
    return sorted((folder / FEED).glob("*.ndjson.gz"))


async def test_a_feed_that_is_archived_verifies_before_and_after_it_is_trimmed_and_when_it_goes_on(
    redis: Redis, keys: Keys
) -> None:
    assert (await verified(redis, keys)).ok
    await Trimming(redis, keys).trim(FEED)
    assert len(await log_entries(redis, keys, FEED)) == 1
    report = await verified(redis, keys)
    assert report.ok and report.events == 26, report
    await carry_out(desk_of(redis, keys), FEED, publishing("later"))
    await project(redis, keys, FEED)
    assert (await verified(redis, keys)).ok


async def test_a_feed_whose_redacted_content_left_the_archive_too_verifies(redis: Redis, keys: Keys) -> None:
    await redact(redis, keys, "e1")
    await project(redis, keys, FEED)
    assert named(await verified(redis, keys)) == {("archive", "content at 1-3"), ("archive", "content at 1-14")}
    await remove_archived(redis, keys, FEED, [Position(1, 3), Position(1, 14)])
    report = await verified(redis, keys)
    assert report.ok, report
    await Archiving(redis, keys).archive(FEED, url=None)
    await Trimming(redis, keys).trim(FEED)
    report = await verified(redis, keys)
    assert report.ok, report


async def test_a_feed_that_was_brought_back_from_its_archive_verifies(redis: Redis, keys: Keys) -> None:
    entries = await log_entries(redis, keys, FEED)
    other = Keys(keys.prefix + "-other")
    await Admission(redis, other).admit()
    restoring = Restoring(redis, other)
    await restoring.stage(FEED, entries)
    staged = await restoring.staged(FEED)
    assert await restoring.finish(FEED, last=staged.position, chain=staged.chain, quarantine={})
    await project(redis, other, FEED)
    report = await verified(redis, other)
    assert report.ok, report


async def test_a_changed_object_is_named(redis: Redis, keys: Keys, folder: Path) -> None:
    damaged = objects(folder)[1]
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    assert named(await verified(redis, keys)) == {("archive", f"{FEED}/{damaged.name}")}


async def test_a_missing_object_is_named(redis: Redis, keys: Keys, folder: Path) -> None:
    missing = objects(folder)[2]
    missing.unlink()
    assert named(await verified(redis, keys)) == {("archive", f"{FEED}/{missing.name}")}


async def test_a_changed_manifest_is_named(redis: Redis, keys: Keys, folder: Path) -> None:
    manifest = folder / FEED / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"events":10', b'"events":11', 1))
    [(what, which)] = named(await verified(redis, keys))
    assert what == "archive" and "manifest" in which


async def test_a_missing_manifest_is_named(redis: Redis, keys: Keys, folder: Path) -> None:
    (folder / FEED / "manifest.json").unlink()
    assert named(await verified(redis, keys)) == {("archive", "manifest")}


async def test_an_event_that_was_changed_in_the_stream_alone_is_named_even_where_no_document_shows_it(
    redis: Redis, keys: Keys
) -> None:
    [entry] = [entry for entry in await log_entries(redis, keys, FEED) if entry.id == b"1-18"]
    envelope = {**msgspec.json.decode(entry.fields[b"envelope"]), "by": "somebody else"}
    await rewrite(redis, keys, changing(18, envelope=msgspec.json.encode(envelope)))
    assert named(await verified(redis, keys)) == {("archive", "envelope at 1-18")}


@pytest.mark.parametrize(
    ("field", "value", "which"),
    [
        ("archived_to", "1-99", "manifest"),
        ("chain", "0" * 64, "chain at 1-26"),
        ("trimmed_to", "1-99", "trimmed_to"),
    ],
)
async def test_what_the_shard_knows_of_the_archive_must_be_what_stands_there(
    redis: Redis, keys: Keys, field: str, value: str, which: str
) -> None:
    await command(redis, "HSET", keys.feed(FEED).archive, field, value)
    assert ("archive", which) in named(await verified(redis, keys))


async def test_an_archive_that_cannot_be_reached_is_named(redis: Redis, keys: Keys, folder: Path) -> None:
    (folder / FEED / "manifest.json").unlink()
    (folder / FEED / "manifest.json").mkdir()
    [(what, _)] = named(await verified(redis, keys))
    assert what == "archive"
