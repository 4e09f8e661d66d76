"""Writing, by the public contract: feeds, publication, corrections, retractions, flags, batches and idempotency.

Refusals of malformed requests as such are in test_contract_errors; what readers get is in test_contract_reading.
"""

import asyncio
import datetime
import uuid
from typing import Any

import pytest

from tests.acceptance.harness import (
    ENTRY_FIELDS,
    FEED_FIELDS,
    INSTANT,
    TOMBSTONE_FIELDS,
    Answer,
    Json,
    Newsroom,
    Tags,
    ids,
    later,
    number,
)

BODY = [{"type": "text", "html": "Two <strong>ministers</strong> met."}]


def entries_path(feed: str, entry: str | None = None, flag: str | None = None) -> str:
    return "/".join(["/v1/feeds", feed, "entries", *([entry] if entry else []), *([flag] if flag else [])])


def instant(text: str) -> datetime.datetime:
    assert INSTANT.match(text), text
    return datetime.datetime.fromisoformat(text)


def from_now(**delta: float) -> str:
    return (datetime.datetime.now(datetime.UTC) + datetime.timedelta(**delta)).isoformat()


async def head_of(newsroom: Newsroom, feed: str) -> str:
    position: str = (await newsroom.feed(feed))["position"]
    return position


async def refused(newsroom: Newsroom, feed: str, fields: Json, path: str) -> None:
    answer = await newsroom.write("POST", entries_path(feed), fields)
    answer.problem(422, path=path)


# Feeds ------------------------------------------------------------------------------------------------------------


async def test_opening_a_feed_answers_every_field(newsroom: Newsroom, feed_id: str) -> None:
    answer = (await newsroom.write("PUT", f"/v1/feeds/{feed_id}", {"title": "Talks in Geneva"})).ok(201)
    document = answer.json
    assert document.keys() >= FEED_FIELDS
    assert document["id"] == feed_id
    assert document["title"] == "Talks in Geneva"
    assert (document["topics"], document["image"], document["url"], document["closed_at"]) == ([], None, None, None)
    assert (document["visibility"], document["status"]) == ("public", "open")
    assert (document["position"], document["entry_count"]) == ("1-1", 0)
    assert answer.position == "1-1"
    assert answer.etag.startswith('W/"') and "1-1" in answer.etag
    assert answer.headers["Content-Type"].split(";")[0] == "application/json"
    opened = instant(document["opened_at"])
    assert abs(datetime.datetime.now(datetime.UTC) - opened) < datetime.timedelta(seconds=60)
    instant(document["updated_at"])


async def test_a_feed_keeps_every_editable_field(newsroom: Newsroom, feed_id: str) -> None:
    fields = {
        "title": "Pourparlers à Genève",
        "summary": "Ce que l'on sait & ce que l'on ignore <encore>",
        "language": "fr-CH",
        "timezone": "Europe/Zurich",
        "topics": ["diplomatie", "sécurité"],
        "image": {"url": "https://example.org/a.jpg", "alt": "Une salle", "credit": "Agence"},
        "url": "https://example.org/live/geneve",
        "visibility": "public",
    }
    written = (await newsroom.write("PUT", f"/v1/feeds/{feed_id}", fields)).ok(201).json
    assert {name: written[name] for name in fields} == fields
    assert await newsroom.feed(feed_id) == written


async def test_putting_a_feed_again_replaces_it_and_resets_what_is_omitted(newsroom: Newsroom, feed_id: str) -> None:
    default = await newsroom.open_feed(f"{feed_id[:50]}-default", title="B")
    await newsroom.open_feed(feed_id, title="A", topics=["x"], summary="s", language="fr", timezone="Europe/Paris")
    replaced = (await newsroom.write("PUT", f"/v1/feeds/{feed_id}", {"title": "B"})).ok(200).json
    editable = ("title", "summary", "language", "timezone", "topics", "image", "url", "visibility")
    assert {name: replaced[name] for name in editable} == {name: default[name] for name in editable}
    assert await newsroom.feed(feed_id) == replaced


async def test_if_none_match_star_only_opens(newsroom: Newsroom, feed_id: str) -> None:
    path, only_new = f"/v1/feeds/{feed_id}", {"If-None-Match": "*"}
    (await newsroom.write("PUT", path, {"title": "First"}, headers=only_new)).ok(201)
    (await newsroom.write("PUT", path, {"title": "Second"}, headers=only_new)).problem(412)
    assert (await newsroom.feed(feed_id))["title"] == "First"


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({}, "/title"),
        ({"title": None}, "/title"),
        ({"title": 7}, "/title"),
        ({"title": "t", "language": "no such language!"}, "/language"),
        ({"title": "t", "timezone": "Mars/Olympus"}, "/timezone"),
        ({"title": "t", "topics": [f"t{n}" for n in range(17)]}, "/topics"),
        ({"title": "t", "topics": "x"}, "/topics"),
        ({"title": "t", "visibility": "secret"}, "/visibility"),
        ({"title": "t", "url": "ftp://example.org/"}, "/url"),
        ({"title": "t", "image": {"url": "javascript:alert(1)", "alt": "a"}}, "/image/url"),
        ({"title": "t", "colour": "red"}, "/colour"),
        ({"title": "t", "position": "1-1"}, "/position"),
    ],
)
async def test_an_invalid_feed_is_refused_by_name(newsroom: Newsroom, feed_id: str, fields: Json, path: str) -> None:
    (await newsroom.write("PUT", f"/v1/feeds/{feed_id}", fields)).problem(422, path=path)
    (await newsroom.get(f"/v1/feeds/{feed_id}")).problem(404)


async def test_sixteen_topics_are_allowed(newsroom: Newsroom, feed_id: str) -> None:
    topics = [f"topic-{n}" for n in range(16)]
    assert (await newsroom.open_feed(feed_id, topics=topics))["topics"] == topics


@pytest.mark.parametrize("bad", ["UPPER", "-dash-first", "under_score", "a" * 65, "dot.ted", "caf%C3%A9"])
async def test_a_feed_id_outside_the_grammar_opens_nothing(newsroom: Newsroom, bad: str) -> None:
    answer = await newsroom.write("PUT", f"/v1/feeds/{bad}", {"title": "t"})
    assert answer.status in (404, 422)
    answer.problem(answer.status)


async def test_a_feed_id_may_have_64_characters(newsroom: Newsroom, feed_id: str) -> None:
    longest = (feed_id + "-" + "x" * 64)[:64]
    assert (await newsroom.open_feed(longest))["id"] == longest


