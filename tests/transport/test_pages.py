"""The broker's own pages: who is shown them, what a browser is told with them, and that nothing else is."""

import re
from functools import partial

import pytest
import trio
from clients import ALICE, ask, configured, post_events, serving
from documents import ROOT
from hatchling.builders.wheel import WheelBuilder

from broker import ServerConfig, open_broker, serve
from broker.config import DashboardConfig

FOLDER = ROOT / "broker" / "dashboard"
KINDS = {"html": "text/html; charset=utf-8", "css": "text/css; charset=utf-8", "svg": "image/svg+xml"}
KINDS["js"] = "text/javascript; charset=utf-8"
PARTS = sorted(file.name for file in FOLDER.iterdir() if file.suffix != ".html")
ON, OFF = (configured(dashboard=DashboardConfig(enabled=enabled)) for enabled in (True, False))


async def page(address, path="/dashboard", *headers, method="GET"):
    return await ask(address, method, path, *headers, key=None)


def directives(answer):
    policy = answer.headers["content-security-policy"]
    return dict(directive.strip().partition(" ")[::2] for directive in policy.split(";"))


async def test_the_page_is_shown_to_whoever_asks_and_names_parts_that_are_there():
    async with serving() as served:
        answer = await page(served.address)
        assert (answer.status, answer.headers["content-type"]) == (200, KINDS["html"])
        parts = set(re.findall(r'(?:href|src)="dashboard/([^"]+\.[a-z]+)"', answer.body.decode()))
        assert {"app.css", "app.js", "icon.svg"} <= parts
        for name in parts:
            assert (await page(served.address, f"/dashboard/{name}")).status == 200


@pytest.mark.parametrize(("path", "name"), [("", "account.html"), ("/operator", "operator.html")])
async def test_accounts_and_operators_have_a_page_each(path, name):
    async with serving() as served:
        answer = await page(served.address, f"/dashboard{path}")
    assert (answer.status, answer.body) == (200, (FOLDER / name).read_bytes())


@pytest.mark.parametrize("name", PARTS)
async def test_each_part_is_what_lies_in_its_file_and_says_what_it_is(name):
    async with serving() as served:
        answer = await page(served.address, f"/dashboard/{name}")
    assert answer.body == (FOLDER / name).read_bytes()
    assert answer.headers["content-type"] == KINDS[name.rpartition(".")[2]]


@pytest.mark.parametrize("path", ["/dashboard", "/dashboard/app.js", "/dashboard/app.css"])
async def test_a_browser_is_told_that_the_page_may_load_and_ask_nobody_else(path):
    async with serving() as served:
        answer = await page(served.address, path)
    assert directives(answer) == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self'",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cross-origin-opener-policy"] == "same-origin"
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert answer.headers["cache-control"] == "no-store"


NOWHERE = ["config.py", "..%2Fconfig.py", "../config.py", "account.html", "app.js/", "app.js/app.js", "/app.js"]
ELSEWHERE = ["http://evil.example", "http://broker.example:8765", "http://broker.example.evil.example"]
NO_ORIGINS = ["null", "broker.example", "ftp://broker.example", "http://", ""]


@pytest.mark.parametrize("path", [f"/dashboard/{name}" for name in NOWHERE])
async def test_nothing_else_is_found_there(path):
    async with serving() as served:
        answer = await page(served.address, path)
    assert (answer.status, answer.code) == (404, "not_found")


async def test_a_page_is_asked_for_and_given_nothing():
    async with serving() as served:
        assert (await page(served.address, method="HEAD")).status == 200
        assert (await page(served.address, method="POST")).status == 405
        moved = await page(served.address, "/dashboard/")
    assert (moved.status, moved.headers["location"]) == (308, "../dashboard")


# --- where it is shown -------------------------------------------------------


