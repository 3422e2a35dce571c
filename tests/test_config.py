"""config.py: TOML, then the environment; whatever does not fit is named."""

import itertools
from datetime import UTC, datetime
from typing import Literal, get_args, get_origin

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from standardwebhooks.webhooks import Webhook

from broker.config import (
    AccessConfig,
    CommandsConfig,
    Config,
    RateConfig,
    TierRatesConfig,
    TokensConfig,
    check_config,
    load_config,
    parse_config,
)
from broker.errors import ConfigError

DIGEST = "0123456789abcdef" * 4
OTHER = "f" * 64
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
"""As short as it may be: 24 bytes."""

PROTOCOL_7 = f"""
[server]
host = "127.0.0.1"
port = 8765
drain_seconds = 8
[replay]
seconds = 300
max_events_per_account = 100_000
max_bytes_per_account = 67_108_864
max_bytes_total = 1_073_741_824        # the oldest events of all accounts go first; a gap is said
[limits]
max_event_bytes = 262_144              # more is too_large, inside a list too
max_events_per_request = 10_000
max_bodies_bytes = 134_217_728        # request bodies under way, in all; an account a quarter of it
max_names_bytes = 134_217_728         # of the inboxes that connections name, in all; an account a quarter of it
max_body_bytes = 8_388_608             # of an HTTP request
max_message_bytes = 1_048_576          # of a WebSocket message from a client
max_inboxes_per_connection = 10_000
max_event_types = 100                 # of a connection's filter
heartbeat_seconds = 30
[[accounts]]
id = "acct_demo"
tier = "developer"
[[accounts.keys]]
id = "key_agent"
sha256 = "{DIGEST}"
scopes = ["subscribe", "command", "publish"]
inbox_ids = ["inbox_abc123"]
[[operators]]
id = "op_main"
sha256 = "{OTHER}"
"""


def refusal(text: str = "", **environment: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, environment)
    return str(caught.value)


def account(name: str = "acct_a", *keys: str) -> str:
    tables = "".join(f"[[accounts.keys]]\n{key}\n" for key in keys)
    return f'[[accounts]]\nid = "{name}"\n{tables}'


def key(name: str = "key_a", digest: str = DIGEST) -> str:
    return f'id = "{name}"\nsha256 = "{digest}"'


# --- TOML --------------------------------------------------------------------


def test_the_example_of_the_protocol_loads_and_shows_the_defaults():
    config = parse_config(PROTOCOL_7, {})
    default = Config()
    assert (config.server, config.replay, config.limits) == (default.server, default.replay, default.limits)
    (demo,) = config.accounts
    (agent,) = demo.keys
    assert (demo.id, demo.tier) == ("acct_demo", "developer")
    assert (agent.id, agent.sha256, agent.inbox_ids) == ("key_agent", DIGEST, ("inbox_abc123",))
    assert agent.scopes == ("subscribe", "command", "publish")
    assert [(operator.id, operator.sha256) for operator in config.operators] == [("op_main", OTHER)]


def test_nothing_at_all_is_a_configuration():
    assert parse_config("", {}) == Config()
    assert load_config(None, {}) == Config()


def test_every_value_of_a_file_is_taken(tmp_path):
    path = tmp_path / "broker.toml"
    path.write_text('[server]\nhost = "é"\nport = 0\ndrain_seconds = 1.5\n[replay]\nmax_bytes_total = 7', "utf-8")
    for given_path in (path, str(path)):
        config = load_config(given_path, {"BROKER_SERVER__PORT": "9"})
        assert (config.server.host, config.server.port, config.server.drain_seconds) == ("é", 9, 1.5)
        assert config.replay.max_bytes_total == 7


def test_seconds_stay_whole_as_they_were_written():
    seconds = parse_config("[replay]\nseconds = 60", {}).replay.seconds
    assert seconds == 60.0
    assert type(seconds) is int


def test_a_key_reaches_its_whole_account_with_all_scopes_unless_it_says_less():
    (only,) = parse_config(account("acct_a", key()), {}).accounts[0].keys
    assert only.inbox_ids is None
    assert only.scopes == ("subscribe", "command", "publish")


def test_a_configuration_cannot_be_changed():
    with pytest.raises(AttributeError):
        parse_config("", {}).server.port = 1