async def test_patches_of_different_fields_both_hold(newsroom: Newsroom, feed: str) -> None:
    await asyncio.gather(
        newsroom.revise_feed(feed, summary="A summary"), newsroom.revise_feed(feed, topics=["one"], language="de")
    )
    document = await newsroom.feed(feed)
    assert (document["summary"], document["topics"], document["language"]) == ("A summary", ["one"], "de")
    assert document["title"] == feed


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"status": "ended"}, "/status"),
        ({"title": None}, "/title"),
        ({"timezone": "Nowhere"}, "/timezone"),
        ({"opened_at": "2022-01-01T00:00:00Z"}, "/opened_at"),
    ],
)
async def test_an_invalid_patch_of_a_feed_is_refused(newsroom: Newsroom, feed: str, fields: Json, path: str) -> None:
    (await newsroom.write("PATCH", f"/v1/feeds/{feed}", fields)).problem(422, path=path)
    assert await head_of(newsroom, feed) == "1-1"


async def test_patching_a_feed_that_is_not_there_is_404(newsroom: Newsroom, feed_id: str) -> None:
    (await newsroom.write("PATCH", f"/v1/feeds/{feed_id}", {"title": "t"})).problem(404)


async def test_a_closed_feed_refuses_new_entries_and_nothing_else(newsroom: Newsroom, feed: str) -> None:
    kept = await newsroom.publish(feed, "Kept")
    gone = await newsroom.publish(feed, "Gone")
    closed = await newsroom.revise_feed(feed, status="closed")
    assert closed["status"] == "closed"
    instant(closed["closed_at"])
    (await newsroom.write("POST", entries_path(feed), {"headline": "Late"})).problem(409)
    batch = await newsroom.write(
        "POST", f"/v1/feeds/{feed}/batch", {"commands": [{"type": "publish", "headline": "Late"}]}
    )
    assert all(error["path"].startswith("/commands/0") for error in batch.problem(409)["errors"])
    await newsroom.correct(feed, kept["id"], 1, headline="Kept and corrected")
    await newsroom.pin(feed, kept["id"])
    await newsroom.mark(feed, kept["id"])
    await newsroom.retract(feed, gone["id"])
    await newsroom.revise_feed(feed, title="Still editable")
    assert ids((await newsroom.page(feed))["entries"]) == [kept["id"]]


async def test_a_closed_feed_opens_again(newsroom: Newsroom, feed: str) -> None:
    await newsroom.revise_feed(feed, status="closed")
    reopened = await newsroom.revise_feed(feed, status="open")
    assert (reopened["status"], reopened["closed_at"]) == ("open", None)
    await newsroom.publish(feed, "Back again")


async def test_replacing_a_closed_feeds_fields_leaves_it_closed(newsroom: Newsroom, feed: str) -> None:
    await newsroom.revise_feed(feed, status="closed")
    assert (await newsroom.write("PUT", f"/v1/feeds/{feed}", {"title": "New title"})).ok(200).json["status"] == "closed"
    (await newsroom.write("POST", entries_path(feed), {"headline": "Late"})).problem(409)


async def test_paused_is_a_label(newsroom: Newsroom, feed: str) -> None:
    paused = await newsroom.revise_feed(feed, status="paused")
    assert (paused["status"], paused["closed_at"]) == ("paused", None)
    await newsroom.publish(feed, "Published while paused")


# Publication ------------------------------------------------------------------------------------------------------


async def test_publishing_answers_the_document_its_etag_and_its_position(newsroom: Newsroom, feed: str) -> None:
    answer = (await newsroom.write("POST", entries_path(feed), {"headline": "Talks begin"})).ok(201)
    entry = answer.json
    assert entry.keys() >= ENTRY_FIELDS
    assert uuid.UUID(entry["id"]).version == 7
    assert answer.position == entry["position"] == entry["first_position"] == "1-2"
    assert answer.etag == '"1.1-2"'
    assert answer.headers["Dateline-Durability"] == "fsync"
    assert "Idempotent-Replay" not in answer.headers
    expected = {
        "feed": feed,
        "revision": 1,
        "status": "published",
        "updated_at": None,
        "headline": "Talks begin",
        "body": [],
        "authors": [],
        "tags": [],
        "key_event": False,
        "pinned": False,
        "pinned_position": None,
        "correction": None,
    }
    assert {name: entry[name] for name in expected} == expected
    assert await newsroom.entry(feed, entry["id"]) == entry


async def test_an_entry_keeps_all_that_was_sent(newsroom: Newsroom, feed: str) -> None:
    body: list[Json] = [
        {
            "type": "text",
            "html": 'A <a href="https://example.org/x">link</a>, <strong>bold</strong>, <em>soft</em><br>.',
        },
        {"type": "quote", "html": "We <em>met</em>.", "attribution": "A minister"},
        {
            "type": "image",
            "url": "https://example.org/i.jpg",
            "alt": "A room",
            "caption": "The room",
            "credit": "Agency",
        },
        {
            "type": "link_card",
            "url": "https://example.org/card",
            "title": "A card",
            "topic": "Talks",
            "image": None,
            "published_at": "2022-01-10T12:00:00.000Z",
        },
        {"type": "embed", "url": "https://video.example.org/1", "provider": "Video"},
        {"type": "list", "items": ["one", "<strong>two</strong>"]},
    ]
    sent: Json = {
        "id": "An_id-of-my-own",
        "published_at": "2022-01-10T18:38:00.000Z",
        "headline": "All of it",
        "body": body,
        "authors": [{"name": "A. Author"}, {"name": "Б. Автор"}],
        "tags": ["genève", "talks"],
        "key_event": True,
    }
    entry = (await newsroom.write("POST", entries_path(feed), sent)).ok(201).json
    texts = [(Tags(block["html"]).tags, Tags(block["html"]).text) for block in (body[0], entry["body"][0])]
    assert texts[0] == texts[1]
    assert Tags(entry["body"][0]["html"]).hrefs == ["https://example.org/x"]
    assert entry["body"][1:] == body[1:]
    assert {name: entry[name] for name in sent if name != "body"} == {n: v for n, v in sent.items() if n != "body"}


async def test_blocks_answer_their_optional_fields_as_null(newsroom: Newsroom, feed: str) -> None:
    body = [
        {"type": "quote", "html": "We met."},
        {"type": "image", "url": "https://example.org/i.jpg", "alt": "A room"},
        {"type": "link_card", "url": "http://example.org/card", "title": "A card"},
        {"type": "embed", "url": "https://video.example.org/1"},
    ]
    entry = await newsroom.publish(feed, body=body)
    assert entry["headline"] is None
    assert entry["body"] == [
        body[0] | {"attribution": None},
        body[1] | {"caption": None, "credit": None},
        body[2] | {"topic": None, "image": None, "published_at": None},
        body[3] | {"provider": None},
    ]


