"""`dateline export` and `import`: a feed as one file, out of one installation and into another, over HTTP.

Owns the file on the disk and the pieces that travel. The file's form is `shared.archive.exports`', requests are `client`'s.
"""

import asyncio
import gzip
import os
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import aiohttp
import click
import msgspec

from services.cli.client import DatelineClient
from services.cli.problem import PASSING_STATUSES, Problem
from services.cli.progress import Progress
from services.cli.target import Failed, Target, desk_options, run, target
from services.cli.terminal import plain
from shared.archive.exports import EXPORT_FORMAT, CannotImport, Checked, Closing, Header, encoded
from shared.config import Config
from shared.logs import configure_logs
from shared.ndjson import CHAIN_START, chained, parse_line
from shared.position import ORIGIN, Position

# Below what the writer takes at once.
CHUNK_BYTES_MAX = 1024 * 1024 - 4096
# A connection that breaks is taken up again where it broke; so often without a single new event.
BREAKS_MAX = 5
BREAK_SECONDS = 0.2


class Transferred(NamedTuple):
    feed: str
    position: str
    events: int
    file: str


@click.command("export")
@click.argument("feed")
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    help="Default FEED.ndjson.gz; - writes to standard output. A file is replaced only once the export is whole.",
)
@desk_options
def export_feed(feed: str, output: str | None, url: str, token: str | None, data_dir: Path, as_json: bool) -> None:
    """Write FEED, all its events and what is set aside of them, to one file, from which `import` makes the same feed."""
    server = target(url=url, token=token, data_dir=data_dir)
    file = output or f"{feed}.ndjson.gz"
    # Standard output may be the export's.
    configure_logs(Config(), service="export")
    done = run(_export(server, feed, file), url=url)
    _report("Exported", done, as_json=as_json, err=file == "-")


@click.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=False))
@desk_options
def import_feed(file: str, url: str, token: str | None, data_dir: Path, as_json: bool) -> None:
    """Make the feed of an export: same id, same positions, same documents.

    The whole file is checked before anything is sent. Interrupted, the same command goes on; a feed of this id with other
    events is left alone, and an error.
    """
    server = target(url=url, token=token, data_dir=data_dir)
    configure_logs(Config(), service="import")
    try:
        done = run(_import(server, Path(file), _checked(Path(file))), url=url)
    except (CannotImport, OSError, EOFError, zlib.error) as error:
        raise Failed(f"{plain(file)} is no whole export: {plain(str(error))}") from error
    _report("Imported", done, as_json=as_json, err=False)


async def _export(server: Target, feed: str, file: str) -> Transferred:
    async with server.client() as client:
        # Asked first: a feed that is not there, or a token that is not good, leaves no beginning of a file.
        await client.quarantine(feed)
        with _written(file) as out, Progress("exporting") as progress:
            out.write(encoded(Header(EXPORT_FORMAT, feed)))
            position, chain, end, breaks = ORIGIN, CHAIN_START, "", 0
            while str(position) != end:
                before = position
                try:
                    async with client.events(feed, after=str(position) if position.n else None) as (head, lines):
                        # What is appended meanwhile is left to the next export.
                        end = end or head
                        total = Position.parse(end).n
                        async for line in lines:
                            entry = parse_line(line)
                            if entry.position.n != position.n + 1:
                                raise Failed(f"the server sent {entry.id.decode()} after {position}")
                            out.write(line)
                            position, chain = entry.position, chained(chain, entry)
                            progress.show(feed, done=position.n, total=total)
                            if str(position) == end:
                                break
                except Problem as problem:
                    if problem.status not in PASSING_STATUSES or breaks == BREAKS_MAX:
                        raise
                except (aiohttp.ClientError, TimeoutError):
                    if breaks == BREAKS_MAX:
                        raise
                breaks = breaks + 1 if position == before else 0
                if breaks > BREAKS_MAX:
                    raise Failed(f"the server sent no more after {position}, and its log reaches {end}")
                await asyncio.sleep(BREAK_SECONDS * breaks)
            out.write(encoded(Closing(end, position.n, chain, await _quarantine(client, feed, position))))
    return Transferred(feed, end, position.n, file)


async def _quarantine(client: DatelineClient, feed: str, end: Position) -> dict[str, str]:
    """The records of events up to `end`, once the read models are there: until then one may be missing."""
    found = await client.quarantine(feed, min_position=str(end))
    return {
        position: msgspec.json.encode(record).decode()
        for position, record in found["records"].items()
        if Position.parse(position).n <= end.n
    }


async def _import(server: Target, file: Path, checked: Checked) -> Transferred:
    header, closing = checked.whole
    async with server.client() as client:
        with Progress("importing") as progress, gzip.open(file) as lines:
            chunk = bytearray()
            for line, entry in Checked().lines(lines):
                if chunk and len(chunk) + len(line) > CHUNK_BYTES_MAX:
                    await client.import_events(header.feed, bytes(chunk))
                    progress.show(header.feed, done=entry.position.n - 1, total=checked.events)
                    chunk.clear()
                chunk += line
            if chunk:
                await client.import_events(header.feed, bytes(chunk))
        await client.import_events(header.feed, encoded(closing))
        await _readable(client, header.feed, closing.end)
    return Transferred(header.feed, closing.end, closing.events, str(file))


async def _readable(client: DatelineClient, feed: str, end: str) -> None:
    """Wait until readers have the whole feed."""
    while True:
        try:
            await client.feed(feed, min_position=end)
        except Problem as problem:
            if problem.code == "stale-position":
                return  # its epoch was raised: readers of an earlier copy held positions that this one does not have
            if problem.code != "position-not-yet-readable":
                raise
        else:
            return


def _checked(file: Path) -> Checked:
    checked = Checked()
    with gzip.open(file) as lines:
        for _ in checked.lines(lines):
            pass
    return checked


@contextmanager
def _written(file: str) -> Iterator[gzip.GzipFile]:
    """The export's lines are written here; the file stands under its name only once all of them are on the disk."""
    if file == "-":
        with gzip.GzipFile(fileobj=sys.stdout.buffer, mode="wb", filename="", mtime=0) as packed:
            yield packed
        sys.stdout.buffer.flush()
        return
    path = Path(file)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("xb") as raw:
            with gzip.GzipFile(fileobj=raw, mode="wb", filename="", mtime=0) as packed:
                yield packed
            raw.flush()
            os.fsync(raw.fileno())
        part.rename(path)
    finally:
        part.unlink(missing_ok=True)


def _report(verb: str, done: Transferred, *, as_json: bool, err: bool) -> None:
    if as_json:
        click.echo(msgspec.json.encode(done._asdict()), err=err)
        return
    click.echo(f"{verb}: {plain(done.feed)}", err=err)
    click.echo(f"  {done.events} events up to {done.position} · {plain(done.file)}", err=err)
