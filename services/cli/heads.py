"""`heads.json` beside the AOF of an embedded server: the last acknowledged position of each feed, a witness that outlives all
processes.

Owns the file, one each where several processes acknowledge. An AOF that lost its end, or was replaced by an older one, comes
back with less than it says.
"""

import asyncio
from collections.abc import Mapping
from pathlib import Path

import msgspec
import structlog

from services.cli.data_dir import write_whole
from shared.epochs.admission import Admission
from shared.epochs.witness import Witness, report
from shared.keys import Keys
from shared.position import Position
from shared.redis import connect

log = structlog.get_logger()

HEADS_FILE = "heads.json"
# Of one of several processes that acknowledge.
HEADS_FILE_OF = "heads-{}.json"
WRITE_SECONDS = 1.0


def read_heads(data_dir: Path) -> dict[str, Position]:
    """What was acknowledged, as far as the files say, one for each process that did."""
    heads: dict[str, Position] = {}
    for file in (data_dir / HEADS_FILE, *data_dir.glob(HEADS_FILE_OF.format("*"))):
        heads |= _added(heads, _read(file))
    return heads


def _read(file: Path) -> dict[str, Position]:
    """A damaged file is no witness: it accuses nobody."""
    try:
        written = msgspec.json.decode(file.read_bytes(), type=dict[str, str])
        return {feed: Position.parse(position) for feed, position in written.items()}
    except FileNotFoundError:
        return {}
    except (msgspec.MsgspecError, ValueError) as error:
        log.warning("heads_not_read", file=str(file), error=str(error))
        return {}


def write_heads(file: Path, heads: Mapping[str, Position]) -> None:
    write_whole(file, msgspec.json.encode({feed: str(position) for feed, position in heads.items()}))


async def keep_heads(file: Path, witness: Witness) -> None:
    """Write down what the process acknowledged, at most once a second, until cancelled, and once more then."""
    heads = _read(file)
    try:
        while True:
            await asyncio.sleep(WRITE_SECONDS)
            if added := _added(heads, witness.seen):
                heads |= added
                # It waits for the disk.
                await asyncio.to_thread(write_heads, file, dict(heads))
    finally:
        if added := _added(heads, witness.seen):
            write_heads(file, heads | added)


def _added(heads: Mapping[str, Position], seen: Mapping[str, Position]) -> dict[str, Position]:
    return {feed: position for feed, position in seen.items() if feed not in heads or heads[feed] < position}


async def admit_embedded(url: str, data_dir: Path, *, key_prefix: str) -> None:
    """Before anybody else is there: tell a server that was just started what its heads were, and admit it."""
    redis = connect(url)
    try:
        keys = Keys(key_prefix)
        await report(redis, keys, read_heads(data_dir))
        await Admission(redis, keys).admit(alone=True)
    finally:
        await redis.aclose()