@pytest.mark.parametrize("fields", [{}, {"headline": None}, {"headline": "  \t"}, {"body": []}, {"tags": ["a"]}])
async def test_an_entry_needs_a_headline_or_a_block(newsroom: Newsroom, feed: str, fields: Json) -> None:
    (await newsroom.write("POST", entries_path(feed), fields)).problem(422)


async def test_a_blank_headline_is_none(newsroom: Newsroom, feed: str) -> None:
    assert (await newsroom.publish(feed, "   ", body=BODY))["headline"] is None


@pytest.mark.parametrize("at_limit", ["x" * 500, "é" * 500, "🕊" * 500])
async def test_a_headline_has_500_characters_not_bytes(newsroom: Newsroom, feed: str, at_limit: str) -> None:
    assert (await newsroom.publish(feed, at_limit))["headline"] == at_limit
    await refused(newsroom, feed, {"headline": at_limit + at_limit[0]}, "/headline")


async def test_an_entry_has_100_blocks(newsroom: Newsroom, feed: str) -> None:
    assert len((await newsroom.publish(feed, body=BODY * 100))["body"]) == 100
    await refused(newsroom, feed, {"body": BODY * 101}, "/body")


async def test_an_entry_has_32_tags_of_64_characters(newsroom: Newsroom, feed: str) -> None:
    tags = [f"{n:02}".ljust(64, "é") for n in range(32)]
    assert (await newsroom.publish(feed, "Tagged", tags=tags))["tags"] == tags
    await refused(newsroom, feed, {"headline": "h", "tags": [*tags, "one more"]}, "/tags")
    await refused(newsroom, feed, {"headline": "h", "tags": ["fine", "x" * 65]}, "/tags/1")


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"headline": 7}, "/headline"),
        ({"headline": "h", "body": "text"}, "/body"),
        ({"headline": "h", "body": [*BODY, {"type": "hologram", "html": "x"}]}, "/body/1/"),
        ({"headline": "h", "body": [{"html": "no type"}]}, "/body/0/"),
        ({"headline": "h", "body": [{"type": "text", "html": "x", "colour": "red"}]}, "/body/0/colour"),
        ({"headline": "h", "body": [{"type": "text"}]}, "/body/0/html"),
        ({"body": [*BODY * 3, {"type": "image", "url": "javascript:alert(1)", "alt": "a"}]}, "/body/3/url"),
        ({"body": [{"type": "embed", "url": "data:text/html,x"}]}, "/body/0/url"),
        ({"body": [{"type": "link_card", "url": "//example.org/x", "title": "t"}]}, "/body/0/url"),
        ({"body": [{"type": "link_card", "url": "https://example.org/x"}]}, "/body/0/title"),
        ({"body": [{"type": "list", "items": ["one", 2]}]}, "/body/0/items/1"),
        ({"headline": "h", "authors": [{"name": "A"}, {}]}, "/authors/1/name"),
        ({"headline": "h", "authors": ["A"]}, "/authors/0"),
        ({"headline": "h", "tags": [7]}, "/tags/0"),
        ({"headline": "h", "key_event": "yes"}, "/key_event"),
        ({"headline": "h", "id": "a b"}, "/id"),
        ({"headline": "h", "id": ""}, "/id"),
        ({"headline": "h", "id": "x" * 65}, "/id"),
        ({"headline": "h", "id": "é"}, "/id"),
        ({"headline": "h", "pinned": True}, "/pinned"),
        ({"headline": "h", "published_at": "yesterday"}, "/published_at"),
        ({"headline": "h", "published_at": 1641839880}, "/published_at"),
        ({"headline": "h", "published_at": "2022-01-10"}, "/published_at"),
        ({"headline": "h", "published_at": "2022-01-10T18:38:00"}, "/published_at"),
        ({"headline": "h", "published_at": "2022-02-30T18:38:00Z"}, "/published_at"),
        ({"headline": "h", "published_at": "2022-01-10T25:00:00Z"}, "/published_at"),
        ({"headline": "h", "published_at": "0001-01-01T00:00:00+01:00"}, "/published_at"),
        ({"headline": "h", "published_at": "0000-01-01T00:00:00Z"}, "/published_at"),
        ({"headline": "h", "published_at": "9999-12-31T23:59:59-01:00"}, "/published_at"),
        ({"headline": "h", "published_at": "10000-01-01T00:00:00Z"}, "/published_at"),
    ],
)
async def test_an_invalid_entry_is_refused_by_path(newsroom: Newsroom, feed: str, fields: Json, path: str) -> None:
    await refused(newsroom, feed, fields, path)
    assert await head_of(newsroom, feed) == "1-1"


async def test_an_entry_id_may_have_64_characters(newsroom: Newsroom, feed: str) -> None:
    entry = await newsroom.publish(feed, "h", id="-_" * 32)
    assert await newsroom.entry(feed, "-_" * 32) == entry


@pytest.mark.parametrize(
    ("sent", "answered"),
    [
        ("2022-01-10T18:38:00Z", "2022-01-10T18:38:00.000Z"),
        ("2022-01-10T18:38:00+01:00", "2022-01-10T17:38:00.000Z"),
        ("2022-01-10T18:38:00.5-03:30", "2022-01-10T22:08:00.500Z"),
        ("2022-01-10T18:38:00.123Z", "2022-01-10T18:38:00.123Z"),
        ("2022-01-01T00:30:00+01:00", "2021-12-31T23:30:00.000Z"),
        ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00.000Z"),
        ("2000-02-29T00:00:00.000Z", "2000-02-29T00:00:00.000Z"),
    ],
)
async def test_instants_are_answered_in_utc_with_milliseconds(
    newsroom: Newsroom, feed: str, sent: str, answered: str
) -> None:
    entry = await newsroom.publish(feed, "h", published_at=sent)
    assert entry["published_at"] == answered
    assert await newsroom.entry(feed, entry["id"]) == entry


async def test_dateline_publishes_at_most_five_minutes_ahead(newsroom: Newsroom, feed: str) -> None:
    await newsroom.publish(feed, "Clocks differ a little", published_at=from_now(minutes=4, seconds=30))
    await refused(newsroom, feed, {"headline": "h", "published_at": from_now(minutes=5, seconds=30)}, "/published_at")


async def test_an_omitted_time_is_the_instant_of_the_append_and_never_runs_backwards(
    newsroom: Newsroom, feed: str
) -> None:
    before = datetime.datetime.now(datetime.UTC)
    published = [await newsroom.publish(feed, f"h{n}") for n in range(5)]
    after = datetime.datetime.now(datetime.UTC)
    times = [instant(entry["published_at"]) for entry in published]
    slack = datetime.timedelta(milliseconds=50)
    assert times == sorted(times)
    assert before - slack <= times[0] and times[-1] <= after + slack


