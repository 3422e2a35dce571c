"""What is given to monitor a broker with speaks of figures that it has, and is what Prometheus takes."""

import json
import re
import shutil
import subprocess

import pytest
from clients import configured, serving
from documents import ROOT
from observe.scrapes import scrape
from valkeys import server

from broker.config import EngineConfig, StorageConfig

ALERTS = ROOT / "contrib" / "prometheus" / "alerts.yml"
SCRAPE = ROOT / "contrib" / "prometheus" / "scrape.yml"
DASHBOARD = ROOT / "contrib" / "grafana" / "broker.json"


def names_in(expression):
    return set(re.findall(r"\bbroker_\w+", expression))


def alerts():
    """The alerts by their names: what each asks."""
    text = ALERTS.read_text(encoding="utf-8")
    return dict(re.findall(r"- alert: (\w+)\n +expr: (.+)\n", text))


def panels():
    """The dashboard's panels that show something."""
    board = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return [panel for panel in board["panels"] if panel["type"] != "row"]


async def test_alerts_ask_for_figures_that_there_are(noisy_broker, tmp_path):
    exported = (await scrape(noisy_broker)).names
    storage = StorageConfig(path=str(tmp_path / "keeper.db"), min_free_bytes=0)
    with server() as engine:
        async with serving(configured(engine=EngineConfig(url=engine.url), storage=storage)) as served:
            exported |= (await scrape(served)).names
    assert len(alerts()) == ALERTS.read_text(encoding="utf-8").count("- alert:") > 0
    for name, expression in alerts().items():
        assert names_in(expression) <= exported, name
        assert names_in(expression) or expression.startswith("up"), name


async def test_the_dashboard_shows_figures_that_there_are(noisy_broker):
    exported = (await scrape(noisy_broker)).names
    for panel in panels():
        for target in panel["targets"]:
            assert names_in(target["expr"]), panel["title"]
            assert names_in(target["expr"]) <= exported, panel["title"]


def test_the_dashboards_panels_do_not_lie_on_each_other():
    places = set()
    for panel in panels():
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & places, panel["title"]
        assert max(x for x, _ in cells) < 24
        places |= cells


def test_what_to_alert_on_in_the_documentation_is_what_the_rules_ask():
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    asked = set().union(*map(names_in, alerts().values()))
    assert names_in(page.partition("### What to alert on")[2]) <= asked


# --- as Prometheus reads it --------------------------------------------------


def promtool(*arguments, stdin=None):
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("there is no promtool")
    return subprocess.run([program, *map(str, arguments)], input=stdin, capture_output=True, timeout=60, check=False)


def test_prometheus_takes_the_alerts():
    checked = promtool("check", "rules", ALERTS)
    assert checked.returncode == 0, checked.stderr


def test_prometheus_takes_the_scrape_configuration():
    checked = promtool("check", "config", "--syntax-only", SCRAPE)
    assert checked.returncode == 0, checked.stderr


async def test_prometheus_finds_nothing_to_say_about_the_metrics(noisy_broker):
    checked = promtool("check", "metrics", stdin=(await scrape(noisy_broker)).text.encode())
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")
