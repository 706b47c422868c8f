"""What people do with the page, done in a real browser in front of real nodes.

The tests share a world, and leave both nodes up and the maker's offers standing; none needs another one before it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from node.regtest.processes import Node
from tests.browser.chromium import DESKTOP, PHONE, context, shot
from tests.browser.stage import COINS, PASSWORD, Stage

pytestmark = pytest.mark.slow

AXE = Path(__file__).parents[2] / "node" / "web" / "ui" / "node_modules" / "axe-core" / "axe.min.js"
PAGES = {
    "taker": ("trade", "positions", "history", "wallet", "makers", "health", "settings"),
    "maker": ("offers", "requests", "positions", "history", "wallet", "health", "settings"),
}
THEMES: tuple[Literal["light"], Literal["dark"]] = ("light", "dark")
AS_LONG_AS_A_START = 30_000
"""Milliseconds."""

expect.set_options(timeout=15_000)


@contextmanager
def signed_in(
    browser: Browser, node: Node, size: tuple[int, int] = DESKTOP, **more: Any
) -> Iterator[tuple[BrowserContext, Page]]:
    """A page of the node that is live."""
    with context(browser, node.url, size, **more) as made:
        token = (node.data / "api.token").read_text().strip()
        answer = made.request.post("/api/v1/session", data={"token": token}, headers={"Origin": node.url})
        assert answer.ok, answer.text()
        page = made.new_page()
        page.goto("/")
        is_live(page)
        yield made, page


def is_live(page: Page) -> None:
    said = page.get_by_role("status", name="Connection to the node: live")
    expect(said).to_be_attached(timeout=AS_LONG_AS_A_START)


def go(page: Page, name: str) -> None:
    page.goto(f"/#/{name}")
    expect(page.locator("main h1")).to_be_attached()


def with_coins(stage: Stage) -> None:
    """Enough for a few positions, in a wallet that other tests may have used."""

    async def enough() -> bool:
        return bool((await stage.taker.call("GET", "/wallet"))["confirmed"] >= 2 * COINS)

    for _ in range(2):
        stage.fund(stage.taker)
    stage.run(stage.taker.until, enough)


def test_a_trade(browser: Browser, stage: Stage) -> None:
    """Sign in, fund, open, watch, roll over, close, and find it in the history."""
    with context(browser, stage.taker.url) as made:
        page = made.new_page()
        page.goto("/")
        page.get_by_label("Password", exact=True).fill("not this one")
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("alert")).to_contain_text("this is not the node's password")
        shot(page, "sign-in")
        page.get_by_label("Password", exact=True).fill(PASSWORD)
        page.get_by_role("button", name="Sign in").click()
        is_live(page)

        go(page, "wallet")
        page.get_by_role("button", name="New address").click()
        address = page.locator("[data-address]").inner_text()
        stage.world("/fund", {"address": address, "amount_sat": COINS})
        stage.world("/mine", {"blocks": 1})
        expect(page.locator("[data-balance=Confirmed]")).to_contain_text("00,000,000 sat")
        transactions = page.get_by_role("region", name="Transactions")
        expect(transactions.get_by_role("row").nth(1)).to_contain_text("+100,000,000 sat")
        shot(page, "wallet")

        go(page, "trade")
        page.get_by_text("×5", exact=True).click()
        review = page.get_by_role("button", name=re.compile("^Review"))
        expect(review).to_be_enabled()
        shot(page, "trade")
        review.click()
        asked = page.get_by_role("dialog", name="Place this order?")
        expect(asked).to_be_visible()
        shot(page, "order")
        asked.get_by_role("button", name="Place order").click()
        expect(page).to_have_url(re.compile(r"#/positions/[0-9a-f]{32}$"))
        order = page.url.rsplit("/", 1)[-1]
        stage.reaches(stage.taker, order, "opening", "open")
        stage.world("/mine", {"blocks": 1})
        card = page.get_by_role("article", name=re.compile("1000 BTCUSD, Open$"))
        expect(card).to_be_visible()
        expect(card.get_by_text("Payout now")).to_be_visible()
        shot(page, "position")

        roll = card.get_by_role("button", name="Roll over now")
        expect(roll).to_be_enabled()
        roll.click()
        stage.run(stage.taker.until, lambda: _rolled(stage, order))

        card = page.get_by_role("article", name=re.compile("1000 BTCUSD"))
        close = card.get_by_role("button", name="Close…", exact=True)
        expect(close).to_be_enabled()
        close.click()
        asked = page.get_by_role("dialog", name="Close this position?")
        confirm = asked.get_by_role("button", name="Close position")
        expect(confirm).to_be_enabled()
        shot(page, "close")
        confirm.click()
        expect(page.get_by_role("article", name=re.compile("Closing|Closed"))).to_be_visible()
        paid = stage.reaches(stage.taker, order, "closed")["paid"]
        expect(page.get_by_role("article", name=re.compile("1000 BTCUSD, Closed$"))).to_be_visible()
        assert paid["payout"] > 0
        go(page, "history")
        expect(page.get_by_text(re.compile("closed together")).first).to_be_visible()
        shot(page, "history")

        go(page, "wallet")
        ours = transactions.locator("tr", has=page.locator(f"a[href='#/positions/{order}']"))
        expect(ours.filter(has_text="Lock")).to_contain_text("−")
        expect(ours.filter(has_text="Close")).to_contain_text("+")
        ours.get_by_role("link", name="Close").click()
        expect(page).to_have_url(re.compile(f"#/positions/{order}$"))


async def _rolled(stage: Stage, order: str) -> bool:
    view = await stage.taker.call("GET", f"/positions/{order}")
    return bool(view["state"] == "open" and view["contract"]["index"] > 0)


def test_force_close_while_the_maker_is_gone(browser: Browser, stage: Stage) -> None:
    with_coins(stage)
    order = stage.opened("short")
    with signed_in(browser, stage.taker) as (_, page):
        stage.run(stage.maker.kill)
        go(page, f"positions/{order}")
        banner = page.locator("[data-banner]")
        expect(banner).to_contain_text("force close still works")
        expect(page.get_by_text("The maker is away; force close still works.")).to_be_visible()
        expect(page.get_by_role("button", name="Close…", exact=True)).to_be_disabled()
        shot(page, "maker-away")
        page.get_by_role("button", name="Force close…").click()
        asked = page.get_by_role("dialog", name="Force close this position?")
        force = asked.get_by_role("button", name="Force close")
        expect(force).to_be_disabled()  # until the consequence is understood
        asked.get_by_role("checkbox").check()
        shot(page, "force-close")
        force.click()
        expect(page.get_by_role("article", name=re.compile("Force closing|Committed"))).to_be_visible()
        stage.world("/mine", {"blocks": 1})
        stage.reaches(stage.taker, order, "committed", "settling", "settled")
        stage.run(stage.maker.start)
        stage.until_healthy(stage.maker)
        expect(banner).to_have_count(0, timeout=AS_LONG_AS_A_START)


def test_the_server_is_restarted_under_two_tabs(browser: Browser, stage: Stage) -> None:
    """Both say so, keep what was known, and go on by themselves; what one does, the other shows."""
    with signed_in(browser, stage.taker) as (made, page):
        other = made.new_page()
        other.goto("/#/wallet")
        is_live(other)
        go(page, "wallet")
        known = page.locator("[data-balance=Confirmed]").inner_text()
        stage.run(stage.taker.kill)
        for tab in (page, other):
            expect(tab.locator("[data-banner=error]")).to_contain_text("has not answered")
            expect(tab.locator("[data-balance=Confirmed]")).to_have_text(known)
        shot(page, "node-away")
        stage.run(stage.taker.start)
        for tab in (page, other):
            is_live(tab)
            expect(tab.locator("[data-banner]")).to_have_count(0, timeout=AS_LONG_AS_A_START)
        stage.until_healthy(stage.taker)
        stage.fund(stage.taker)
        for tab in (page, other):
            expect(tab.locator("[data-balance=Confirmed]")).not_to_have_text(known)


def test_a_service_is_stopped_and_started_from_the_page(browser: Browser, stage: Stage) -> None:
    with signed_in(browser, stage.taker) as (_, page):
        go(page, "health")
        expect(page.get_by_role("log")).to_contain_text("taker")
        row = page.locator("[data-service=wallet]")
        row.get_by_role("button", name="Stop wallet").click()
        asked = page.get_by_role("dialog", name="Stop wallet?")
        expect(asked).to_contain_text("Nothing is opened and no coins are sent.")
        asked.get_by_role("button", name="Stop").click()
        expect(row).to_contain_text("stopped")
        expect(page.locator("[data-banner]")).to_contain_text("The wallet is down")
        shot(page, "health", above=page.get_by_role("region", name="Backup"))
        row.get_by_role("button", name="Start wallet").click()
        page.get_by_role("dialog", name="Start wallet?").get_by_role("button", name="Start").click()
        expect(row).to_contain_text("healthy")
        expect(page.locator("[data-banner]")).to_have_count(0)


def test_coins_are_sent(browser: Browser, stage: Stage) -> None:
    with_coins(stage)
    with signed_in(browser, stage.taker) as (_, page):
        go(page, "wallet")
        page.get_by_label("Address", exact=True).fill(stage.ask(stage.maker, "POST", "/wallet/addresses")["address"])
        page.get_by_label("Amount in satoshis").fill("21000")
        page.get_by_role("button", name="Preview").click()
        asked = page.get_by_role("dialog", name="Send these coins?")
        expect(asked).to_contain_text("21,000 sat")
        shot(page, "send")
        asked.get_by_role("button", name="Send").click()
        sent = page.get_by_text(re.compile("^Sent: [0-9a-f]{64}"))
        expect(sent).to_be_visible()
        txid = sent.inner_text().split()[-1]
        row = page.locator(f"[data-transaction='{txid}']")
        expect(row).to_contain_text("−21,")
        stage.world("/mine", {"blocks": 1})
        assert stage.world(f"/tx/{txid}")["hex"]
        expect(row.get_by_role("cell").nth(3)).to_have_text(re.compile("[1-9]"))  # the feed tells of the block
        page.get_by_label("Address", exact=True).fill("bc1qar0srrr7xfkvy5l643lydnw9re59gtzzwf5mdq")
        page.get_by_label("Amount in satoshis").fill("21000")
        page.get_by_role("button", name="Preview").click()
        expect(page.get_by_role("alert")).to_contain_text("address")


def test_transactions_are_shown_in_pages(browser: Browser, stage: Stage) -> None:
    """With what the node would say of a wallet that is new, away, or old."""
    said: dict[str, Any] = {"status": 200, "json": {"transactions": [], "next": None}}
    with signed_in(browser, stage.taker) as (_, page):
        page.route(re.compile("/wallet/transactions"), lambda route: route.fulfill(**answer(route.request.url)))

        def answer(url: str) -> dict[str, Any]:
            if said["status"] != 200:
                return said
            rows = [transaction(number) for number in range(60)] if said["json"]["next"] else []
            count = int(parse_qs(urlsplit(url).query)["limit"][0])
            following = rows[count - 1]["txid"] if count < len(rows) else None
            return {"json": {"transactions": rows[:count], "next": following}}

        transactions = page.get_by_role("region", name="Transactions")
        go(page, "wallet")
        expect(transactions).to_contain_text("There are none yet")
        said.update(status=503, json={"code": "disconnected", "detail": "wallet is not available: stopped"})
        stage.fund(stage.taker)
        expect(transactions.get_by_role("status")).to_have_text("wallet is not available: stopped")
        said.update(status=200, json={"next": "more"})
        stage.fund(stage.taker)
        expect(transactions.locator("[data-transaction]")).to_have_count(25)
        expect(transactions.get_by_role("status")).to_have_count(0)
        for count in (50, 60):
            transactions.get_by_role("button", name="Show older ones").click()
            expect(transactions.locator("[data-transaction]")).to_have_count(count)
        expect(transactions.get_by_role("button")).to_have_count(0)


def transaction(number: int) -> dict[str, Any]:
    return {
        "txid": f"{number:064x}",
        "amount": number - 30,
        "fee": number or None,
        "confirmations": number,
        "height": number or None,
        "time": 1_700_000_000.0 - number if number else None,
        "of": None,
    }


def test_a_maker_at_work(browser: Browser, stage: Stage) -> None:
    """Sets and withdraws an offer, asks to be asked, and says yes to an order."""
    with_coins(stage)
    with signed_in(browser, stage.maker) as (_, page):
        go(page, "offers")
        offer = page.locator("[data-offer=ETHUSD-short]")
        offer.get_by_role("button", name="Offer").click()
        offer.get_by_label("Spread").fill("0.004")
        offer.get_by_role("button", name="Set the offer").click()
        expect(offer).to_contain_text("0.4")
        offer.get_by_role("button", name="Withdraw").click()
        expect(offer).to_contain_text("no offer")
        page.get_by_label("Orders are accepted").select_option("manual")
        page.get_by_role("button", name="Save").click()
        expect(page.get_by_text("In force.")).to_be_visible()
        page.evaluate("scrollTo(0, 0)")
        shot(page, "offers")
        try:
            go(page, "requests")
            order = stage.placed("long", 300, 3)
            waiting = page.get_by_role("listitem").filter(has_text="300 BTCUSD contracts, you short")
            expect(waiting).to_be_visible()
            shot(page, "requests")
            waiting.get_by_role("button", name="Accept").click()
            page.get_by_role("dialog").get_by_role("button", name="Accept").click()
            expect(waiting).to_have_count(0)
            stage.reaches(stage.taker, order, "opening", "open")
            go(page, "offers")
            connected = page.get_by_role("region", name="Connected now").get_by_role("row").filter(has_text="the peer")
            expect(connected).to_be_visible()
            expect(page.locator("[data-otherwise]")).to_contain_text("Orders are accepted")
            page.get_by_role("button", name="Back to the configured policy").click()
            asked = page.get_by_role("dialog")
            expect(asked).to_contain_text("Orders are accepted")
            asked.get_by_role("button", name="Go back").click()
            expect(page.locator("[data-otherwise]")).to_have_text("All as configured.")
            expect(page.get_by_label("Orders are accepted")).to_have_value("auto")
        finally:
            stage.ask(stage.maker, "DELETE", "/policy")


def test_makers_come_and_go(browser: Browser, stage: Stage) -> None:
    address = stage.ask(stage.maker, "GET", "/maker")["address"]
    gone = "02" * 32 + address[address.index("@") :]
    with signed_in(browser, stage.taker) as (_, page):
        go(page, "makers")
        expect(page.get_by_text("connected")).to_be_visible()
        page.get_by_label("Add a maker").fill("nobody")
        page.get_by_role("button", name="Add", exact=True).click()
        expect(page.get_by_role("alert")).to_contain_text("address")
        page.get_by_label("Add a maker").fill(f"{gone}\n{gone[: gone.rindex(':')]}:1")
        page.get_by_role("button", name="Add", exact=True).click()
        expect(page.get_by_text("away", exact=True)).to_be_visible()
        places = page.get_by_role("list", name="Addresses of the maker 02020202").get_by_role("listitem")
        expect(places).to_have_text([gone[gone.index("@") + 1 :], "127.0.0.1:1"])
        shot(page, "makers")
        page.get_by_role("button", name="Remove the maker 02020202").click()
        page.get_by_role("dialog").get_by_role("button", name="Remove").click()
        expect(page.get_by_text("away", exact=True)).to_have_count(0)


def test_keyboard_only(browser: Browser, stage: Stage) -> None:
    """Sign in, go to a page, open a dialog, leave it and sign out, without a pointer."""
    with context(browser, stage.taker.url) as made:
        page = made.new_page()
        page.goto("/")
        press(page, "Tab", until=page.get_by_label("Password", exact=True))
        page.keyboard.type(PASSWORD)
        page.keyboard.press("Enter")
        is_live(page)
        press(page, "Tab", until=page.get_by_role("link", name="Health").first)
        page.keyboard.press("Enter")
        restart = page.get_by_role("button", name="Restart workers")
        press(page, "Tab", until=restart)
        page.keyboard.press("Enter")
        asked = page.get_by_role("dialog", name="Restart workers?")
        expect(asked).to_be_visible()
        page.keyboard.press("Escape")
        expect(asked).not_to_be_visible()
        expect(restart).to_be_focused()
        press(page, "Shift+Tab", until=page.get_by_role("link", name="Settings").first)
        page.keyboard.press("Enter")
        press(page, "Tab", until=page.get_by_role("button", name="Sign out"))
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", name="Sign in to this node")).to_be_visible()


def press(page: Page, key: str, until: Any) -> None:
    """A key again and again until the focus is there."""
    until.wait_for()
    for _ in range(150):
        if until.evaluate("element => element === document.activeElement"):
            return
        page.keyboard.press(key)
    raise AssertionError(f"{key} does not lead to {until}")


@pytest.mark.parametrize("role", ["taker", "maker"])
def test_every_page(browser: Browser, stage: Stage, role: str) -> None:
    """Axe finds nothing serious in either theme, and a phone of 360 pixels has no need to scroll sideways."""
    if not AXE.is_file():
        pytest.skip("axe-core is not in node/web/ui/node_modules: the page was built elsewhere")
    node = {"taker": stage.taker, "maker": stage.maker}[role]
    found: list[str] = []
    with signed_in(browser, node, bypass_csp=True) as (_, page):
        page.evaluate(AXE.read_text())
        for theme in THEMES:
            page.emulate_media(color_scheme=theme)
            for name in PAGES[role]:
                go(page, name)
                page.wait_for_timeout(200)  # what it asks for is there
                for violation in page.evaluate("axe.run({resultTypes: ['violations']})")["violations"]:
                    if violation["impact"] in ("serious", "critical"):
                        where = [(each["target"], each["any"][0]["message"]) for each in violation["nodes"]][:2]
                        found.append(f"{name}, {theme}: {violation['id']}: {violation['help']} {where}")
                shot(page, f"{role}-{name}-{theme}", whole=True)
        page.set_viewport_size({"width": PHONE[0], "height": PHONE[1]})
        for name in PAGES[role]:
            go(page, name)
            wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            found += [f"{name} is {wide} pixels wider than a phone"] if wide > 0 else []
            shot(page, f"{role}-{name}-phone", whole=True)
    assert not found, "\n".join(found)