@pytest.mark.parametrize(
    "text", ["[server", "port = ", "a = 1\na = 2", "x = \x00", "a = " + "[" * 5000, "a = " + "9" * 5000]
)
def test_what_is_not_toml_is_said_with_its_source(text):
    with pytest.raises(ConfigError, match=r"^broker\.toml: not TOML"):
        parse_config(text, {}, source="broker.toml")


@given(st.text(alphabet=st.characters()))
@example("\ud800")
def test_any_text_at_all_is_a_configuration_or_a_config_error(text):
    try:
        config = parse_config(text, {})
    except ConfigError:
        return
    assert isinstance(config, Config)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"^.+missing\.toml: No such file or directory$"):
        load_config(tmp_path / "missing.toml", {})


def test_a_directory_is_no_configuration(tmp_path):
    with pytest.raises(ConfigError, match=r"^.+: Is a directory$"):
        load_config(tmp_path, {})


def test_a_file_may_begin_with_the_mark_that_some_editors_put_there(tmp_path):
    path = tmp_path / "broker.toml"
    path.write_text("[server]\nport = 1\n", "utf-8-sig")
    assert load_config(path, {}).server.port == 1


def test_a_file_that_is_not_utf8_is_named(tmp_path):
    path = tmp_path / "latin.toml"
    path.write_bytes(b'[server]\nhost = "\xff"')
    with pytest.raises(ConfigError, match=r"latin\.toml: not UTF-8 \(byte 17\)$"):
        load_config(path, {})


@pytest.mark.parametrize("setting", ["server.unix", "server.tls_key", "storage.path", "webhooks.ca_file"])
@pytest.mark.parametrize("path", ["", "a\\u0000b"])
def test_what_no_file_can_be_called_is_an_error_that_names_the_setting(setting, path):
    section, _, name = setting.partition(".")
    with pytest.raises(ConfigError, match=rf"Expected the path of a file - at `\$\.{section}\.{name}`$"):
        parse_config(f'[{section}]\n{name} = "{path}"', {})


def test_an_error_inside_a_file_names_the_file(tmp_path):
    path = tmp_path / "wrong.toml"
    path.write_text("[server]\nport = -1")
    with pytest.raises(ConfigError, match=r"wrong\.toml.*\$\.server\.port"):
        load_config(path, {})


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("[nope]", ["nope"]),
        ("nope = 1", ["nope"]),
        ("[server]\nnope = 1", ["nope", "$.server"]),
        ("[replay]\nSeconds = 1", ["Seconds", "$.replay"]),
        ("[limits]\nnope = 1", ["nope", "$.limits"]),
        ('[[accounts]]\nid = "a"\nnope = 1', ["nope", "$.accounts[0]"]),
        (account("a", key() + "\nnope = 1"), ["nope", "$.accounts[0].keys[0]"]),
        (f'[[operators]]\nid = "a"\nsha256 = "{DIGEST}"\nnope = 1', ["nope", "$.operators[0]"]),
        ("server = 1", ["$.server"]),
        ("[accounts]", ["$.accounts"]),
    ],
)
def test_an_unknown_section_or_key_is_named(text, names):
    message = refusal(text)
    assert all(name in message for name in names), message


@pytest.mark.parametrize(
    ("section", "setting", "value"),
    [
        ("server", "host", "5"),
        ("server", "port", "-1"),
        ("server", "port", "65536"),
        ("server", "port", "true"),
        ("server", "port", "80.5"),
        ("server", "port", '"80"'),
        ("server", "drain_seconds", "0"),
        ("server", "drain_seconds", "nan"),
        ("server", "drain_seconds", "inf"),
        ("server", "drain_seconds", "86401"),
        ("replay", "seconds", "0.0"),
        ("replay", "seconds", "-1"),
        ("replay", "max_events_per_account", "0"),
        ("replay", "max_bytes_per_account", "0"),
        ("replay", "max_bytes_total", "0"),
        ("storage", "path", '""'),
        ("storage", "synchronous", '"off"'),
        ("storage", "keep_seconds", "0"),
        ("storage", "max_bytes", "1000"),
        ("storage", "min_free_bytes", "-1"),
        ("engine", "url", '""'),
        ("engine", "url", '"http://127.0.0.1"'),
        ("engine", "wait_replicas", "-1"),
        ("limits", "max_event_bytes", "0"),
        ("limits", "max_body_bytes", "0"),
        ("limits", "max_bodies_bytes", "0"),
        ("limits", "max_names_bytes", "0"),
        ("limits", "max_events_per_request", "0"),
        ("limits", "max_message_bytes", "0"),
        ("limits", "max_inboxes_per_connection", "0"),
        ("limits", "max_event_types", "0"),
        ("limits", "heartbeat_seconds", "0"),
        ("limits", "heartbeat_seconds", '"30"'),
    ],
)
def test_a_bad_value_is_named(section, setting, value):
    assert f"`$.{section}.{setting}`" in refusal(f"[{section}]\n{setting} = {value}")


