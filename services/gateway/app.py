"""The gateway's route table."""

from aiohttp import web

from services.gateway.events import Events
from services.gateway.live_page import LivePage
from services.gateway.pages import Pages
from services.gateway.past_pages import PastPages
from services.gateway.streams import Streams


def routes(
    pages: Pages, past_pages: PastPages, events: Events, streams: Streams, live_page: LivePage
) -> list[web.RouteDef]:
    feed = "/v1/feeds/{feed}"
    # aiohttp tries them in this order: what most ask for comes first.
    return [
        web.get(feed + "/stream", streams.of_feed),
        web.get(feed + "/entries", pages.entries),
        web.get("/v1/stream", streams.of_feeds),
        web.get("/v1/feeds", pages.feeds),
        web.get(feed, pages.feed),
        web.get(feed + "/entries/{entry}", pages.entry),
        web.get(feed + "/entries/{entry}/history", past_pages.history),
        web.get(feed + "/changes", pages.changes),
        web.get(feed + "/events", events.of_feed),
        web.get(feed + "/quarantine", events.quarantine),
        web.get("/", live_page.index),
        web.get("/live/{feed}", live_page.show),
        web.get("/assets/{name:live\\.(?:js|css)}", live_page.static),
    ]
