"""What an operator is told of refusals."""

import logging

from clients import ALICE, LISTENER, ask, opening, serving

from broker.errors import RequestError
from broker.transport.refusals import MOST, MOST_OF_ONE, WINDOW_SECONDS, Refusals

FORBIDDEN = RequestError("forbidden", "The key does not carry the scope `publish`")


def tell(refusals, now, remote="192.0.2.1", error=FORBIDDEN):
    return refusals.tell(now, "POST /v1/events", remote, "key_a of acct_a", error)


def test_a_refusal_is_told_with_what_who_and_why():
    [line] = tell(Refusals(), 0.0)
    assert line.startswith("refused: POST /v1/events (192.0.2.1, key_a of acct_a): 403 forbidden: ")
    assert line.endswith(FORBIDDEN.message)


def test_one_address_is_told_so_often_and_hides_no_other():
    refusals = Refusals()
    assert sum(len(tell(refusals, 0.0)) for _ in range(10_000)) == MOST_OF_ONE
    assert tell(refusals, 1.0, "192.0.2.2")


def test_all_addresses_together_are_told_so_often():
    refusals = Refusals()
    assert sum(len(tell(refusals, 0.0, f"192.0.2.{n}")) for n in range(256)) == MOST


def test_after_a_minute_the_left_out_are_counted_and_all_begins_again():
    refusals = Refusals()
    for _ in range(MOST_OF_ONE + 1234):
        tell(refusals, 0.0)
    assert tell(refusals, WINDOW_SECONDS - 1) == []
    first, second = tell(refusals, WINDOW_SECONDS)
    assert "1,235" in first
    assert "refused" in second
    assert len(tell(refusals, WINDOW_SECONDS * 3)) == 1


def test_a_clients_own_words_are_one_short_line():
    [line] = tell(Refusals(), 0.0, error=RequestError("invalid_params", "no\nINFO all is well \x1b[2J" + "x" * 9999))
    assert line.isprintable()
    assert line.isascii()
    assert len(line) < 400


async def test_the_server_tells_address_and_key_and_nothing_of_query_or_header(caplog):
    caplog.set_level(logging.INFO, "broker.transport")
    async with serving() as served:
        await ask(served.address, "POST", "/v1/events", key=LISTENER, body=b"{}")
        await opening(served.address, f"key={ALICE}_but_not_quite", key=None)
        await opening(served.address, "since=", key=ALICE)
        await ask(served.address, "GET", f"/v1/{ALICE}")
    told = [record.getMessage() for record in caplog.records if record.getMessage().startswith("refused")]
    assert [line.partition(": ")[2].partition(": ")[0] for line in told] == [
        "POST /v1/events (127.0.0.1, key_listener of acct_alice)",
        "GET /v1/stream (127.0.0.1, no known key)",
        "GET /v1/stream (127.0.0.1, key_alice of acct_alice)",
        "GET elsewhere (127.0.0.1, no known key)",
    ]
    assert ALICE not in caplog.text