# --- accounts, keys, operators -----------------------------------------------


@pytest.mark.parametrize("digest", ["", "a" * 63, "a" * 65, "A" * 64, DIGEST.upper(), "g" * 64, DIGEST + "\\n"])
def test_a_sha256_that_is_not_64_lower_case_hex_digits_is_refused(digest):
    assert "`$.accounts[0].keys[0].sha256`" in refusal(account("a", key(digest=digest)))
    assert "`$.operators[0].sha256`" in refusal(f'[[operators]]\nid = "a"\nsha256 = "{digest}"')


@pytest.mark.parametrize(
    ("text", "path"),
    [
        (account("a b"), "$.accounts[0].id"),
        (account("a") + account("b c", key()), "$.accounts[1].id"),
        (account("a\\n"), "$.accounts[0].id"),
        ("[[accounts]]", "$.accounts[0]"),
        ('[[accounts]]\nid = "a"\ntier = "gold"', "$.accounts[0].tier"),
        (account("a", key("k k")), "$.accounts[0].keys[0].id"),
        (account("a", 'id = "k"'), "$.accounts[0].keys[0]"),
        (account("a", key() + '\nscopes = ["read"]'), "$.accounts[0].keys[0].scopes[0]"),
        (account("a", key() + "\ninbox_ids = []"), "$.accounts[0].keys[0].inbox_ids"),
        (account("a", key() + '\ninbox_ids = ["i", "*"]'), "$.accounts[0].keys[0].inbox_ids[1]"),
        ('[[operators]]\nid = "o"', "$.operators[0]"),
    ],
)
def test_a_bad_account_key_or_operator_is_named(text, path):
    assert f"`{path}`" in refusal(text)


@pytest.mark.parametrize("tier", ["free", "developer", "growth", "enterprise"])
def test_every_tier_of_the_protocol_is_known(tier):
    assert parse_config(f'[[accounts]]\nid = "a"\ntier = "{tier}"', {}).accounts[0].tier == tier


def test_an_account_that_is_there_twice_is_named():
    assert "account `acct_a`" in refusal(account("acct_a") + account("acct_b") + account("acct_a"))


def test_an_operator_that_is_there_twice_is_named():
    one, other = (f'[[operators]]\nid = "op_a"\nsha256 = "{digest}"\n' for digest in (DIGEST, OTHER))
    assert "operator `op_a`" in refusal(one + other)


def test_a_key_that_is_twice_in_its_account_is_named_and_in_two_accounts_it_is_not_refused():
    message = refusal(account("acct_a", key("key_a", DIGEST), key("key_a", OTHER)))
    assert "`acct_a`" in message
    assert "`key_a`" in message
    assert parse_config(account("acct_a", key("key_a", DIGEST)) + account("acct_b", key("key_a", OTHER)), {})


HOLDERS = {
    "key `key_one`": account("acct_1", key("key_one")),
    "key `key_two`": account("acct_2", key("key_two")),
    "operator `op_one`": f'[[operators]]\nid = "op_one"\nsha256 = "{DIGEST}"\n',
    "operator `op_two`": f'[[operators]]\nid = "op_two"\nsha256 = "{DIGEST}"\n',
}


@pytest.mark.parametrize("pair", list(itertools.combinations(HOLDERS, 2)), ids=str)
def test_two_holders_of_the_same_sha256_are_both_named(pair):
    message = refusal("".join(HOLDERS[name] for name in pair))
    assert all(name in message for name in pair), message


