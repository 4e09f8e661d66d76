"""Decide, append, fold and index against a model that a reader could keep on paper (hypothesis, stateful)."""

from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from services.projector.commit import Commit, Pending, prepare
from services.writer.commands import (
    Command,
    CorrectEntry,
    MarkKeyEvent,
    OpenFeed,
    PinEntry,
    PublishEntry,
    RetractEntry,
    ReviseFeed,
    UnmarkKeyEvent,
    UnpinEntry,
)
from services.writer.decide import PINS_MAX, State, plan
from shared.documents import Document, Entry, Feed, Tombstone, parse_document, parse_feed, render
from shared.errors import Refused
from shared.events import EntryChanges, EntryContent, FeedChanges, FeedFields, encode
from shared.fingerprints import fingerprint
from shared.ndjson import StreamEntry
from shared.position import ORIGIN, Position
from shared.read_models import CHRONOLOGICAL_KEY_CHARACTERS, N_CHARACTERS, READ_MODELS, index_for

FEED = "story"
IDS = [f"e{i}" for i in range(14)]
ids = st.sampled_from(IDS)
times = st.sampled_from([None, "2022-01-10T18:38:00.000Z", "2022-01-10T18:38:00.001Z", "2021-12-31T23:59:59.999Z"])
tags = st.lists(st.sampled_from(["live", "été", "a:b"]), unique=True, max_size=3)
headlines = st.sampled_from(["one", "two", "three"])


def opened() -> OpenFeed:
    fields = FeedFields(
        title="t", summary=None, language="en", timezone="UTC", topics=[], image=None, url=None, visibility="public"
    )
    return OpenFeed(fields, only_open=False)


