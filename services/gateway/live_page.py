"""The plain live page: a feed's newest entries as HTML, brought up to date by its stream.

Owns the two templates. Every value is escaped by the template engine except `html`, which was sanitised before it became an
event; the script builds nodes by text, and takes the same `html` alone as markup.
"""

from pathlib import Path

import jinja2
import msgspec
from aiohttp import hdrs, web

from services.gateway import params
from services.gateway.cursor import Filters
from services.gateway.listing import FeedFilters, Listing
from services.gateway.reads import Reads
from shared.errors import FeedNotFound
from shared.redis import redis_errors
from shared.tokens import Tokens

ENTRIES = 50

# The page carries one script and one style of its own, and shows images and links of the newsroom's choosing.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src https: http: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'"
)
_STATIC = {"live.js": "text/javascript", "live.css": "text/css"}


class LivePage:
    def __init__(self, reads: Reads, listing: Listing, tokens: Tokens) -> None:
        self._reads = reads
        self._listing = listing
        self._tokens = tokens
        folder = Path(__file__).with_name("assets")
        self._templates = jinja2.Environment(
            loader=jinja2.FileSystemLoader(folder), autoescape=True, undefined=jinja2.StrictUndefined
        )
        self._static = {name: (folder / name).read_bytes() for name in _STATIC}

    async def index(self, request: web.Request) -> web.Response:
        """The public feeds, most recently active first."""
        async with redis_errors("the feeds were not read"):
            listed = await self._listing.page(FeedFilters(), limit=params.PAGE_MAX, after=None, private=False)
        return self._html("index.html", feeds=msgspec.json.decode(listed.body)["feeds"])

    async def show(self, request: web.Request) -> web.Response:
        feed = request.match_info["feed"]
        order = params.order(request.query)
        async with redis_errors("the page was not read"):
            page = await self._reads.page(feed, Filters(order=order), limit=ENTRIES)
        hidden = page is not None and page.moment.visibility == "private" and self._tokens.holder(request) is None
        if page is None or hidden:
            raise FeedNotFound(feed)
        return self._html(
            "feed.html",
            feed=msgspec.json.decode(page.moment.feed),
            page=msgspec.json.decode(page.body),
            order=order,
            private=page.moment.visibility == "private",
        )

    async def static(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        return web.Response(
            body=self._static[name],
            headers={hdrs.CONTENT_TYPE: f"{_STATIC[name]}; charset=utf-8", hdrs.CACHE_CONTROL: "public, max-age=60"},
        )

    def _html(self, template: str, *, private: bool = False, **values: object) -> web.Response:
        return web.Response(
            text=self._templates.get_template(template).render(**values),
            content_type="text/html",
            headers={
                hdrs.CACHE_CONTROL: "private, no-store" if private else "public, max-age=0, s-maxage=1",
                "Content-Security-Policy": CONTENT_SECURITY_POLICY,
                "X-Content-Type-Options": "nosniff",
                "Referrer-Policy": "strict-origin-when-cross-origin",
            },
        )
