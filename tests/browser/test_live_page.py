"""The plain live page in a real browser: it follows, in either order, and its native EventSource comes back without a gap."""

import secrets
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from playwright.async_api import Browser, Page, expect

from tests.acceptance.harness import Installation


class Desk:
    """One feed and the desk that writes it."""

    def __init__(self, session: aiohttp.ClientSession, base_url: str) -> None:
        self.feed = f"page-{secrets.token_hex(4)}"
        self._session = session
        self._url = f"{base_url}/v1/feeds/{self.feed}"

    async def send(self, method: str, path: str, body: dict[str, Any] | None = None, **headers: str) -> dict[str, Any]:
        async with self._session.request(method, self._url + path, json=body, headers=headers) as answer:
            assert answer.status in (200, 201), await answer.text()
            self.position = answer.headers["Dateline-Position"]
            document: dict[str, Any] = await answer.json()
            return document

    async def publish(self, headline: str, **fields: Any) -> dict[str, Any]:
        return await self.send("POST", "/entries", {"headline": headline, **fields})

    async def readable(self) -> None:
        """Returns when pages show what was written last."""
        async with self._session.get(f"{self._url}?min_position={self.position}") as answer:
            assert answer.status == 200


@pytest.fixture
async def desk(installation: Installation) -> AsyncIterator[Desk]:
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {installation.token}"}) as session:
        desk = Desk(session, installation.base_url)
        await desk.send("PUT", "", {"title": "A story", "language": "en"})
        await desk.readable()
        yield desk


async def open_page(browser: Browser, installation: Installation, desk: Desk, order: str) -> Page:
    page = await browser.new_page()
    await page.goto(f"{installation.base_url}/live/{desk.feed}?order={order}")
    await expect(page.locator("#state")).to_have_text("live")
    return page


async def test_a_page_shows_what_desks_publish_correct_and_retract_in_either_order(
    browser: Browser, installation: Installation, desk: Desk
) -> None:
    first = await desk.publish("First", published_at="2022-01-10T18:38:00Z")
    await desk.readable()
    newest = await open_page(browser, installation, desk, "newest")
    oldest = await open_page(browser, installation, desk, "oldest")
    await desk.publish("Second", published_at="2022-01-10T18:38:00Z")
    gone = await desk.publish("Third", published_at="2022-01-10T18:40:00Z")
    await expect(newest.locator("#entries h2")).to_have_text(["Third", "Second", "First"])
    await expect(oldest.locator("#entries h2")).to_have_text(["First", "Second", "Third"])
    await desk.send("PATCH", f"/entries/{first['id']}", {"headline": "First, corrected"}, **{"If-Match": '"1"'})
    await desk.send("DELETE", f"/entries/{gone['id']}")
    await expect(newest.locator("#entries h2")).to_have_text(["Second", "First, corrected"])
    await expect(oldest.locator("#entries h2")).to_have_text(["First, corrected", "Second"])


async def test_content_from_a_desk_runs_no_script_on_the_page(
    browser: Browser, installation: Installation, desk: Desk
) -> None:
    hostile = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
    await desk.publish(hostile, body=[{"type": "text", "html": hostile + "text"}], authors=[{"name": hostile}])
    await desk.readable()
    page = await open_page(browser, installation, desk, "newest")
    await desk.publish(hostile, body=[{"type": "quote", "html": "q" + hostile, "attribution": hostile}])
    await expect(page.locator("#entries h2")).to_have_text([hostile, hostile])
    assert await page.locator("#entries img, #entries script").count() == 0
    assert await page.title() == "A story"


async def test_a_native_event_source_comes_back_after_a_restart_without_a_gap(
    browser: Browser, installation: Installation, desk: Desk
) -> None:
    page = await open_page(browser, installation, desk, "newest")
    await desk.publish("Before")
    await expect(page.locator("#entries h2")).to_have_text(["Before"])
    assert installation.stop() == 0
    await expect(page.locator("#state")).to_have_text("reconnecting")
    installation.start()
    await desk.publish("While it was away")
    await expect(page.locator("#entries h2")).to_have_text(["While it was away", "Before"], timeout=20_000)
