"""Sanitising: what a desk sends, checked against the limits and made safe, before it becomes an event.

Owns the rules for text, HTML, URLs and instants, with the path of each field that breaks one. Pure: the same input always
gives the same output, and sanitising twice changes nothing more.
"""

import re
import zoneinfo
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import msgspec
import nh3

from shared.documents import (
    Author,
    Block,
    EmbedBlock,
    Image,
    ImageBlock,
    LinkCardBlock,
    ListBlock,
    QuoteBlock,
    TextBlock,
)
from shared.errors import FieldError, Invalid
from shared.instants import milliseconds_of, parse_instant

HEADLINE_CHARACTERS_MAX = 500
LINE_CHARACTERS_MAX = 500
TEXT_CHARACTERS_MAX = 5_000
URL_CHARACTERS_MAX = 2_048
NAME_CHARACTERS_MAX = 200
BLOCKS_MAX = 100
LIST_ITEMS_MAX = 200
# The time to parse HTML grows with the square of its nesting; no inline text has so much markup.
MARKUP_MAX = 2_000
MARKUP_PER_REQUEST_MAX = 10_000
AUTHORS_MAX = 32
TAGS_MAX = 32
TAG_CHARACTERS_MAX = 64
TOPICS_MAX = 16
FUTURE_MILLISECONDS_MAX = 5 * 60 * 1000

URL_SCHEMES = {"http", "https", "mailto"}

# RFC 5646, section 2.1: a well-formed tag; which subtags are registered changes with the years.
_LANGUAGE = re.compile(
    r"(?:[A-Za-z]{2,3}(?:-[A-Za-z]{3}){0,3}|[A-Za-z]{4,8})(?:-[A-Za-z]{4})?(?:-(?:[A-Za-z]{2}|[0-9]{3}))?"
    r"(?:-(?:[A-Za-z0-9]{5,8}|[0-9][A-Za-z0-9]{3}))*(?:-[0-9A-WY-Za-wy-z](?:-[A-Za-z0-9]{2,8})+)*"
    r"(?:-[Xx](?:-[A-Za-z0-9]{1,8})+)?"
)
_FORBIDDEN_IN_URL = re.compile(r"[\x00-\x20\x7f-\x9f<>\"\\^`{|}]")


class Checked:
    """Collects what is wrong with one request, field by field, and refuses it as a whole at the end."""

    def __init__(self, *, now_milliseconds: int) -> None:
        self._now = now_milliseconds
        self._errors: list[FieldError] = []
        self._markup = 0

    def wrong(self, path: str, problem: str) -> None:
        self._errors.append(FieldError(path, problem))

    def refuse_if_wrong(self) -> None:
        """Invalid with every field that was found wrong."""
        if self._errors:
            raise Invalid(self._errors)

    def text(self, value: str, path: str, *, characters_max: int, blank: bool = False) -> str:
        if len(value) > characters_max:
            self.wrong(path, f"has {len(value)} characters, {characters_max} at most")
        if not blank and not value.strip():
            self.wrong(path, "is blank")
        return value

    def optional_text(self, value: str | None, path: str, *, characters_max: int) -> str | None:
        """A blank text is none."""
        if value is None or not value.strip():
            return None
        return self.text(value, path, characters_max=characters_max)

    def html(self, value: str, path: str) -> str:
        """The inline subset that readers' pages may carry; blank after sanitising is refused, not published."""
        markup = value.count("<")
        self._markup += markup
        if markup > MARKUP_MAX or self._markup > MARKUP_PER_REQUEST_MAX:
            self.wrong(
                path, f"has more markup than {MARKUP_MAX} tags, or the request more than {MARKUP_PER_REQUEST_MAX}"
            )
            return value
        clean = clean_html(value)
        if not _visible(clean):
            self.wrong(path, "has no text" if not value.strip() else "has no text after sanitising")
        return clean

    def url(self, value: str, path: str) -> str:
        if len(value) > URL_CHARACTERS_MAX:
            self.wrong(path, f"has {len(value)} characters, {URL_CHARACTERS_MAX} at most")
        elif not is_url(value):
            self.wrong(path, "is no absolute http, https or mailto URL")
        return value

    def optional_url(self, value: str | None, path: str) -> str | None:
        return None if value is None else self.url(value, path)

    def instant(self, value: str, path: str, *, future: bool = False) -> str:
        """Dateline's own text of an instant; what lies more than 5 minutes ahead is refused unless `future`."""
        try:
            instant = parse_instant(value)
        except ValueError as error:
            self.wrong(path, str(error))
            return value
        if not future and milliseconds_of(instant) > self._now + FUTURE_MILLISECONDS_MAX:
            self.wrong(path, "lies more than 5 minutes ahead; Dateline does not publish the future")
        return instant

    def labels(self, values: list[str], path: str, *, count_max: int) -> list[str]:
        """Tags or topics: short texts, each once, in the order given."""
        if len(values) > count_max:
            self.wrong(path, f"has {len(values)} items, {count_max} at most")
        for i, value in enumerate(values):
            self.text(value, f"{path}/{i}", characters_max=TAG_CHARACTERS_MAX)
        return list(dict.fromkeys(values))

    def authors(self, values: list[Author], path: str) -> list[Author]:
        if len(values) > AUTHORS_MAX:
            self.wrong(path, f"has {len(values)} items, {AUTHORS_MAX} at most")
        for i, author in enumerate(values):
            self.text(author.name, f"{path}/{i}/name", characters_max=NAME_CHARACTERS_MAX)
        return values

    def language(self, value: str, path: str) -> str:
        if len(value) > TAG_CHARACTERS_MAX or not _LANGUAGE.fullmatch(value):
            self.wrong(path, "is no BCP 47 language tag, such as fr or pt-BR")
        return value

    def timezone(self, value: str, path: str) -> str:
        if value not in zoneinfo.available_timezones():
            self.wrong(path, "is no IANA time zone, such as Europe/Paris")
        return value

    def image(self, value: Image | None, path: str) -> Image | None:
        if value is None:
            return None
        return Image(
            url=self.url(value.url, f"{path}/url"),
            alt=self.text(value.alt, f"{path}/alt", characters_max=TEXT_CHARACTERS_MAX, blank=True),
            credit=self.optional_text(value.credit, f"{path}/credit", characters_max=LINE_CHARACTERS_MAX),
        )

    def body(self, blocks: list[Block], path: str) -> list[Block]:
        if len(blocks) > BLOCKS_MAX:
            self.wrong(path, f"has {len(blocks)} blocks, {BLOCKS_MAX} at most")
            return blocks
        return [_BLOCKS[type(block)](self, block, f"{path}/{i}") for i, block in enumerate(blocks)]