class Newsroom(RuleBasedStateMachine):
    """Commands in any order; the real decide, encode, decode, fold and index changes; a dictionary as the model."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[StreamEntry] = []
        self.clock = 1_641_800_000_000
        self.state = State(feed_id=FEED, status=None, feed=None, entries={}, fingerprints={}, pinned=set())
        # The model: what a page must show.
        self.expected: dict[str, dict[str, Any]] = {}
        self.closed = False
        # Read models, committed in batches of any size.
        self.feed: Feed | None = None
        self.documents: dict[str, bytes] = {}
        self.indexes: dict[str, set[str]] = {}
        self.committed = 0
        self.frames: list[Any] = []

    def carry_out(self, command: Command) -> bool:
        """Decide and append one command; whether it made events."""
        head = Position(1, len(self.log)) if self.log else Position(1, 0)
        self.clock += 7
        made = plan(self.state, [command], head=head, recorded_at=self.clock, batch=False)
        for event in made.events:
            encoded = encode(event, command="c", by="ops", causation=None)
            fields = {
                b"envelope": encoded.envelope,
                b"content": encoded.content,
                b"recorded_at": str(self.clock).encode(),
            }
            self.log.append(StreamEntry(f"1-{len(self.log) + 1}".encode(), fields))
        return bool(made.events)

    def refused(self, command: Command) -> str:
        before = msgspec.json.encode([self.state.feed, sorted(self.state.entries), sorted(self.state.pinned)])
        try:
            self.carry_out(command)
        except Refused as error:
            after = msgspec.json.encode([self.state.feed, sorted(self.state.entries), sorted(self.state.pinned)])
            assert before == after
            return error.code
        raise AssertionError(f"{command} was not refused")

    @initialize()
    def open(self) -> None:
        assert self.refused(ReviseFeed(FeedChanges(title="x"), None)) == "feed-not-found"
        assert self.carry_out(opened())

    @rule(entry=ids, at=times, tags=tags, headline=headlines, key_event=st.booleans())
    def publish(self, entry: str, at: str | None, tags: list[str], headline: str, key_event: bool) -> None:
        content = EntryContent(headline=headline, body=[], authors=[], tags=tags)
        print_ = fingerprint(at, key_event, content)
        command = PublishEntry(entry, True, at, key_event, content, print_)
        known = self.expected.get(entry)
        if known is None:
            if self.closed:
                assert self.refused(command) == "feed-closed"
                return
            assert self.carry_out(command)
            self.expected[entry] = {
                "live": True, "revision": 1, "headline": headline, "tags": tags, "key_event": key_event,
                "at": at, "recorded": self.clock, "first": len(self.log), "position": len(self.log), "pinned": None,
                "print": print_,
            }  # fmt: skip
        elif not known["live"]:
            assert self.refused(command) == "entry-retracted"
        elif known["print"] == print_:
            assert not self.carry_out(command)
        else:
            assert self.refused(command) == "entry-exists"

    @rule(entry=ids, stale=st.booleans(), headline=st.none() | headlines, at=times, tags=st.none() | tags)
    def correct(self, entry: str, stale: bool, headline: str | None, at: str | None, tags: list[str] | None) -> None:
        known = self.expected.get(entry)
        given: dict[str, Any] = {}
        if headline is not None:
            given["headline"] = headline
        if tags is not None:
            given["tags"] = tags
        revision = (known["revision"] if known else 1) + stale
        command = CorrectEntry(entry, frozenset({revision}), at, EntryChanges(**given))
        if known is None:
            assert self.refused(command) == "entry-not-found"
        elif not known["live"]:
            assert self.refused(command) == "entry-retracted"
        elif stale:
            assert self.refused(command) == "revision-conflict"
        else:
            shown = self.shown(entry)
            differs = any(getattr(shown, name) != value for name, value in given.items())
            differs |= at not in (None, shown.published_at)
            assert self.carry_out(command) == differs
            if differs:
                known.update(given, revision=known["revision"] + 1, position=len(self.log))
                known["at"] = at or known["at"]

    @rule(entry=ids)
    def retract(self, entry: str) -> None:
        known = self.expected.get(entry)
        if known is None:
            assert self.refused(RetractEntry(entry, None)) == "entry-not-found"
            return
        assert self.carry_out(RetractEntry(entry, "because")) == known["live"]
        if known["live"]:
            known.update(live=False, position=len(self.log), pinned=None)

    @rule(entry=ids, on=st.booleans())
    def pin(self, entry: str, on: bool) -> None:
        command: Command = PinEntry(entry) if on else UnpinEntry(entry)
        known = self.expected.get(entry)
        if known is None or not known["live"]:
            self.refused(command)
        elif on and not known["pinned"] and sum(bool(e["pinned"]) for e in self.expected.values()) == PINS_MAX:
            assert self.refused(command) == "too-many-pins"
        elif self.carry_out(command):
            assert bool(known["pinned"]) != on
            known.update(pinned=len(self.log) if on else None, position=len(self.log))
        else:
            assert bool(known["pinned"]) == on

    @rule(entry=ids, on=st.booleans())
    def key_event(self, entry: str, on: bool) -> None:
        command: Command = MarkKeyEvent(entry) if on else UnmarkKeyEvent(entry)
        known = self.expected.get(entry)
        if known is None or not known["live"]:
            self.refused(command)
        elif self.carry_out(command):
            assert known["key_event"] != on
            known.update(key_event=on, position=len(self.log))

    @rule(status=st.sampled_from(["open", "paused", "closed"]), title=st.sampled_from(["t", "u"]))
    def revise(self, status: Any, title: str) -> None:
        self.carry_out(ReviseFeed(FeedChanges(title=title), status))
        self.closed = status == "closed"

    @precondition(lambda self: self.committed < len(self.log))
    @rule(batch=st.integers(1, 5))
    def project(self, batch: int) -> None:
        """One commit of the projector, on documents as their JSON has them."""
        entries = self.log[self.committed : self.committed + batch]
        pending = Pending(
            feed_id=FEED, generation=1, checkpoint=Position(1, self.committed) if self.committed else ORIGIN,
            models=tuple(READ_MODELS.values()), feed=self.feed, entries=entries, quarantined=frozenset(), more=False,
            documents={entry: parse_document(raw) for entry, raw in self.documents.items()},
        )  # fmt: skip
        commit: Commit = prepare(pending)
        self.committed += len(entries)
        assert commit.checkpoint == Position(1, self.committed)
        assert commit.feed is not None
        assert not commit.quarantine
        self.feed = parse_feed(render(commit.feed))
        self.documents |= commit.documents
        for index, member in commit.removed:
            self.indexes[index].remove(member)
        for index, member in commit.added:
            assert member not in self.indexes.setdefault(index, set())
            self.indexes[index].add(member)
        self.frames += commit.frames

    def shown(self, entry: str) -> Entry:
        document = self.state.entries[entry]
        assert isinstance(document, Entry)
        return document

    @invariant()
    def the_read_models_show_what_the_model_says(self) -> None:
        if self.committed < len(self.log) or self.feed is None:
            return
        live = {entry: known for entry, known in self.expected.items() if known["live"]}
        assert self.feed.entry_count == len(live)
        assert self.feed.position == f"1-{len(self.log)}"
        assert set(self.documents) == set(self.expected)
        for entry, known in self.expected.items():
            document: Document = parse_document(self.documents[entry])
            assert document == self.state.entries[entry]
            assert document.position == f"1-{known['position']}"
            assert document.revision == known["revision"]
            assert isinstance(document, Entry if known["live"] else Tombstone)

        def key(entry: str) -> tuple[str, int]:
            return self.shown(entry).published_at, live[entry]["first"]

        def listed(index: str, skip: int) -> list[str]:
            return [member[skip:] for member in sorted(self.indexes.get(index, ()))]

        assert listed("chronological", CHRONOLOGICAL_KEY_CHARACTERS) == sorted(live, key=key)
        for tag in (None, "live", "été", "a:b"):
            for key_events in (False, True):
                wanted = [
                    entry
                    for entry, known in live.items()
                    if (tag is None or tag in known["tags"]) and (known["key_event"] or not key_events)
                ]
                index = index_for(tag=tag, key_events=key_events)
                assert listed(index, CHRONOLOGICAL_KEY_CHARACTERS) == sorted(wanted, key=key)
        pinned = [entry for entry, known in live.items() if known["pinned"]]
        assert listed("pinned", N_CHARACTERS) == sorted(pinned, key=lambda entry: live[entry]["pinned"])
        assert listed("first_published", N_CHARACTERS) == sorted(live, key=lambda entry: live[entry]["first"])
        by_change = sorted(self.expected, key=lambda entry: self.expected[entry]["position"])
        assert listed("changed", N_CHARACTERS) == by_change

    @invariant()
    def frames_have_every_position_once_and_in_order(self) -> None:
        assert [frame.position.n for frame in self.frames] == list(range(1, self.committed + 1))


TestNewsroom = Newsroom.TestCase
TestNewsroom.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@given(st.lists(st.tuples(ids, st.sampled_from(["publish", "retract", "pin"])), max_size=30), st.data())
@settings(max_examples=50, deadline=None)
def test_any_split_into_commits_gives_the_same_bytes(steps: list[tuple[str, str]], data: st.DataObject) -> None:
    def run(batch: Any) -> Newsroom:
        room = Newsroom()
        room.open()
        for entry, what in steps:
            if what == "publish":
                room.publish(entry, None, ["live"], "one", False)
            elif what == "retract":
                room.retract(entry)
            else:
                room.pin(entry, True)
        while room.committed < len(room.log):
            room.project(batch())
        return room

    whole, split = run(lambda: 1000), run(lambda: data.draw(st.integers(1, 4)))
    assert whole.documents == split.documents
    assert {i: m for i, m in whole.indexes.items() if m} == {i: m for i, m in split.indexes.items() if m}
    assert whole.feed == split.feed
