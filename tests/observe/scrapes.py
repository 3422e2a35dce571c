"""What `GET /metrics` says, as Prometheus' own parser reads it."""

from clients import OPERATOR, ask
from prometheus_client.parser import text_string_to_metric_families

_SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}


class Scrape:
    """What a scrape said."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.families = {family.name: family for family in text_string_to_metric_families(text)}
        self.samples = {
            (sample.name, *sorted(sample.labels.values())): sample.value
            for family in self.families.values()
            for sample in family.samples
        }

    @property
    def names(self) -> set[str]:
        """What may stand in a query."""
        return {
            family.name + suffix for family in self.families.values() for suffix in _SUFFIXES.get(family.type, ("",))
        }

    def __call__(self, name, *labels):
        """The value of a sample with these labels' values; 0 if it is not there."""
        return self.samples.get((f"broker_{name}", *sorted(labels)), 0)


async def scrape(served) -> Scrape:
    answer = await ask(served.address, "GET", "/metrics", key=OPERATOR)
    assert answer.status == 200, answer.body
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return Scrape(answer.body.decode())
