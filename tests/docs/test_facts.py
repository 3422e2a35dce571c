"""What the tables of the documentation say is what the code has."""

import re

import msgspec
import pytest
from documents import ROOT
from msgspec import Struct

import broker
from broker.cli.cli import main
from broker.config import AccountConfig, Config, KeyConfig, OperatorConfig, RateConfig, TierRatesConfig
from broker.errors import HTTP_STATUS, CloseCode


def page(name):
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def test_every_error_code_stands_in_the_protocol_with_its_status():
    rows = re.findall(r"^\| `(\w+)` \| (\d{3}) \|", page("protocol.md"), re.MULTILINE)
    assert {code: int(status) for code, status in rows} == HTTP_STATUS


def test_every_close_code_stands_in_the_protocol_with_whether_to_come_back():
    rows = re.findall(r"^\| ([\d, ]+) \| [^|]+ \| (yes|no)\b", page("protocol.md"), re.MULTILINE)
    said = {int(code): answer == "yes" for codes, answer in rows for code in codes.split(",")}
    assert said == {int(code): code.come_back for code in CloseCode}


def settings():
    for section in msgspec.structs.fields(Config):
        if isinstance(section.type, type) and issubclass(section.type, Struct) and section.name != "rates":
            yield from (f"`{section.name}.{setting.name}`" for setting in msgspec.structs.fields(section.type))


@pytest.mark.parametrize("setting", list(settings()))
def test_every_setting_is_documented(setting):
    assert setting in page("configuration.md")


@pytest.mark.parametrize("kind", [AccountConfig, KeyConfig, OperatorConfig, RateConfig, TierRatesConfig])
def test_every_setting_of_a_list_is_shown(kind):
    for field in msgspec.structs.fields(kind):
        assert re.search(rf"\b{field.name}\b", page("configuration.md")), field.name


@pytest.mark.parametrize("name", broker.__all__)
def test_every_public_name_is_documented(name):
    assert re.search(rf"`(broker\.)?{name}\b", page("embedding.md"))


def test_every_method_that_is_documented_is_there():
    rows = re.findall(r"^\| `(?:await |async with )?(\w+)(?:\(|`)", page("embedding.md"), re.MULTILINE)
    methods = rows[: rows.index("open_broker")]
    assert {"publish", "subscribe", "call", "statistics"} <= set(methods)
    made = broker.Broker(broker.Config())
    assert not [name for name in methods[1:] if not hasattr(made, name)]


def verbs(group, words=()):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from verbs(command, (*words, name))
        else:
            yield " ".join((*words, name))


@pytest.mark.parametrize("verb", list(verbs(main)))
def test_every_verb_is_documented(verb):
    assert re.search(rf"^\| `{verb}[ `]", page("command-line.md"), re.MULTILINE)