# --- environment -------------------------------------------------------------


SETTINGS = [
    (section.name, setting.name, setting.type)
    for section in msgspec.structs.fields(Config)
    if isinstance(section.type, type)
    for setting in msgspec.structs.fields(section.type)
    if isinstance(setting.default, int | float | str)
]


@pytest.mark.parametrize(
    ("variable", "value", "text"),
    [
        ("BROKER_ENGINE__URL", "valkey.internal", ""),
        ("BROKER_STORAGE__KEEP_SECONDS", "5", '[storage]\npath = "x.db"'),
        ("BROKER_STORAGE__PATH", "x.db", "[server]\nworkers = 2"),
    ],
)
def test_a_variable_that_does_not_fit_with_the_rest_is_named_and_not_the_file(variable, value, text):
    said = refusal(text, **{variable: value})
    assert said.endswith(f" - at `{variable}`")
    assert "the configuration" not in said


def test_a_setting_of_the_file_that_does_not_fit_with_a_variable_is_named_in_the_file():
    said = refusal('[storage]\npath = "x.db"', BROKER_SERVER__WORKERS="2")
    assert said.startswith("the configuration: ")
    assert said.endswith("`$.storage.path`")


@pytest.mark.parametrize(("section", "setting", "kind"), SETTINGS, ids=lambda value: str(value)[:30])
def test_every_single_setting_can_be_set_by_its_variable_and_keeps_its_type(section, setting, kind):
    variable = f"BROKER_{section}__{setting}".upper()
    default = getattr(getattr(Config(), section), setting)
    text, expected = ("true", True) if kind is bool else ("77", type(default)("77"))
    if get_origin(kind) is Literal:
        text = expected = get_args(kind)[-1]
    if (section, setting) == ("storage", "max_bytes"):  # 77 are too few
        text, expected = "77777777", 77_777_777
    config = parse_config(PROTOCOL_7, {variable: text})
    value = getattr(getattr(config, section), setting)
    assert value == expected
    assert type(value) is type(default)


def test_a_variable_that_is_none_of_the_words_there_are_gets_all_of_them_told():
    with pytest.raises(
        ConfigError, match=r"^Expected `auto`, `json` or `console`, not 'xml' - at `BROKER_LOGS__FORMAT`$"
    ):
        parse_config("", {"BROKER_LOGS__FORMAT": "xml"})


def test_the_operators_api_can_be_set_by_variables():
    variables = {"BROKER_COMMANDS__URL": "https://a.example/x", "BROKER_COMMANDS__SECRET": SECRET}
    commands = parse_config("", variables).commands
    assert (commands.url, commands.secret) == ("https://a.example/x", SECRET)


ON_DISK = '[storage]\npath = "broker.db"\n'
QUEUE = '[[accounts]]\nid = "a"\n[[accounts.queues]]\nid = "q"\n'
WEBHOOK = f'[[accounts]]\nid = "a"\n[[accounts.webhooks]]\nid = "w"\nurl = "https://a.example"\nsecret = "{SECRET}"\n'
ENGINE = '[engine]\nurl = "redis://127.0.0.1"\n'
WORKERS = "[server]\nworkers = 2\n"


@pytest.mark.parametrize(
    ("text", "where"),
    [
        (ON_DISK, "$.storage.path"),
        (ON_DISK + ENGINE, "$.storage.path"),
        (QUEUE, "$.accounts[0].queues"),
        (WEBHOOK, "$.accounts[0].webhooks"),
    ],
)
def test_what_one_process_has_alone_is_refused_with_several_workers(text, where):
    said = refusal(WORKERS + text)
    assert "not go together with several `server.workers`" in said
    assert f"`{where}`" in said


@pytest.mark.parametrize("text", [ON_DISK + QUEUE, ON_DISK + WEBHOOK, QUEUE, WEBHOOK, WORKERS + QUEUE])
def test_of_nodes_that_share_an_engine_one_may_have_a_log_on_disk_and_all_the_same_accounts(text):
    assert parse_config(text + ENGINE, {}).engine.url is not None