@pytest.mark.parametrize(
    "html",
    [
        '<script>alert(1)</script>Fine<img src=x onerror="alert(1)">',
        '<a href="javascript:alert(1)" onclick="x()">click</a>',
        '<a href="jAvAsCrIpT&colon;alert(1)">click</a>',
        '<a href=" data:text/html,x">click</a>',
        '<a href="https://example.org/" target="_blank" style="color:red">Fine</a>',
        "<p>paragraph</p><h1>title</h1><b>b</b><strong class=x>strong</strong>",
        '<svg><a xlink:href="javascript:alert(1)"><text>x</text></a></svg>ok',
        "<math><mtext></p><style><img src=x onerror=alert(1)></style></mtext></math>ok",
        "ok<!-- comment --><![CDATA[ x ]]><?php x ?>",
        "<strong>unclosed <em>and <br>broken",
    ],
)
async def test_html_is_sanitised_before_it_is_published(newsroom: Newsroom, feed: str, html: str) -> None:
    body = [
        {"type": "text", "html": html + " text"},
        {"type": "quote", "html": html + " quote"},
        {"type": "list", "items": [html + " item"]},
    ]
    entry = await newsroom.publish(feed, "h", body=body)
    pieces = [entry["body"][0]["html"], entry["body"][1]["html"], entry["body"][2]["items"][0]]
    for piece, word in zip(pieces, ("text", "quote", "item"), strict=True):
        found = Tags(piece)
        assert word in found.text
        for tag, attributes in found.tags:
            assert tag in ("a", "strong", "em", "br"), piece
            assert attributes in ((), ("href",)) if tag == "a" else attributes == (), piece
        for href in found.hrefs:
            assert href is not None and href.startswith(("http:", "https:", "mailto:")), piece
    assert await newsroom.entry(feed, entry["id"]) == entry


async def test_sanitising_keeps_the_allowed_links(newsroom: Newsroom, feed: str) -> None:
    links = ["https://example.org/?a=1", "http://example.org/", "mailto:desk@example.org"]
    entry = await newsroom.publish(
        feed, body=[{"type": "text", "html": "".join(f'<a href="{link}">l</a>' for link in links)}]
    )
    assert Tags(entry["body"][0]["html"]).hrefs == links


async def test_plain_text_stays_what_was_typed(newsroom: Newsroom, feed: str) -> None:
    plain = "Fish & <b>chips</b> &amp; \"quotes\" 'n' \u2028 more \\n"
    entry = await newsroom.publish(feed, plain, authors=[{"name": "A & <B>"}], tags=["r&d <x>"])
    assert (entry["headline"], entry["authors"], entry["tags"]) == (plain, [{"name": "A & <B>"}], ["r&d <x>"])


# The same id again ------------------------------------------------------------------------------------------------


async def test_the_same_id_with_the_same_content_answers_the_current_document(newsroom: Newsroom, feed: str) -> None:
    sent: Json = {"id": "one", "headline": "First", "published_at": "2022-01-10T18:38:00+01:00", "body": BODY}
    await newsroom.publish(feed, **sent)
    corrected = await newsroom.correct(feed, "one", 1, headline="Corrected")
    again = (await newsroom.write("POST", entries_path(feed), sent)).ok(200)
    assert again.json == corrected
    assert again.etag == f'"2.{corrected["position"]}"'
    assert await head_of(newsroom, feed) == corrected["position"]


async def test_content_is_compared_after_sanitising_and_conversion_to_utc(newsroom: Newsroom, feed: str) -> None:
    html = '<script>x</script>Met <strong onclick="x()">today</strong>'
    first: Json = {"id": "one", "published_at": "2022-01-10T18:38:00+01:00", "body": [{"type": "text", "html": html}]}
    entry = await newsroom.publish(feed, **first)
    same = {"id": "one", "published_at": "2022-01-10T17:38:00.000Z", "body": entry["body"], "headline": " ", "tags": []}
    assert (await newsroom.write("POST", entries_path(feed), same)).ok(200).json == entry


async def test_an_absent_time_equals_an_absent_time_and_no_other(newsroom: Newsroom, feed: str) -> None:
    entry = await newsroom.publish(feed, "h", id="one")
    assert (await newsroom.write("POST", entries_path(feed), {"id": "one", "headline": "h"})).ok(200).json == entry
    timed = {"id": "one", "headline": "h", "published_at": entry["published_at"]}
    (await newsroom.write("POST", entries_path(feed), timed)).problem(409)


async def test_the_same_id_with_other_content_is_a_conflict_that_shows_the_current_document(
    newsroom: Newsroom, feed: str
) -> None:
    entry = await newsroom.publish(feed, "First", id="one")
    problem = (await newsroom.write("POST", entries_path(feed), {"id": "one", "headline": "Other"})).problem(409)
    assert problem["current"] == entry
    assert await head_of(newsroom, feed) == entry["position"]


async def test_the_same_id_after_its_retraction_is_gone(newsroom: Newsroom, feed: str) -> None:
    entry = await newsroom.publish(feed, "First", id="one", published_at="2022-01-10T18:38:00Z")
    await newsroom.retract(feed, "one")
    same = {"id": "one", "headline": "First", "published_at": "2022-01-10T18:38:00Z"}
    (await newsroom.write("POST", entries_path(feed), same)).problem(410)
    undone = await newsroom.publish(feed, "First", id="two", published_at=entry["published_at"])
    assert undone["published_at"] == entry["published_at"]


async def test_the_same_id_in_another_feed_is_another_entry(newsroom: Newsroom, feed: str) -> None:
    other = f"{feed[:58]}-other"
    await newsroom.open_feed(other)
    await newsroom.publish(feed, "Here", id="one")
    assert (await newsroom.publish(other, "There", id="one"))["feed"] == other


async def test_publishing_into_a_feed_that_is_not_there_is_404(newsroom: Newsroom, feed_id: str) -> None:
    (await newsroom.write("POST", entries_path(feed_id), {"headline": "h"})).problem(404)


# Correction and retiming ------------------------------------------------------------------------------------------


async def correct(newsroom: Newsroom, feed: str, entry: str, if_match: str | None, fields: Json) -> Answer:
    headers = {"If-Match": if_match} if if_match is not None else {}
    return await newsroom.write("PATCH", entries_path(feed, entry), fields, headers=headers)


async def test_a_correction_is_one_event_and_one_revision(newsroom: Newsroom, feed: str) -> None:
    entry = await newsroom.publish(feed, "Fisrt", body=BODY, tags=["a"], authors=[{"name": "A"}])
    answer = (await correct(newsroom, feed, entry["id"], f'"1.{entry["position"]}"', {"headline": "First"})).ok(200)
    corrected = answer.json
    assert corrected["position"] == later(entry["position"])
    assert answer.position == corrected["position"]
    assert answer.etag == f'"2.{corrected["position"]}"'
    instant(corrected["updated_at"])
    kept = ENTRY_FIELDS - {"headline", "revision", "updated_at", "position"}
    assert {name: corrected[name] for name in kept} == {name: entry[name] for name in kept}
    assert (corrected["headline"], corrected["revision"]) == ("First", 2)
    assert await newsroom.entry(feed, entry["id"]) == corrected


