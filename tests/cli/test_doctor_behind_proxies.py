"""`broker doctor` through nginx and Caddy: as docs/proxies.md has them it finds nothing, else what was forgotten."""

import pytest
import trio
from clients import ALICE, configured
from clients import serving as serving_here
from proxies import caddy, nginx

from broker import LimitsConfig
from broker.cli.examining import Patient, examine
from broker.cli.options import parse_url
from broker.cli.probing import Place

PATIENCE_SECONDS = 1.0
"""How long the proxy waits for the next byte."""


async def problems_through(proxied, folder, *, heartbeat=30.0, **options):
    """What the doctor finds through a proxy, with a pause that is longer than it waits."""
    found = []
    async with serving_here(configured(limits=LimitsConfig(heartbeat_seconds=heartbeat))) as served:
        host, port = served.address
        async with proxied(folder, f"{host}:{port}", seconds=PATIENCE_SECONDS, **options) as proxy:
            where = parse_url(proxy.url)
            place = Place(where.http, proxy.trust)
            patient = Patient(place, where.websocket, ALICE, None, 2.5 * PATIENCE_SECONDS, samples=3)
            with trio.fail_after(60):
                await examine(patient, found.append)
    return {finding.check: finding.problem for finding in found if finding.state == "problem"}


@pytest.mark.parametrize("proxied", [nginx, caddy])
async def test_a_proxy_that_is_set_up_as_the_page_says_is_well(proxied, tmp_path):
    assert await problems_through(proxied, tmp_path, heartbeat=0.2) == {}


async def test_a_heartbeat_that_comes_later_than_nginx_waits_is_found(tmp_path):
    assert await problems_through(nginx, tmp_path) == {"quiet": "cut_when_quiet"}


@pytest.mark.parametrize("forgotten", ["proxy_set_header Upgrade", "proxy_set_header Connection", "proxy_http_version"])
async def test_an_upgrade_that_nginx_does_not_pass_on_is_found(forgotten, tmp_path):
    found = await problems_through(nginx, tmp_path, heartbeat=0.2, without=forgotten)
    assert found == {"stream": "no_websocket"}