def test_a_bad_url_of_an_engine_is_refused_without_telling_its_password():
    told = refusal('[engine]\nurl = "redis://:hunter2@127.0.0.1:99999"')
    assert "`$.engine.url`" in told
    assert "hunter2" not in told


@pytest.mark.parametrize("network", ["10.0.0.1/8", "proxy.example", "", "10.0.0.0/33"])
def test_a_trusted_proxy_is_a_network_or_an_address(network):
    assert "`$.server.trusted_proxies[1]`" in refusal(f'[server]\ntrusted_proxies = ["10.0.0.0/8", "{network}"]')


@pytest.mark.parametrize("setting", ["allow_networks", "deny_networks"])
def test_what_webhooks_may_be_posted_to_is_named_by_networks(setting):
    assert f"`$.webhooks.{setting}[0]`" in refusal(f'[webhooks]\n{setting} = ["10.0.0.1/8"]')


@pytest.mark.parametrize("given", ['tls_certificate = "cert.pem"', 'tls_key = "key.pem"'])
def test_tls_needs_both_a_certificate_and_a_key(given):
    assert "`tls_certificate` and `tls_key` go together" in refusal(f"[server]\n{given}")


@pytest.mark.parametrize("given", ['url = "https://a.example"', f'secret = "{SECRET}"'])
def test_the_operators_api_needs_both_a_url_and_a_secret(given):
    assert "`$.commands`" in refusal(f"[commands]\n{given}")


@pytest.mark.parametrize("url", ["", "a.example", "ftp://a.example", "http://", "http://a b", "http://a\\n"])
def test_a_url_that_is_none_of_http_is_refused(url):
    assert "`$.commands.url`" in refusal(f'[commands]\nurl = "{url}"\nsecret = "{SECRET}"')


@pytest.mark.parametrize("length", range(32, 45))
@pytest.mark.parametrize("padding", ["", "=", "=="])
def test_a_secret_is_taken_if_and_only_if_a_webhook_can_be_signed_with_it(length, padding):
    secret = "whsec_" + "A" * length + padding
    text = f'[commands]\nurl = "http://a.example"\nsecret = "{secret}"'
    if length % 4 == 1 or (padding and (length + len(padding)) % 4):
        assert "`$.commands.secret`" in refusal(text)
    else:
        config = parse_config(text, {})
        assert Webhook(config.commands.secret).sign("msg", datetime.now(UTC), "body").startswith("v1,")


@pytest.mark.parametrize("secret", ["", "whsec_", SECRET[6:], SECRET + "-_", SECRET + "\\n", "A" + SECRET])
def test_a_secret_of_another_form_is_refused(secret):
    assert "`$.commands.secret`" in refusal(f'[commands]\nurl = "http://a.example"\nsecret = "{secret}"')


SHORT = {
    "commands": {"url": "http://a.example", "secret": SECRET[:-1]},
    "access": {"url": "http://a.example", "secret": SECRET[:-2] + "=="},
    "tokens": {"secret": "x" * 31},
}


@pytest.mark.parametrize("section", SHORT)
def test_a_secret_that_is_too_short_is_refused_everywhere_alike_also_by_hand(section):
    """Anybody who sees one thing that it signed could find it out."""
    settings = SHORT[section]
    lines = "\n".join(f'{name} = "{value}"' for name, value in settings.items())
    assert f"`$.{section}.secret`" in refusal(f"[{section}]\n{lines}")
    by_hand = {"commands": CommandsConfig, "access": AccessConfig, "tokens": TokensConfig}[section](**settings)
    with pytest.raises(ConfigError, match=rf"`\$\.{section}\.secret`") as refused:
        check_config(Config(**{section: by_hand}))
    assert settings["secret"] not in str(refused.value)


def test_each_tier_has_rates_of_its_own():
    text = """
    [rates.free]
    commands_per_connection = {per_second = 0.5}
    events_per_account = {per_second = 10, burst = 100}
    """
    rates = parse_config(text, {}).rates
    assert rates.free == TierRatesConfig(
        commands_per_connection=RateConfig(0.5), events_per_account=RateConfig(10, burst=100)
    )
    assert rates.developer == rates.growth == rates.enterprise == TierRatesConfig()