async def test_a_correction_note_stays_until_the_next_one(newsroom: Newsroom, feed: str) -> None:
    entry = await newsroom.publish(feed, "h", id="one")
    noted = await newsroom.correct(feed, "one", 1, headline="h2", correction_note="A name was wrong & <bad>.")
    assert noted["correction"]["note"] == "A name was wrong & <bad>."
    instant(noted["correction"]["at"])
    silent = await newsroom.correct(feed, "one", 2, headline="h3")
    assert silent["correction"] == noted["correction"]
    again = await newsroom.correct(feed, "one", 3, headline="h4", correction_note="So was a place.")
    assert again["correction"]["note"] == "So was a place."
    assert entry["correction"] is None


async def test_absent_keeps_and_null_clears(newsroom: Newsroom, feed: str) -> None:
    await newsroom.publish(feed, "h", id="one", body=BODY, tags=["a"], authors=[{"name": "A"}])
    cleared = await newsroom.correct(feed, "one", 1, headline=None, tags=None, authors=None)
    assert (cleared["headline"], cleared["tags"], cleared["authors"]) == (None, [], [])
    assert Tags(cleared["body"][0]["html"]).text == "Two ministers met."
    (await correct(newsroom, feed, "one", '"2"', {"body": None})).problem(422)
    swapped = await newsroom.correct(feed, "one", 2, headline="Again", body=None)
    assert (swapped["headline"], swapped["body"], swapped["revision"]) == ("Again", [], 3)


async def test_no_difference_appends_nothing(newsroom: Newsroom, feed: str) -> None:
    entry = await newsroom.publish(feed, "h", id="one", published_at="2022-01-10T18:38:00Z", tags=["a"])
    same = {"headline": "h", "published_at": "2022-01-10T19:38:00+01:00", "tags": ["a"], "body": []}
    for fields in (same, {}):
        answer = (await correct(newsroom, feed, "one", '"1"', fields)).ok(200)
        assert answer.json == entry
        assert answer.etag == f'"1.{entry["position"]}"'
    assert await head_of(newsroom, feed) == entry["position"]


async def test_retiming_is_a_revision_in_the_same_event(newsroom: Newsroom, feed: str) -> None:
    entry = await newsroom.publish(feed, "h", id="one", published_at="2022-01-10T18:38:00Z")
    both = await newsroom.correct(feed, "one", 1, headline="h2", published_at="2022-01-10T18:40:00Z")
    assert (both["revision"], both["headline"], both["published_at"]) == (2, "h2", "2022-01-10T18:40:00.000Z")
    assert number(both["position"]) == number(entry["position"]) + 1
    assert both["first_position"] == entry["first_position"]
    future = {"published_at": from_now(minutes=10)}
    (await correct(newsroom, feed, "one", '"2"', future)).problem(422, path="/published_at")


@pytest.mark.parametrize("form", ['"1.{position}"', 'W/"1.{position}"', '"1"', 'W/"1"'])
async def test_if_match_takes_the_etag_as_received_or_the_revision(newsroom: Newsroom, feed: str, form: str) -> None:
    entry = await newsroom.publish(feed, "h", id="one")
    assert (await correct(newsroom, feed, "one", form.format_map(entry), {"headline": "h2"})).ok(200).json[
        "revision"
    ] == 2


async def test_only_the_revision_of_if_match_counts(newsroom: Newsroom, feed: str) -> None:
    entry = await newsroom.publish(feed, "h", id="one")
    await newsroom.pin(feed, "one")
    await newsroom.mark(feed, "one")
    (await correct(newsroom, feed, "one", f'"1.{entry["position"]}"', {"headline": "h2"})).ok(200)


async def test_a_correction_without_if_match_is_428(newsroom: Newsroom, feed: str) -> None:
    await newsroom.publish(feed, "h", id="one")
    (await correct(newsroom, feed, "one", None, {"headline": "h2"})).problem(428)
    (await correct(newsroom, feed, "one", "*", {"headline": "h2"})).problem(422)
    assert (await newsroom.entry(feed, "one"))["headline"] == "h"


async def test_a_malformed_if_match_is_400(newsroom: Newsroom, feed: str) -> None:
    await newsroom.publish(feed, "h", id="one")
    for malformed in ('"1', "one two"):
        (await correct(newsroom, feed, "one", malformed, {"headline": "h2"})).problem(400)


async def test_the_second_desk_gets_412_with_the_current_document(newsroom: Newsroom, feed: str) -> None:
    entry = await newsroom.publish(feed, "h", id="one")
    received = f'"1.{entry["position"]}"'
    answers = await asyncio.gather(
        *(correct(newsroom, feed, "one", received, {"headline": f"desk {n}"}) for n in range(6))
    )
    assert sorted(answer.status for answer in answers) == [200] + [412] * 5
    won = next(answer.json for answer in answers if answer.status == 200)
    for answer in answers:
        if answer.status == 412:
            assert answer.problem(412)["current"] == won
    assert await newsroom.entry(feed, "one") == won
    assert won["revision"] == 2


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"headline": "x" * 501}, "/headline"),
        ({"colour": "red"}, "/colour"),
        ({"body": [{"type": "image", "url": "javascript:x", "alt": ""}]}, "/body/0/url"),
        ({"tags": ["x"] * 33}, "/tags"),
        ({"correction_note": 7}, "/correction_note"),
    ],
)
async def test_an_invalid_correction_is_refused_by_path(newsroom: Newsroom, feed: str, fields: Json, path: str) -> None:
    await newsroom.publish(feed, "h", id="one")
    (await correct(newsroom, feed, "one", '"1"', fields)).problem(422, path=path)
    assert (await newsroom.entry(feed, "one"))["revision"] == 1


# Retraction -------------------------------------------------------------------------------------------------------


async def test_a_retraction_leaves_a_tombstone_without_content(newsroom: Newsroom, feed: str) -> None:
    entry = await newsroom.publish(feed, "Secret", id="one", body=BODY, tags=["secret"], authors=[{"name": "Secret"}])
    answer = (await newsroom.write("DELETE", entries_path(feed, "one"), {"reason": "It was wrong."})).ok(200)
    tombstone = answer.json
    assert tombstone.keys() >= TOMBSTONE_FIELDS
    assert not tombstone.keys() & {"headline", "body", "authors", "tags"}
    assert "Secret" not in answer.body.decode() and "ministers" not in answer.body.decode()
    assert (tombstone["id"], tombstone["feed"], tombstone["status"]) == ("one", feed, "retracted")
    assert tombstone["reason"] == "It was wrong."
    assert tombstone["published_at"] == entry["published_at"]
    assert tombstone["first_position"] == entry["position"]
    assert answer.position == tombstone["position"] == later(entry["position"])
    instant(tombstone["retracted_at"])