async def shown_at(config, tmp_path=None, **serving_with):
    """Whether a broker that serves so shows its page to who comes to its first address."""
    async with open_broker(config) as broker, trio.open_nursery() as nursery:
        [(host, port), *_] = await nursery.start(partial(serve, broker, port=0, **serving_with))
        status = (await page(("127.0.0.1" if host == "0.0.0.0" else host, port))).status
        nursery.cancel_scope.cancel()
    return {200: True, 404: False}[status]


@pytest.mark.parametrize(
    ("host", "shown"), [("127.0.0.1", True), (["127.0.0.1", "127.0.0.2"], True), ("0.0.0.0", False)]
)
async def test_by_itself_it_is_shown_only_where_nobody_comes_from_another_machine(host, shown):
    assert await shown_at(configured(server=ServerConfig()), host=host) is shown


async def test_by_itself_it_is_not_shown_behind_a_proxy(tmp_path):
    assert not await shown_at(configured(server=ServerConfig(trusted_proxies=("127.0.0.0/8",))))
    assert not await shown_at(configured(server=ServerConfig(unix=str(tmp_path / "broker.sock"))))


async def test_who_turns_it_on_has_it_everywhere_and_who_turns_it_off_nowhere():
    assert await shown_at(ON, host="0.0.0.0")
    assert not await shown_at(OFF)


async def test_a_reload_turns_it_on_and_off():
    async with serving(OFF) as served:
        assert (await page(served.address)).status == 404
        assert served.broker.reload(ON) == []
        assert (await page(served.address)).status == 200
        assert served.broker.reload(OFF) == []
        assert (await page(served.address)).status == 404


# --- what it may ask ---------------------------------------------------------


OWN = ("Origin", "http://broker.example")
"""Of a page that was got where `ask` asks."""


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_the_page_itself_may_ask_the_broker(scheme):
    async with serving() as served:
        answer = await post_events(
            served.address, {"type": "a.b", "payload": {}}, ("Origin", f"{scheme}://broker.example")
        )
    assert answer.status == 200
    assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize(("scheme", "status"), [("http", 403), ("https", 200)])
async def test_where_clients_come_by_tls_a_page_that_did_not_is_of_another_origin(scheme, status):
    behind = configured(server=ServerConfig(trusted_proxies=("127.0.0.0/8",)), dashboard=DashboardConfig(enabled=True))
    headers = ("Origin", f"{scheme}://broker.example"), ("X-Forwarded-Proto", "https")
    async with serving(behind) as served:
        assert (await ask(served.address, "GET", "/healthz", *headers, key=ALICE)).status == status


@pytest.mark.parametrize("origin", [*ELSEWHERE, *NO_ORIGINS])
async def test_a_page_of_another_origin_may_not(origin):
    async with serving() as served:
        answer = await ask(served.address, "GET", "/healthz", ("Origin", origin), key=ALICE)
    assert (answer.status, answer.code) == (403, "forbidden")


async def test_where_it_is_off_its_origin_is_one_like_others():
    async with serving(OFF) as served:
        answer = await ask(served.address, "GET", "/healthz", OWN, key=ALICE)
    assert (answer.status, answer.code) == (403, "forbidden")


# --- what lies there ---------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in PARTS if name.endswith(".js")])
def test_nothing_that_comes_over_the_network_can_become_markup_or_a_program(name):
    text = (FOLDER / name).read_text(encoding="utf-8")
    ways = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|DOMParser|setHTML|srcdoc"
    assert not re.findall(ways, text)


@pytest.mark.parametrize("name", sorted(file.name for file in FOLDER.glob("*.html")))
def test_a_page_has_no_script_and_no_style_in_it(name):
    text = (FOLDER / name).read_text(encoding="utf-8")
    assert not re.findall(r"<script(?![^>]* src=)|<style|\sstyle=|\son\w+=|javascript:|https?:(?!//www\.w3\.org)", text)


def test_the_package_has_all_of_it():
    packed = {file.distribution_path for file in WheelBuilder(str(ROOT)).recurse_included_files()}
    assert {f"broker/dashboard/{file.name}" for file in FOLDER.iterdir()} <= packed