@pytest.mark.parametrize("rate", ["0", "-1", "inf", "nan", "1e-320", "1e300", "true", '"5"', "1000001"])
def test_a_rate_that_cannot_be_counted_is_named(rate):
    message = refusal(f"[rates.free]\ncommands_per_account = {{per_second = {rate}}}")
    assert "`$.rates.free.commands_per_account.per_second`" in message


@pytest.mark.parametrize("burst", ["0", "-1", "1.5"])
def test_a_burst_of_less_than_one_is_named(burst):
    message = refusal(f"[rates.free]\ncommands_per_account = {{per_second = 1, burst = {burst}}}")
    assert "`$.rates.free.commands_per_account.burst`" in message


def test_a_variable_overrides_the_file_and_leaves_the_rest():
    text = '[server]\nhost = "a.example"\nport = 1'
    server = parse_config(text, {"BROKER_SERVER__PORT": "2", "BROKER_SERVER__DRAIN_SECONDS": "0.5"}).server
    assert (server.host, server.port, server.drain_seconds) == ("a.example", 2, 0.5)


def test_a_host_of_digits_stays_text():
    assert parse_config("", {"BROKER_SERVER__HOST": "0"}).server.host == "0"


@pytest.mark.parametrize(
    "name", ["BROKER_CONFIG", "BROKER_", "BROKER", "BROKER_SERVER_PORT", "SERVER__PORT", "XBROKER_A__B"]
)
def test_a_name_without_two_underscores_or_of_somebody_else_is_no_setting(name):
    assert parse_config("", {name: "nonsense", "PATH": "/bin", "A__B": "x"}) == Config()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("BROKER_NOPE__PORT", "1"),
        ("BROKER___PORT", "1"),
        ("BROKER_SERVER__NOPE", "1"),
        ("BROKER_SERVER__", "1"),
        ("BROKER_SERVER__PORT__X", "1"),
        ("BROKER_ACCOUNTS__ID", "a"),
        ("BROKER_OPERATORS__ID", "a"),
        ("BROKER_SERVER__PORT", ""),
        ("BROKER_SERVER__PORT", "eighty"),
        ("BROKER_SERVER__PORT", "65536"),
        ("BROKER_SERVER__PORT", "80.5"),
        ("BROKER_SERVER__PORT", "\udcff"),
        ("BROKER_SERVER__DRAIN_SECONDS", "nan"),
        ("BROKER_SERVER__DRAIN_SECONDS", "inf"),
        ("BROKER_SERVER__DRAIN_SECONDS", "0"),
        ("BROKER_REPLAY__SECONDS", "5m"),
        ("BROKER_LIMITS__MAX_EVENT_BYTES", "-1"),
    ],
)
def test_a_variable_that_sets_nothing_or_not_well_is_named(variable, value):
    assert variable in refusal("", **{variable: value})


def test_a_variable_overrides_a_bad_value_of_the_file_too():
    assert parse_config("[server]\nport = -1", {"BROKER_SERVER__PORT": "1"}).server.port == 1


# --- where to listen ---------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "hosts"), [('"::1"', ("::1",)), ('["127.0.0.1", "::1"]', ("127.0.0.1", "::1")), ('["::"]', ("::",))]
)
def test_a_host_may_be_one_or_a_list(host, hosts):
    assert parse_config(f"[server]\nhost = {host}", {}).server.hosts == hosts


def test_a_host_and_a_socket_file_of_the_environment_count_first():
    server = parse_config(
        '[server]\nhost = ["::1"]', {"BROKER_SERVER__HOST": "127.0.0.3", "BROKER_SERVER__UNIX": "/a"}
    ).server
    assert (server.hosts, server.unix) == (("127.0.0.3",), "/a")


@pytest.mark.parametrize("setting", ["host = []", "host = 1", 'host = ["a", 1]', 'unix = ""', "unix = 1"])
def test_a_host_or_socket_file_that_cannot_be_one_is_named(setting):
    assert f"$.server.{setting.partition(' ')[0]}" in refusal(f"[server]\n{setting}")


def test_several_hosts_of_the_environment_stand_between_commas():
    assert load_config(None, {"BROKER_SERVER__HOST": "127.0.0.1, ::1"}).server.host == ("127.0.0.1", "::1")
    assert load_config(None, {"BROKER_SERVER__HOST": "::1"}).server.host == "::1"