async def test_retracting_again_appends_nothing(newsroom: Newsroom, feed: str) -> None:
    await newsroom.publish(feed, "h", id="one")
    tombstone = await newsroom.retract(feed, "one")
    assert tombstone["reason"] is None
    assert await newsroom.retract(feed, "one", "Another reason") == tombstone
    assert await head_of(newsroom, feed) == tombstone["position"]


async def test_a_retraction_honours_if_match(newsroom: Newsroom, feed: str) -> None:
    await newsroom.publish(feed, "h", id="one")
    corrected = await newsroom.correct(feed, "one", 1, headline="h2")
    path = entries_path(feed, "one")
    problem = (await newsroom.write("DELETE", path, headers={"If-Match": '"1"'})).problem(412)
    assert problem["current"] == corrected
    (await newsroom.write("DELETE", path, headers={"If-Match": "*"})).problem(422)
    (await newsroom.write("DELETE", path, headers={"If-Match": '"2"'})).ok(200)


async def test_other_writes_to_a_retracted_entry_are_410(newsroom: Newsroom, feed: str) -> None:
    await newsroom.publish(feed, "h", id="one")
    tombstone = await newsroom.retract(feed, "one")
    (await correct(newsroom, feed, "one", '"1"', {"headline": "back"})).problem(410)
    (await correct(newsroom, feed, "one", '"2"', {"headline": "back"})).problem(410)
    for flag in ("pin", "key-event"):
        for method in ("PUT", "DELETE"):
            (await newsroom.write(method, entries_path(feed, "one", flag))).problem(410)
    assert await head_of(newsroom, feed) == tombstone["position"]


async def test_writes_to_an_entry_that_is_not_there_are_404(newsroom: Newsroom, feed: str) -> None:
    (await correct(newsroom, feed, "none", '"1"', {"headline": "h"})).problem(404)
    (await newsroom.write("DELETE", entries_path(feed, "none"))).problem(404)
    for flag in ("pin", "key-event"):
        for method in ("PUT", "DELETE"):
            (await newsroom.write(method, entries_path(feed, "none", flag))).problem(404)


@pytest.mark.parametrize(("body", "path"), [({"reason": 7}, "/reason"), ({"why": "x"}, "/why")])
async def test_an_invalid_retraction_is_refused(newsroom: Newsroom, feed: str, body: Json, path: str) -> None:
    await newsroom.publish(feed, "h", id="one")
    (await newsroom.write("DELETE", entries_path(feed, "one"), body)).problem(422, path=path)
    await newsroom.entry(feed, "one")


# Flags ------------------------------------------------------------------------------------------------------------


async def test_flags_move_the_position_and_leave_the_revision(newsroom: Newsroom, feed: str) -> None:
    entry = await newsroom.publish(feed, "h", id="one")
    answer = (await newsroom.write("PUT", entries_path(feed, "one", "pin"))).ok(200)
    pinned = answer.json
    assert answer.etag == f'"1.{pinned["position"]}"'
    assert pinned == entry | {
        "pinned": True,
        "pinned_position": pinned["position"],
        "position": later(entry["position"]),
    }
    marked = (await newsroom.write("PUT", entries_path(feed, "one", "key-event"))).ok(200).json
    assert marked == pinned | {"key_event": True, "position": later(pinned["position"])}
    unmarked = (await newsroom.write("DELETE", entries_path(feed, "one", "key-event"))).ok(200).json
    assert unmarked == pinned | {"position": later(marked["position"])}
    unpinned = (await newsroom.write("DELETE", entries_path(feed, "one", "pin"))).ok(200).json
    assert unpinned == entry | {"position": later(unmarked["position"])}
    assert await newsroom.entry(feed, "one") == unpinned


@pytest.mark.parametrize("flag", ["pin", "key-event"])
async def test_flags_are_idempotent(newsroom: Newsroom, feed: str, flag: str) -> None:
    entry = await newsroom.publish(feed, "h", id="one")
    path = entries_path(feed, "one", flag)
    assert (await newsroom.write("DELETE", path)).ok(200).json == entry
    flagged = (await newsroom.write("PUT", path)).ok(200).json
    again = (await newsroom.write("PUT", path)).ok(200)
    assert again.json == flagged
    assert again.etag == f'"1.{flagged["position"]}"'
    assert await head_of(newsroom, feed) == flagged["position"]


async def test_an_eleventh_pin_is_too_many(newsroom: Newsroom, feed: str) -> None:
    await newsroom.batch(feed, *({"type": "publish", "id": f"e{n}", "headline": f"h{n}"} for n in range(12)))
    for n in range(10):
        await newsroom.pin(feed, f"e{n}")
    (await newsroom.write("PUT", entries_path(feed, "e10", "pin"))).problem(409, "too-many-pins")
    (await newsroom.write("PUT", entries_path(feed, "e3", "pin"))).ok(200)
    await newsroom.unpin(feed, "e3")
    await newsroom.pin(feed, "e10")
    (await newsroom.write("PUT", entries_path(feed, "e11", "pin"))).problem(409, "too-many-pins")
    await newsroom.retract(feed, "e5")
    await newsroom.pin(feed, "e11")
    pinned = (await newsroom.page(feed))["pinned"]
    assert ids(pinned) == ["e11", "e10", "e9", "e8", "e7", "e6", "e4", "e2", "e1", "e0"]


async def test_concurrent_pins_never_exceed_ten(newsroom: Newsroom, feed: str) -> None:
    await newsroom.batch(feed, *({"type": "publish", "id": f"e{n}", "headline": f"h{n}"} for n in range(16)))
    answers = await asyncio.gather(*(newsroom.write("PUT", entries_path(feed, f"e{n}", "pin")) for n in range(16)))
    assert sorted(answer.status for answer in answers) == [200] * 10 + [409] * 6
    assert len((await newsroom.page(feed))["pinned"]) == 10


# Batch ------------------------------------------------------------------------------------------------------------


async def batch(newsroom: Newsroom, feed: str, *commands: Any, headers: dict[str, str] | None = None) -> Answer:
    return await newsroom.write("POST", f"/v1/feeds/{feed}/batch", {"commands": list(commands)}, headers=headers)


