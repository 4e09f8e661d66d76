"""Segments, manifests and exports: what goes in comes out byte for byte, and any damage is found."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.writer.imports import parse_chunk
from services.writer.sanitise import Checked as Sanitising
from services.writer.sanitise import clean_html
from shared.archive.exports import CannotImport, Checked, Closing, Header, encoded
from shared.archive.segments import Manifest, Packing, check_chain, entries_of, seal, unpacked, unseal
from shared.documents import Block, EmbedBlock, ListBlock, TextBlock
from shared.errors import Corrupted, DatelineError, Invalid, NewerLog
from shared.events import EntryContent, EntryPublished, encode
from shared.ndjson import CHAIN_START, StreamEntry, chain_over, line_of

FEED = "final"
parts = st.binary(max_size=60) | st.just(b"") | st.just(b'{"a":1}')


@st.composite
def logs(draw: st.DrawFn) -> list[StreamEntry]:
    """Consecutive events across epochs, whatever their bytes."""
    first = draw(st.integers(1, 10**6))
    epoch, entries = 1, []
    for n in range(first, first + draw(st.integers(1, 12))):
        epoch += draw(st.integers(0, 1))
        fields = {b"envelope": draw(parts), b"content": draw(parts), b"recorded_at": b"%d" % (10**12 + n)}
        entries.append(StreamEntry(b"%d-%d" % (epoch, n), fields))
    return entries


def packing(entries: list[StreamEntry]) -> Packing:
    made = Packing(CHAIN_START)
    for entry in entries:
        made.add(entry)
    return made


@given(logs())
def test_a_segment_gives_back_its_events_and_the_same_events_are_the_same_bytes(entries: list[StreamEntry]) -> None:
    segment, data = packing(entries).packed(FEED, mark="1-a")
    assert packing(entries).packed(FEED, mark="1-a").data == data
    lines = unpacked(segment, data)
    assert entries_of(segment, lines) == entries
    for skip in range(len(entries)):
        assert entries_of(segment, lines[skip:], skip=skip) == entries[skip:]
    check_chain(segment, entries, before=CHAIN_START)
    assert (segment.first, segment.last) == (entries[0].id.decode(), entries[-1].id.decode())
    assert segment.chain == chain_over(CHAIN_START, entries)


@given(logs(), st.data())
def test_a_segment_with_any_byte_changed_or_missing_is_refused(entries: list[StreamEntry], data: st.DataObject) -> None:
    segment, whole = packing(entries).packed(FEED, mark="1-a")
    at = data.draw(st.integers(0, len(whole) - 1))
    flipped = bytearray(whole)
    flipped[at] ^= data.draw(st.integers(1, 255))
    for damaged in (bytes(flipped), whole[:at]):
        with pytest.raises(Corrupted, match="damaged"):
            unpacked(segment, damaged)


@given(logs())
def test_events_that_are_not_those_of_the_chain_are_refused(entries: list[StreamEntry]) -> None:
    segment, _ = packing(entries).packed(FEED, mark="1-a")
    changed = [*entries[:-1], StreamEntry(entries[-1].id, {**entries[-1].fields, b"envelope": b"another"})]
    with pytest.raises(Corrupted, match="chain breaks"):
        check_chain(segment, changed, before=CHAIN_START)
    with pytest.raises(Corrupted, match="chain breaks"):
        check_chain(segment, entries, before="0" * 64)
    # A removed content is no damage: the digest in the envelope stands for it.
    check_chain(segment, [StreamEntry(e.id, {**e.fields, b"content": b""}) for e in entries], before=CHAIN_START)
    lines = [line_of(e) for e in entries]
    with pytest.raises(Corrupted, match="where n must be"):
        entries_of(segment, [*lines, lines[-1]])


def test_a_manifest_tells_damage_another_feed_a_gap_and_a_newer_form_apart() -> None:
    entries = [StreamEntry(b"1-%d" % n, {b"envelope": b"", b"content": b"", b"recorded_at": b"1"}) for n in (1, 2)]
    segment, _ = packing(entries).packed(FEED, mark="1-a")
    manifest = Manifest(1, FEED, 3, [segment], {"1-2": "{}"})
    assert unseal(seal(manifest), feed=FEED, where="here") == manifest
    sealed = seal(manifest)
    for at in range(len(sealed) - 1):
        with pytest.raises(Corrupted, match="here"):
            unseal(sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :], feed=FEED, where="here")
    with pytest.raises(Corrupted, match="of the feed 'final'"):
        unseal(sealed, feed="other", where="here")
    with pytest.raises(Corrupted, match="a gap before 1-1"):
        unseal(seal(msgspec.structs.replace(manifest, segments=[segment, segment])), feed=FEED, where="here")
    with pytest.raises(NewerLog, match="format 2"):
        unseal(seal(msgspec.structs.replace(manifest, format=2)), feed=FEED, where="here")


def export(count: int = 3) -> list[bytes]:
    entries = [
        StreamEntry(b"1-%d" % n, {b"envelope": b"{}", b"content": b"", b"recorded_at": b"1000"})
        for n in range(1, count + 1)
    ]
    closing = Closing(f"1-{count}", count, chain_over(CHAIN_START, entries), {})
    return [encoded(Header(1, FEED)), *(line_of(entry) for entry in entries), encoded(closing)]


def test_a_whole_export_is_read_and_one_without_any_of_its_lines_is_refused() -> None:
    lines = export()
    checked = Checked()
    assert [line for line, _ in checked.lines(lines)] == lines[1:-1]
    assert checked.events == 3 and checked.whole[0].feed == FEED
    for missing in range(len(lines)):
        with pytest.raises(CannotImport):
            list(Checked().lines(lines[:missing] + lines[missing + 1 :]))
    for twice in range(len(lines)):
        with pytest.raises(CannotImport):
            list(Checked().lines(lines[: twice + 1] + lines[twice:]))
    with pytest.raises(CannotImport, match="line 2: the line is none"):
        list(Checked().lines([lines[0], b"hello\n"]))
    with pytest.raises(CannotImport, match="format 2"):
        list(Checked().lines([encoded(Header(2, FEED)), *lines[1:]]))
    changed = encoded(Closing("1-3", 3, "0" * 64, {}))
    with pytest.raises(CannotImport, match="not those that the closing line tells of"):
        list(Checked().lines([*lines[:-1], changed]))


def test_a_chunk_may_hold_a_header_events_and_a_closing_line_in_this_order() -> None:
    lines = export()
    chunk = parse_chunk(b"".join(lines), feed=FEED, now_milliseconds=1000)
    assert len(chunk.entries) == 3 and chunk.closing is not None
    assert parse_chunk(lines[1], feed=FEED, now_milliseconds=1000).closing is None


RECORD = '{"position":"1-2","reason":"r","type":null,"entry":null,"recorded_at":1}'


@pytest.mark.parametrize(
    ("lines", "named"),
    [
        ([], "no event"),
        ([b"x\n"], "line 1"),
        ([export()[1], b"{}\n"], "line 2"),
        ([export()[1], export()[0]], "/1"),
        ([encoded(Header(1, "other")), export()[1]], "/0/feed"),
        ([export()[-1], export()[1]], "/1"),
        ([encoded(Closing("x", 1, "", {}))], "/0/end"),
        ([encoded(Closing("1-3", 2, "", {}))], "/0/events"),
        ([encoded(Closing("1-3", 3, "", {"1-2": "{}"}))], "/0/quarantine"),
        ([encoded(Closing("1-3", 3, "", {"1-3": RECORD}))], "/0/quarantine"),
        ([encoded(Closing("1-1", 1, "", {"1-2": RECORD}))], "/0/quarantine"),
        ([export()[1].replace(b"1970", b"1980")], "/0/recorded_at"),
    ],
)
def test_a_chunk_that_is_not_valid_is_refused_and_the_line_named(lines: list[bytes], named: str) -> None:
    with pytest.raises(DatelineError, match=named):
        parse_chunk(b"".join(lines), feed=FEED, now_milliseconds=1000)
    accepted = encoded(Closing("1-3", 3, "", {"1-2": RECORD}))
    assert parse_chunk(accepted, feed=FEED, now_milliseconds=1000).closing is not None


def recorded(content: object) -> bytes:
    """The line of a publication with this body, digest and all."""
    event = encode(EntryPublished("e1", None, False, content), command="c", by="b", causation=None)  # type: ignore[arg-type]
    fields = {b"envelope": event.envelope, b"content": event.content, b"recorded_at": b"1"}
    return line_of(StreamEntry(b"1-2", fields))


@pytest.mark.parametrize(
    ("block", "path"),
    [
        (TextBlock(html="<script>alert(1)</script>on it goes"), "/0/content/body"),
        (TextBlock(html='<a href="javascript:alert(1)">on</a>'), "/0/content/body"),
        (ListBlock(items=["one", "<img src=x onerror=alert(1)>two"]), "/0/content/body"),
        (EmbedBlock(url="javascript:alert(1)"), "/0/content/body/0/url"),
    ],
)
def test_an_edited_file_brings_no_markup_that_no_desk_could_have_sent(block: Block, path: str) -> None:
    line = recorded(EntryContent("It is on", [block], [], []))
    with pytest.raises(Invalid) as refused:
        parse_chunk(line, feed=FEED, now_milliseconds=1000)
    assert path in [error.path for error in refused.value.errors]


def test_what_desks_sent_is_let_in_as_it_stands() -> None:
    blocks: list[Block] = [
        TextBlock(
            html='A &amp; B, <em>both</em> at <a href="https://example.org/?a=1&amp;b=2" rel="noopener">x</a><br>'
        ),
        ListBlock(items=["one <strong>1</strong>", "two"]),
        EmbedBlock(url="https://example.org/v"),
    ]
    sanitised = Sanitising(now_milliseconds=0).body(blocks, "")
    [entry] = parse_chunk(recorded(EntryContent(None, sanitised, [], [])), feed=FEED, now_milliseconds=1000).entries
    assert entry.position.n == 2


tokens = ["<em>", "</em>", "<a href='https://e.org?a=1&b=2'>", "</a>", "<br>", "<b>", "&lt;", "&", "<", " ", "x"]
pieces = st.lists(st.sampled_from(tokens), max_size=12).map("".join)


@given(pieces)
def test_what_sanitising_leaves_it_leaves_again(html: str) -> None:
    """Else an import would refuse what a desk sent."""
    once = clean_html(html)
    assert clean_html(once) == once
    first = Sanitising(now_milliseconds=0)
    body = first.body([TextBlock(html=f"x{html}"), ListBlock(items=[f"y {html}"])], "")
    assert Sanitising(now_milliseconds=0).body(body, "") == body
