"""The options that make up an entry on the command line, shared by `publish` and `correct`.

Owns the way from options to the fields of a request. Whether they are valid is the server's to say.
"""

import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

# A blank line in a text ends a paragraph, and each paragraph is a block: the inline subset has no <p>.
_BLANK_LINE = re.compile(r"\n[ \t]*\n")


class Content(NamedTuple):
    """The options as click gives them: None and () where not given."""

    text: Sequence[str]
    quote: str | None
    attribution: str | None
    item: Sequence[str]
    image: str | None
    alt: str | None
    caption: str | None
    credit: str | None
    link: str | None
    link_title: str | None
    link_topic: str | None
    embed: str | None
    provider: str | None
    at: str | None
    author: Sequence[str]
    tag: Sequence[str]

    def fields(self) -> dict[str, Any]:
        """The request's fields that were given; a body is given whole or not at all."""
        fields: dict[str, Any] = {}
        if self.at is not None:
            fields["published_at"] = self.at
        if body := self._body():
            fields["body"] = body
        if self.author:
            fields["authors"] = [{"name": name} for name in self.author]
        if self.tag:
            fields["tags"] = list(self.tag)
        return fields

    def _body(self) -> list[dict[str, Any]]:
        self._check()
        blocks: list[dict[str, Any]] = [{"type": "text", "html": html} for html in self._paragraphs()]
        if self.quote is not None:
            blocks.append({"type": "quote", "html": self.quote, "attribution": self.attribution})
        if self.item:
            blocks.append({"type": "list", "items": list(self.item)})
        if self.image is not None:
            image = {"url": self.image, "alt": self.alt, "caption": self.caption, "credit": self.credit}
            blocks.append({"type": "image", **image})
        if self.link is not None:
            card = {"url": self.link, "title": self.link_title, "topic": self.link_topic}
            blocks.append({"type": "link_card", **card})
        if self.embed is not None:
            blocks.append({"type": "embed", "url": self.embed, "provider": self.provider})
        return blocks

    def _paragraphs(self) -> list[str]:
        paragraphs: list[str] = []
        for text in self.text:
            if text == "-":
                text = sys.stdin.read().replace("\r\n", "\n")
            paragraphs += [paragraph.strip() for paragraph in _BLANK_LINE.split(text)]
        return [paragraph for paragraph in paragraphs if paragraph]

    def _check(self) -> None:
        if self.image is not None and not self.alt:
            raise click.UsageError("--image needs --alt: what the picture shows, for whoever cannot see it")
        if self.link is not None and not self.link_title:
            raise click.UsageError("--link needs --link-title")
        companions = [
            ("--attribution", self.attribution, "--quote", self.quote),
            ("--alt", self.alt, "--image", self.image),
            ("--caption", self.caption, "--image", self.image),
            ("--credit", self.credit, "--image", self.image),
            ("--link-title", self.link_title, "--link", self.link),
            ("--link-topic", self.link_topic, "--link", self.link),
            ("--provider", self.provider, "--embed", self.embed),
        ]
        for option, value, needed, companion in companions:
            if value is not None and companion is None:
                raise click.UsageError(f"{option} belongs to {needed}")
        if self.text.count("-") > 1:
            raise click.UsageError("standard input can be read once: one --text - is enough")


def content_options(command: Command) -> Command:
    """The options of Content, by its field names."""
    options = [
        click.option(
            "--text",
            multiple=True,
            metavar="HTML|-",
            help="Text; - reads it from standard input. A blank line ends a paragraph.",
        ),
        click.option("--quote", metavar="HTML", help="A quotation."),
        click.option("--attribution", metavar="NAME", help="Who said it."),
        click.option("--item", multiple=True, metavar="HTML", help="An item of a list; give it several times."),
        click.option("--image", metavar="URL", help="An image."),
        click.option("--alt", metavar="TEXT", help="What the image shows."),
        click.option("--caption", metavar="TEXT", help="The image's caption."),
        click.option("--credit", metavar="TEXT", help="Whose image it is."),
        click.option("--link", metavar="URL", help="A link card."),
        click.option("--link-title", metavar="TEXT", help="The link card's title."),
        click.option("--link-topic", metavar="TEXT", help="The link card's topic."),
        click.option("--embed", metavar="URL", help="Something embedded from elsewhere."),
        click.option("--provider", metavar="NAME", help="Where the embed comes from."),
        click.option("--at", metavar="INSTANT", help="When it happened, such as 2022-01-10T18:38:00+01:00."),
        click.option("--author", multiple=True, metavar="NAME", help="An author; give it several times."),
        click.option("--tag", multiple=True, metavar="TAG", help="A tag; give it several times."),
    ]
    # Decorators apply from the last to the first; --help then lists them as above.
    for option in reversed(options):
        command = option(command)
    return command
