"""The newsroom verbs: open a feed; publish, correct, retract and pin its entries, over HTTP.

Owns what a desk types and what it reads back. Requests are `client`'s, the server and the token `target`'s business.
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import msgspec

from services.cli.client import DatelineClient, Written
from services.cli.content import Content, content_options
from services.cli.problem import Problem
from services.cli.reader import Document
from services.cli.target import Failed, Target, desk_options, run, target
from services.cli.terminal import clock, escaped_json, plain, title_of, zone_of

CLEARABLE = ("headline", "body", "authors", "tags")


@click.command("open")
@click.argument("feed")
@click.option("--title", required=True, metavar="TEXT")
@click.option("--summary", metavar="TEXT", help="What the story is about, in a sentence or two.")
@click.option("--language", metavar="TAG", help="BCP 47, such as en or fr-CH.")
@click.option("--timezone", metavar="ZONE", help="IANA, such as Europe/Paris.")
@click.option("--topic", multiple=True, metavar="TOPIC", help="A topic; give it several times.")
@click.option("--private", is_flag=True, help="Only for readers with a token.")
@click.option(
    "--replace", is_flag=True, help="An open feed gets these fields too; what is not given becomes its default."
)
@desk_options
def open_feed(
    feed: str,
    title: str,
    summary: str | None,
    language: str | None,
    timezone: str | None,
    topic: tuple[str, ...],
    private: bool,
    replace: bool,
    url: str,
    token: str | None,
    data_dir: Path,
    as_json: bool,
) -> None:
    """Open FEED, a live story of its own.

    A feed that is open already stays as it is: without --replace, differing fields are an error.
    """
    given = {"title": title, "summary": summary, "language": language, "timezone": timezone, "topics": list(topic)}
    fields = {name: value for name, value in given.items() if value}
    fields["visibility"] = "private" if private else "public"
    server = target(url=url, token=token, data_dir=data_dir)
    written, verb = run(_open(server, feed, fields, replace=replace), url=url)
    if as_json:
        _print_json(written.document)
        return
    click.echo(f"{verb}: {plain(written.document['title'])}")
    click.echo(f"  feed {feed} · position {written.document['position']} · {url.rstrip('/')}/live/{feed}")


async def _open(server: Target, feed: str, fields: Document, *, replace: bool) -> tuple[Written, str]:
    async with server.client() as client:
        try:
            written = await client.open_feed(feed, fields, only_new=not replace)
        except Problem as problem:
            if problem.status != 412:
                raise
            standing = await client.feed(feed)
            different = [name for name, value in fields.items() if standing[name] != value]
            if different:
                raise Failed(
                    f"{feed} is open already, with another {', '.join(different)}; --replace replaces its fields"
                ) from problem
            return Written(standing, None, standing["position"], created=False, replayed=False), "Open already"
    return written, "Opened" if written.created or written.replayed else "Replaced"


@click.command()
@click.argument("feed")
@click.argument("headline", required=False)
@content_options
@click.option("--key-event", is_flag=True, help="Mark it as a key event.")
@click.option("--pin", "pinned", is_flag=True, help="Pin it to the top of the page.")
@click.option("--id", "entry_id", metavar="ID", help="The entry's id; publishing the same again is then safe.")
@desk_options
def publish(
    feed: str,
    headline: str | None,
    key_event: bool,
    pinned: bool,
    entry_id: str | None,
    url: str,
    token: str | None,
    data_dir: Path,
    as_json: bool,
    **content: Any,
) -> None:
    """Publish an entry in FEED. A headline alone is a flash; a text alone is fine too."""
    entry = Content(**content).fields()
    if headline is not None:
        entry["headline"] = headline
    if not headline and not entry.get("body"):
        raise click.UsageError("an entry needs a headline or something to read, such as --text")
    if key_event:
        entry["key_event"] = True
    if entry_id is not None:
        entry["id"] = entry_id
    server = target(url=url, token=token, data_dir=data_dir)
    _report("Published", run(_publish(server, feed, entry, pinned=pinned), url=url), as_json=as_json)


async def _publish(server: Target, feed: str, entry: Document, *, pinned: bool) -> Document:
    async with server.client() as client:
        document = (await client.publish(feed, entry)).document
        if not pinned:
            return document
        try:
            return (await client.pin(feed, document["id"])).document
        except Problem as problem:
            raise Failed(f"published as {document['id']}, but not pinned: {plain(problem.detail)}") from problem


@click.command()
@click.argument("feed")
@click.argument("entry")
@click.argument("headline", required=False)
@content_options
@click.option("--note", metavar="TEXT", help="What readers are told was wrong.")
@click.option("--clear", multiple=True, type=click.Choice(CLEARABLE), help="Remove this part; give it several times.")
@click.option("--key-event/--no-key-event", default=None, help="Mark it as a key event, or not.")
@click.option("--pin/--no-pin", "pinned", default=None, help="Pin it, or not.")
@click.option(
    "--revision", type=click.IntRange(min=1), help="The revision that you saw; without it, the one that stands now."
)
@desk_options
def correct(
    feed: str,
    entry: str,
    headline: str | None,
    note: str | None,
    clear: tuple[str, ...],
    key_event: bool | None,
    pinned: bool | None,
    revision: int | None,
    url: str,
    token: str | None,
    data_dir: Path,
    as_json: bool,
    **content: Any,
) -> None:
    """Correct or retime ENTRY of FEED. What is not given stays; a body is replaced whole.

    With --revision, a correction that another desk made in between is an error and not overwritten.
    """
    changes = Content(**content).fields()
    if headline is not None:
        changes["headline"] = headline
    for name in clear:
        if name in changes:
            raise click.UsageError(f"--clear {name} and a new {name} exclude each other")
        changes[name] = None
    if not changes and key_event is None and pinned is None:
        raise click.UsageError("nothing to correct: give what is to change")
    if note is not None:
        changes["correction_note"] = note
    server = target(url=url, token=token, data_dir=data_dir)
    work = _correct(server, feed, entry, changes, revision=revision, key_event=key_event, pinned=pinned)
    verb, document = run(work, url=url)
    _report(verb, document, as_json=as_json)


async def _correct(
    server: Target,
    feed: str,
    entry: str,
    changes: Document,
    *,
    revision: int | None,
    key_event: bool | None,
    pinned: bool | None,
) -> tuple[str, Document]:
    async with server.client() as client:
        document: Document | None = None
        verb = "Corrected"
        if changes:
            document, changed = await _change(client, feed, entry, changes, revision=revision)
            if not changed and key_event is None and pinned is None:
                verb = "Unchanged"
        if key_event is not None:
            document = (await client.key_event(feed, entry, on=key_event)).document
        if pinned is not None:
            document = (await client.pin(feed, entry, on=pinned)).document
        return verb, document if document is not None else await client.entry(feed, entry)


async def _change(
    client: DatelineClient, feed: str, entry: str, changes: Document, *, revision: int | None
) -> tuple[Document, bool]:
    """The corrected document, and whether the correction changed anything.

    Without a revision to insist on, the one that stands is asked of whoever decides: a refusal tells it, while the read
    models may be a moment behind.
    """
    expected = revision or 1
    while True:
        try:
            document = (await client.correct(feed, entry, changes, revision=expected)).document
        except Problem as problem:
            if problem.status != 412 or problem.current is None:
                raise
            standing = problem.current
            if revision is not None:
                raise Failed(
                    f"another desk was first: {plain(entry)} is at revision {standing['revision']}, not {revision}; "
                    f"it reads now: {title_of(standing)}"
                ) from problem
            expected = standing["revision"]
        else:
            # A correction that changes nothing appends nothing, and the revision says so.
            return document, document["revision"] != expected


@click.command()
@click.argument("feed")
@click.argument("entry")
@click.option("--reason", metavar="TEXT", help="What readers are told.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@desk_options
def retract(
    feed: str,
    entry: str,
    reason: str | None,
    yes: bool,
    url: str,
    token: str | None,
    data_dir: Path,
    as_json: bool,
) -> None:
    """Retract ENTRY of FEED, for good: its content leaves every page."""
    server = target(url=url, token=token, data_dir=data_dir)
    standing, feed_document = run(_standing(server, feed, entry), url=url)
    if standing["status"] == "retracted":
        _report("Retracted already", standing, as_json=as_json)
        return
    at = clock(standing["published_at"], zone_of(feed_document), today=datetime.now(UTC))
    click.echo(f"{at}  {title_of(standing)}", err=True)
    if not yes:
        click.confirm("Retract it, for good?", abort=True, err=True)
    _report("Retracted", run(_retract(server, feed, entry, reason=reason), url=url), as_json=as_json)


async def _standing(server: Target, feed: str, entry: str) -> tuple[Document, Document]:
    async with server.client() as client:
        return await client.entry(feed, entry), await client.feed(feed)


async def _retract(server: Target, feed: str, entry: str, *, reason: str | None) -> Document:
    async with server.client() as client:
        return (await client.retract(feed, entry, reason=reason)).document


@click.command()
@click.argument("feed")
@click.argument("entry")
@click.option("--off", is_flag=True, help="Take the pin off.")
@desk_options
def pin(feed: str, entry: str, off: bool, url: str, token: str | None, data_dir: Path, as_json: bool) -> None:
    """Pin ENTRY to the top of FEED's page; it keeps its place in the story too."""
    server = target(url=url, token=token, data_dir=data_dir)
    document = run(_pin(server, feed, entry, on=not off), url=url)
    _report("Unpinned" if off else "Pinned", document, as_json=as_json)


async def _pin(server: Target, feed: str, entry: str, *, on: bool) -> Document:
    async with server.client() as client:
        return (await client.pin(feed, entry, on=on)).document


def _report(verb: str, document: Document, *, as_json: bool) -> None:
    if as_json:
        _print_json(document)
        return
    retracted = document["status"] == "retracted"
    what = plain(document["reason"] or "no reason given") if retracted else title_of(document)
    click.echo(f"{verb}: {what}")
    click.echo(f"  id {document['id']} · revision {document['revision']} · position {document['position']}")


def _print_json(document: Document) -> None:
    click.echo(escaped_json(msgspec.json.encode(document).decode()))