async def test_a_batch_applies_its_commands_in_order_at_consecutive_positions(newsroom: Newsroom, feed: str) -> None:
    for n in range(5):
        await newsroom.publish(feed, f"h{n}", id=f"e{n}")
    await newsroom.pin(feed, "e3")
    head = await newsroom.mark(feed, "e4")
    answer = await batch(
        newsroom,
        feed,
        {"type": "publish", "id": "new", "headline": "New", "body": BODY, "tags": ["a"], "key_event": True},
        {"type": "correct", "id": "e0", "revision": 1, "headline": "Corrected", "correction_note": "A note"},
        {"type": "retract", "id": "e1", "reason": "Wrong"},
        {"type": "pin", "id": "e2"},
        {"type": "unpin", "id": "e3"},
        {"type": "mark_key_event", "id": "e3"},
        {"type": "unmark_key_event", "id": "e4"},
    )
    document = answer.ok(200).json
    results = document["results"]
    assert ids(results) == ["new", "e0", "e1", "e2", "e3", "e3", "e4"]
    assert document["position"] == answer.position == later(head["position"], 7)
    # e3 is touched twice; whichever of its states the first result shows, the last is the state at the end.
    by_command = [later(head["position"], n) for n in range(1, 8)]
    assert [result["position"] for n, result in enumerate(results) if n != 4] == [
        position for n, position in enumerate(by_command) if n != 4
    ]
    assert (results[0]["key_event"], results[1]["revision"], results[1]["correction"]["note"]) == (True, 2, "A note")
    assert (results[2]["status"], results[2]["reason"]) == ("retracted", "Wrong")
    assert (results[3]["pinned"], results[5]["pinned"], results[5]["key_event"]) == (True, False, True)
    assert results[6]["key_event"] is False
    for result in results:
        if result["id"] not in ("e1", "e3"):
            assert await newsroom.entry(feed, result["id"]) == result
    assert await newsroom.entry(feed, "e3") == results[5]


async def test_commands_of_a_batch_build_on_each_other(newsroom: Newsroom, feed: str) -> None:
    document = (
        await batch(
            newsroom,
            feed,
            {"type": "publish", "id": "one", "headline": "h"},
            {"type": "correct", "id": "one", "revision": 1, "headline": "h2"},
            {"type": "pin", "id": "one"},
        )
    ).ok(200)
    assert document.json["position"] == "1-4"
    entry = await newsroom.entry(feed, "one")
    assert (entry["headline"], entry["revision"], entry["pinned_position"]) == ("h2", 2, "1-4")
    assert document.json["results"][-1] == entry


@pytest.mark.parametrize(
    ("bad", "status", "path"),
    [
        ({"type": "publish", "headline": "x" * 501}, 422, "/commands/3/headline"),
        ({"type": "publish", "headline": "h", "colour": "red"}, 422, "/commands/3/colour"),
        ({"type": "promote", "id": "e0"}, 422, "/commands/3/"),
        ({"headline": "no type"}, 422, "/commands/3/"),
        ({"type": "publish", "id": "e0", "headline": "other"}, 409, "/commands/3"),
        ({"type": "correct", "id": "e0", "revision": 9, "headline": "h2"}, 412, "/commands/3"),
        ({"type": "correct", "id": "nowhere", "revision": 1, "headline": "h2"}, 404, "/commands/3"),
        ({"type": "pin", "id": "nowhere"}, 404, "/commands/3"),
        ({"type": "pin", "id": "gone"}, 410, "/commands/3"),
        ({"type": "publish", "body": [{"type": "embed", "url": "file:///etc"}]}, 422, "/commands/3/body/0/url"),
    ],
)
async def test_a_batch_is_all_or_nothing_and_names_the_command(
    newsroom: Newsroom, feed: str, bad: Json, status: int, path: str
) -> None:
    await newsroom.publish(feed, "h", id="e0")
    await newsroom.publish(feed, "h", id="gone")
    tombstone = await newsroom.retract(feed, "gone")
    good: list[Json] = [
        {"type": "publish", "id": "new", "headline": "h"},
        {"type": "pin", "id": "e0"},
        {"type": "mark_key_event", "id": "e0"},
    ]
    problem = (await batch(newsroom, feed, *good, bad)).problem(status)
    named = [error["path"] for error in problem["errors"]]
    assert any(one.startswith("/commands/3") for one in named), problem
    if status == 422:
        assert any(one == path or (path.endswith("/") and one.startswith(path.rstrip("/"))) for one in named), problem
    assert await head_of(newsroom, feed) == tombstone["position"]
    (await newsroom.get(entries_path(feed, "new"))).problem(404)


async def test_a_correction_in_a_batch_carries_its_revision(newsroom: Newsroom, feed: str) -> None:
    await newsroom.publish(feed, "h", id="e0")
    answer = await batch(newsroom, feed, {"type": "correct", "id": "e0", "headline": "h2"})
    assert answer.status in (422, 428)
    answer.problem(answer.status)
    assert (await newsroom.entry(feed, "e0"))["revision"] == 1


async def test_a_batch_has_200_commands(newsroom: Newsroom, feed: str) -> None:
    commands = [{"type": "publish", "id": f"e{n}", "headline": f"h{n}"} for n in range(201)]
    (await batch(newsroom, feed, *commands)).problem(422, path="/commands")
    document = (await batch(newsroom, feed, *commands[:200])).ok(200).json
    assert document["position"] == "1-201"
    assert ids(document["results"]) == [f"e{n}" for n in range(200)]


async def test_a_batch_may_be_larger_than_a_single_request_and_has_a_limit(newsroom: Newsroom, feed: str) -> None:
    def command(name: str, size: int) -> Json:
        return {"type": "publish", "id": name, "body": [{"type": "text", "html": "x" * size}]}

    (await batch(newsroom, feed, *(command(f"e{n}", 9_000) for n in range(100)))).ok(200)
    (await batch(newsroom, feed, *(command(f"f{n}", 12_000) for n in range(100)))).problem(413)
    assert await head_of(newsroom, feed) == "1-101"


async def test_a_batch_into_a_feed_that_is_not_there_is_404(newsroom: Newsroom, feed_id: str) -> None:
    (await batch(newsroom, feed_id, {"type": "publish", "headline": "h"})).problem(404)


# Idempotency ------------------------------------------------------------------------------------------------------


def key(name: str) -> dict[str, str]:
    return {"Idempotency-Key": name}


async def test_the_same_request_under_its_key_appends_nothing(newsroom: Newsroom, feed: str) -> None:
    first = await newsroom.write("POST", entries_path(feed), {"headline": "h"}, headers=key("k-1"))
    entry = first.ok(201).json
    for form in ("k-1", '"k-1"'):
        again = (await newsroom.write("POST", entries_path(feed), {"headline": "h"}, headers=key(form))).ok(200)
        assert again.json == entry
        assert again.headers["Idempotent-Replay"] == "true"
        assert again.etag == first.etag
    assert await head_of(newsroom, feed) == entry["position"]