def clean_html(html: str) -> str:
    """`a[href] strong em br` and text; scripts go with their content, other elements leave theirs."""
    return _CLEANER.clean(html)


def is_url(value: str) -> bool:
    """An absolute http, https or mailto URL (RFC 3986) without whitespace or controls."""
    if _FORBIDDEN_IN_URL.search(value):
        return False
    try:
        parts = urlsplit(value)
        _ = parts.port
    except ValueError:
        return False
    if parts.scheme.lower() not in URL_SCHEMES:
        return False
    return "@" in parts.path if parts.scheme.lower() == "mailto" else bool(parts.hostname)


# Made once: that takes ten times as long as to clean a text.
_CLEANER = nh3.Cleaner(
    tags={"a", "strong", "em", "br"},
    attributes={"a": {"href"}},
    attribute_filter=lambda _, __, value: value if is_url(value) else None,
    url_schemes=URL_SCHEMES,
    link_rel=None,
)


def _visible(html: str) -> bool:
    return _INVISIBLE.fullmatch(html) is None


_INVISIBLE = re.compile(r"(?:<[^>]*>|&nbsp;|\s)*+")


def _text(checked: Checked, block: TextBlock, path: str) -> Block:
    return TextBlock(html=checked.html(block.html, f"{path}/html"))


def _quote(checked: Checked, block: QuoteBlock, path: str) -> Block:
    return QuoteBlock(
        html=checked.html(block.html, f"{path}/html"),
        attribution=checked.optional_text(block.attribution, f"{path}/attribution", characters_max=LINE_CHARACTERS_MAX),
    )


def _image(checked: Checked, block: ImageBlock, path: str) -> Block:
    return ImageBlock(
        url=checked.url(block.url, f"{path}/url"),
        alt=checked.text(block.alt, f"{path}/alt", characters_max=TEXT_CHARACTERS_MAX, blank=True),
        caption=checked.optional_text(block.caption, f"{path}/caption", characters_max=TEXT_CHARACTERS_MAX),
        credit=checked.optional_text(block.credit, f"{path}/credit", characters_max=LINE_CHARACTERS_MAX),
    )


def _link_card(checked: Checked, block: LinkCardBlock, path: str) -> Block:
    at = block.published_at
    return LinkCardBlock(
        url=checked.url(block.url, f"{path}/url"),
        title=checked.text(block.title, f"{path}/title", characters_max=HEADLINE_CHARACTERS_MAX),
        topic=checked.optional_text(block.topic, f"{path}/topic", characters_max=LINE_CHARACTERS_MAX),
        image=checked.optional_url(block.image, f"{path}/image"),
        # The time of another page, which may well be announced for tomorrow.
        published_at=None if at is None else checked.instant(at, f"{path}/published_at", future=True),
    )


def _embed(checked: Checked, block: EmbedBlock, path: str) -> Block:
    return EmbedBlock(
        url=checked.url(block.url, f"{path}/url"),
        provider=checked.optional_text(block.provider, f"{path}/provider", characters_max=LINE_CHARACTERS_MAX),
    )


def _list(checked: Checked, block: ListBlock, path: str) -> Block:
    if not 1 <= len(block.items) <= LIST_ITEMS_MAX:
        checked.wrong(f"{path}/items", f"has {len(block.items)} items, 1 to {LIST_ITEMS_MAX} are allowed")
    return ListBlock(items=[checked.html(item, f"{path}/items/{i}") for i, item in enumerate(block.items)])


_BLOCKS: dict[type[msgspec.Struct], Callable[[Checked, Any, str], Block]] = {
    TextBlock: _text,
    QuoteBlock: _quote,
    ImageBlock: _image,
    LinkCardBlock: _link_card,
    EmbedBlock: _embed,
    ListBlock: _list,
}
