"""A page of many streams behind nginx and Caddy, in a real browser: they speak HTTP/2 to it."""

import msgspec
import pytest
import trio
from clients import ACCOUNT, ALICE, configured, event, serving, token_of, until
from proxies import caddy, nginx

from broker import BrowsersConfig, ServerConfig

STREAMS = 12
"""Twice as many as a browser would open by HTTP/1.1."""
FOLLOW = """([token, count]) => {
  window.heard = [];
  const url = `${location.origin}/v1/events/stream?inbox_ids=in_1&token=${token}`;
  for (let number = 0; number < count; number++) {
    new EventSource(url).onmessage = ({ data }) => window.heard.push(JSON.parse(data).type);
  }
  const ws = new WebSocket(`${location.origin}/v1/stream?inbox_ids=in_1`, ["daimon.v1", `bearer.${token}`]);
  ws.onmessage = ({ data }) => window.heard.push(JSON.parse(data).type);
}"""

ALL_HEARD = "([type, count]) => window.heard.filter(one => one === type).length === count"


@pytest.mark.parametrize("proxied", [nginx, caddy])
async def test_a_page_may_have_many_event_streams_and_a_websocket_beside(proxied, tmp_path, in_browser):
    server = ServerConfig(unix=str(tmp_path / "broker.sock"))
    async with serving(configured(server=server)) as served, proxied(tmp_path, f"unix:{server.unix}") as proxy:
        origins = BrowsersConfig(origins=(proxy.url,))
        served.broker.reload(msgspec.structs.replace(served.broker.config, browsers=origins))
        token = await token_of(served.address, ALICE)

        def look(page):
            page.goto(f"{proxy.url}/healthz")
            page.evaluate(FOLLOW, [token, STREAMS])
            page.wait_for_function(ALL_HEARD, arg=["test.event", STREAMS + 1])
            return page.evaluate("performance.getEntriesByType('navigation')[0].nextHopProtocol")

        async def publish_when_all_are_there():
            await until(lambda: len(served.server.connections) == STREAMS + 1)
            await served.broker.publish(ACCOUNT, event(1))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish_when_all_are_there)
            assert await in_browser(look) == "h2"