async def test_a_replay_answers_the_document_as_it_stands_now(newsroom: Newsroom, feed: str) -> None:
    publish = {"headline": "h", "id": "one"}
    (await newsroom.write("POST", entries_path(feed), publish, headers=key("k"))).ok(201)
    corrected = await newsroom.correct(feed, "one", 1, headline="h2")
    replay = (await newsroom.write("POST", entries_path(feed), publish, headers=key("k"))).ok(200)
    assert replay.json == corrected
    tombstone = await newsroom.retract(feed, "one")
    replay = (await newsroom.write("POST", entries_path(feed), publish, headers=key("k"))).ok(200)
    assert replay.json == tombstone
    assert replay.headers["Idempotent-Replay"] == "true"


async def test_a_key_is_looked_up_before_every_precondition(newsroom: Newsroom, feed_id: str) -> None:
    path = f"/v1/feeds/{feed_id}"
    only_new = {"If-None-Match": "*", **key("open")}
    (await newsroom.write("PUT", path, {"title": "t"}, headers=only_new)).ok(201)
    replay = (await newsroom.write("PUT", path, {"title": "t"}, headers=only_new)).ok(200)
    assert replay.headers["Idempotent-Replay"] == "true"
    publish = {"headline": "h", "id": "one"}
    (await newsroom.write("POST", entries_path(feed_id), publish, headers=key("publish"))).ok(201)
    correction = {"If-Match": '"1"', **key("correct")}
    (await newsroom.write("PATCH", entries_path(feed_id, "one"), {"headline": "h2"}, headers=correction)).ok(200)
    replay = await newsroom.write("PATCH", entries_path(feed_id, "one"), {"headline": "h2"}, headers=correction)
    assert replay.ok(200).json["revision"] == 2
    assert replay.headers["Idempotent-Replay"] == "true"
    await newsroom.revise_feed(feed_id, status="closed")
    replay = await newsroom.write("POST", entries_path(feed_id), publish, headers=key("publish"))
    assert replay.ok(200).headers["Idempotent-Replay"] == "true"


async def test_another_request_under_the_same_key_is_422(newsroom: Newsroom, feed: str) -> None:
    entry = (await newsroom.write("POST", entries_path(feed), {"headline": "h"}, headers=key("k"))).ok(201).json
    (await newsroom.write("POST", entries_path(feed), {"headline": "other"}, headers=key("k"))).problem(422)
    (await newsroom.write("PUT", entries_path(feed, entry["id"], "pin"), headers=key("k"))).problem(422)
    assert await head_of(newsroom, feed) == entry["position"]


async def test_keys_belong_to_a_feed(newsroom: Newsroom, feed: str) -> None:
    other = f"{feed[:58]}-other"
    await newsroom.open_feed(other)
    for one in (feed, other):
        (await newsroom.write("POST", entries_path(one), {"headline": one}, headers=key("k"))).ok(201)


async def test_refusals_are_not_remembered(newsroom: Newsroom, feed: str) -> None:
    await newsroom.publish(feed, "h", id="one")
    (await newsroom.write("POST", entries_path(feed), {"headline": ""}, headers=key("k"))).problem(422)
    (await newsroom.write("POST", entries_path(feed), {"id": "one", "headline": "x"}, headers=key("k"))).problem(409)
    (await newsroom.write("POST", entries_path(feed), {"headline": "valid"}, headers=key("k"))).ok(201)


async def test_one_of_many_simultaneous_requests_under_a_key_publishes(newsroom: Newsroom, feed: str) -> None:
    answers = await asyncio.gather(
        *(newsroom.write("POST", entries_path(feed), {"headline": "h"}, headers=key("k")) for _ in range(8))
    )
    assert sorted(answer.status for answer in answers) == [200] * 7 + [201]
    assert len({answer.json["id"] for answer in answers}) == 1
    assert await head_of(newsroom, feed) == "1-2"


async def test_every_kind_of_write_takes_a_key(newsroom: Newsroom, feed: str) -> None:
    await newsroom.publish(feed, "h", id="one")
    commands = {"commands": [{"type": "publish", "headline": "b1"}, {"type": "publish", "headline": "b2"}]}
    writes: list[tuple[str, str, Json | None]] = [
        ("PATCH", f"/v1/feeds/{feed}", {"summary": "s"}),
        ("PUT", f"/v1/feeds/{feed}", {"title": "t2"}),
        ("POST", f"/v1/feeds/{feed}/batch", commands),
        ("PUT", entries_path(feed, "one", "pin"), None),
        ("DELETE", entries_path(feed, "one", "pin"), None),
        ("PUT", entries_path(feed, "one", "key-event"), None),
        ("DELETE", entries_path(feed, "one", "key-event"), None),
        ("DELETE", entries_path(feed, "one"), {"reason": "r"}),
    ]
    for n, (method, path, body) in enumerate(writes):
        first = (await newsroom.write(method, path, body, headers=key(f"k{n}"))).ok(200)
        head = await head_of(newsroom, feed)
        again = (await newsroom.write(method, path, body, headers=key(f"k{n}"))).ok(200)
        assert again.headers["Idempotent-Replay"] == "true", path
        assert "Idempotent-Replay" not in first.headers, path
        assert await head_of(newsroom, feed) == head, path
        if "commands" in (body or {}):
            assert ids(again.json["results"]) == ids(first.json["results"])
            assert again.json["position"] == first.json["position"]


# Durability -------------------------------------------------------------------------------------------------------


async def test_a_weaker_durability_than_configured_is_not_given(newsroom: Newsroom, feed: str) -> None:
    headers = {"Dateline-Durability": "memory"}
    answer = (await newsroom.write("POST", entries_path(feed), {"headline": "h"}, headers=headers)).ok(201)
    assert answer.headers["Dateline-Durability"] == "fsync"


async def test_a_durability_that_is_not_reached_is_503_and_safe_to_repeat(newsroom: Newsroom, feed: str) -> None:
    publish = {"headline": "h", "id": "one"}
    asked = {"Dateline-Durability": "replicated", **key("k")}
    answer = await newsroom.write("POST", entries_path(feed), publish, headers=asked)
    answer.problem(503, "outcome-unknown")
    again = (await newsroom.write("POST", entries_path(feed), publish, headers=key("k"))).ok(200, 201)
    assert again.headers["Dateline-Durability"] == "fsync"
    assert [entry["id"] for entry in await newsroom.walk(feed)] == ["one"]


async def test_an_unknown_durability_is_refused(newsroom: Newsroom, feed: str) -> None:
    headers = {"Dateline-Durability": "eternal"}
    answer = await newsroom.write("POST", entries_path(feed), {"headline": "h"}, headers=headers)
    assert answer.status in (400, 422)
    assert await head_of(newsroom, feed) == "1-1"
