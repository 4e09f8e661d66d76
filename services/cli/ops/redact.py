"""`dateline ops redact`: one entry's content out of every place, for good, with a receipt.

Owns the order of the places. Each is cleared by whom it belongs to: the log by the writer's `redaction`, read models by the
projector, frames by the gateways, the server's files by `persisted`.
"""

import asyncio
import getpass
import secrets
from collections.abc import Sequence

import click
import structlog

from services.cli.ops.persisted import clear_server, look_into_files, remove_torn_tails
from services.cli.ops.receipt import Place, Receipt
from services.cli.ops.server import Server, run_verb, server_options
from services.projector.retired import only_active_generation
from services.writer.redaction import Redactions
from shared.archive.removal import Removal
from shared.epochs.admission import Admission
from shared.errors import Corrupted, Unavailable
from shared.keys import Keys
from shared.log import Log
from shared.members import Members
from shared.position import Position
from shared.redis import Redis, command

log = structlog.get_logger()

FOLD_SECONDS_MAX = 30.0
CONFIRM_SECONDS_MAX = 2.0
LOOK_SECONDS = 0.02


@click.command()
@click.argument("feed")
@click.argument("entry")
@click.option(
    "--reason", required=True, help="Why, for the record (a court order's number, say); readers never see it."
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="The receipt as JSON.")
@server_options
def redact(
    feed: str, entry: str, *, reason: str, yes: bool, as_json: bool, redis_url: str | None, data_dir: str | None
) -> None:
    """Remove an entry's content for good, from every place, and print a receipt.

    The entry becomes a tombstone; what stays is that there was something, who wrote it when, and its SHA-256. Exit code 1
    when a place is not confirmed; run again, it clears what is left.
    """
    if not yes:
        click.confirm(f"Remove the content of {feed}/{entry} from log, archive and all views, for good?", abort=True)

    async def run(server: Server) -> int:
        receipt = await carry_out(server, feed, entry, reason=reason, by=f"ops:{getpass.getuser()}")
        if as_json:
            click.echo(receipt.as_json())
        else:
            click.echo("\n".join(receipt.lines()))
        return 0 if receipt.complete else 1

    run_verb(redis_url, data_dir, run)


async def carry_out(server: Server, feed: str, entry: str, *, reason: str, by: str) -> Receipt:
    """Redact the entry, or clear what an earlier redaction of it left; EntryNotFound for an entry that never was."""
    redactions = Redactions(server.redis, server.keys, Log(server.redis, server.keys))
    await Admission(server.redis, server.keys).admit()
    async with server.projecting():
        redacted, traces = await redactions.append(feed, entry, reason=reason, by=by)
        log.info("entry_redacted", feed=feed, entry=entry, position=str(redacted.position), by=redacted.by)
        emptied = [Position.parse(removed.position) for removed in traces.removed]
        # What readers can reach goes first, what only operators can reach after it.
        places = [await _read_models(server.redis, server.keys, feed, redacted.position)]
        frames = await redactions.empty_frames(feed, traces.positions)
        places.append(Place("frames", confirmed=True, detail=f"{frames} emptied"))
        await _gateways(server.redis, server.keys, redactions, feed, entry)
        if traces.left:
            await redactions.rewrite_log(feed, emptied)
        # Once more: what a gateway read of the log before it was written anew is dropped too.
        places += await _gateways(server.redis, server.keys, redactions, feed, entry)
        left = await redactions.left_in_stream(feed, emptied)
        detail = (
            f"{len(traces.left)} contents removed, digests kept" if not left else f"still at {left}; run this again"
        )
        places.append(Place("log", confirmed=not left, detail=detail))
        places += await _archive(server.redis, server.keys, feed, emptied)
        generations = await only_active_generation(server.redis, server.keys, feed, by=by)
        places.append(Place("other generations", confirmed=True, detail=f"{generations} removed"))
        removed = await redactions.remove_traces(feed, entry, traces)
        places.append(Place("fingerprints and quarantine", confirmed=True, detail=f"{removed} removed"))
    salts = list(traces.salts)
    if server.data_dir is not None:
        remove_torn_tails(server.data_dir, salts)
    places += await clear_server(server.redis)
    if server.data_dir is not None:
        places.append(await look_into_files(server.data_dir, salts))
    return Receipt(feed, entry, str(redacted.position), redacted.by, redacted.reason, list(traces.removed), places)


async def _read_models(redis: Redis, keys: Keys, feed: str, position: Position) -> Place:
    """Wait until readers get the tombstone: from then on no page, change or catch-up holds the content."""
    place = "read models"
    try:
        async with asyncio.timeout(FOLD_SECONDS_MAX):
            while True:
                active = await command(redis, "GET", keys.feed(feed).active)
                if active is not None:
                    meta = keys.feed(feed).of_generation(int(active)).meta
                    checkpoint = Position.parse((await command(redis, "HGET", meta, "checkpoint")).decode())
                    if checkpoint.n >= position.n:
                        return Place(place, confirmed=True, detail=f"the tombstone stands since {checkpoint}")
                await asyncio.sleep(LOOK_SECONDS)
    except TimeoutError:
        return Place(
            place, confirmed=False, detail=f"no projector came to {position} in {FOLD_SECONDS_MAX:.0f} s; run again"
        )


async def _archive(redis: Redis, keys: Keys, feed: str, positions: Sequence[Position]) -> list[Place]:
    """The archive's segments are written anew without the content, and the old objects are looked after: they are gone."""
    removal, cleared = Removal(redis, keys), []
    for url in await removal.places(feed):
        try:
            rewritten = await removal.remove_content(feed, url, positions)
        except (Unavailable, Corrupted) as error:
            # One place that cannot be cleared now must not keep the others from it.
            cleared.append(Place(f"archive {url}", confirmed=False, detail=f"{error}; run this again"))
            continue
        cleared += [
            Place(f"archive {one.url}/{one.before.object}", confirmed=True, detail=f"deleted, now {one.after.object}")
            for one in rewritten
        ] or [Place(f"archive {url}", confirmed=True, detail="no segment held the content")]
    return cleared or [Place("archive", confirmed=True, detail="none")]


async def _gateways(redis: Redis, keys: Keys, redactions: Redactions, feed: str, entry: str) -> list[Place]:
    """Ask every gateway that is alive to drop what it holds; who does not confirm in time is listed as unconfirmed."""
    token = secrets.token_hex(8)
    asked = set(await Members(redis, keys.gateways).alive())
    await redactions.ask_gateways(feed, entry, token=token)
    confirmed: set[str] = set()
    try:
        async with asyncio.timeout(CONFIRM_SECONDS_MAX):
            while not asked <= confirmed:
                confirmed = await redactions.confirmed(feed, token=token)
                await asyncio.sleep(LOOK_SECONDS)
    except TimeoutError:
        pass
    return [
        Place(
            f"gateway {name}",
            confirmed=name in confirmed,
            detail="frames and caches dropped"
            if name in confirmed
            else "did not confirm; restart it, or run this again",
        )
        for name in sorted(asked | confirmed)
    ]
