"""RFC 6455 by the cases of the Autobahn test suite, which others wrote: the broker's own reading, writing and closing.

What they need is a server that sends back what it gets: `echoing`, on the broker's own port.
"""

import json
import subprocess
import sys
from pathlib import Path

import trio
from proofs.echoing import echoing
from proofs.proving import only_in_make_prove

RUNNER = Path(__file__).with_name("autobahn.py")
PARALLEL = 4
ENOUGH_BYTES = 20_000_000
"""The longest message of all cases has 16 MiB."""
FRAMING, PINGS, RESERVED, OPCODES = "1.*", "2.*", "3.*", "4.*"
FRAGMENTS, UTF8, CLOSES, LONG, AUTO_FRAGMENTS = "5.*", "6.*", "7.*", "9.*", "10.*"
QUICK = (FRAMING, PINGS, RESERVED, OPCODES, FRAGMENTS, UTF8, CLOSES, AUTO_FRAGMENTS)
LEFT_OPEN = {"7.1.6", "7.13.1", "7.13.2"}
"""Cases to which RFC 6455 has no one answer: what a server does is told, not judged."""


async def verdicts(max_message_bytes, *cases):
    """Case -> its verdict, and that on its closing handshake; fails where one was not clean."""
    async with echoing(max_message_bytes) as (_, url):
        command = [sys.executable, str(RUNNER), url, str(PARALLEL), *cases]
        with trio.fail_after(100):
            ran = await trio.run_process(command, capture_stdout=True, stderr=subprocess.STDOUT)
    found = json.loads(ran.stdout)
    assert not [case for case, (_, _, clean) in found.items() if not clean]
    return {case: {behaviour, closing} for case, (behaviour, closing, _) in found.items()}


async def test_frames_fragments_text_and_closes_are_handled_as_rfc_6455_has_it(no_errors):
    found = await verdicts(ENOUGH_BYTES, *QUICK)
    assert len(found) == 247
    assert {case for case, said in found.items() if said == {"INFORMATIONAL"}} == LEFT_OPEN
    assert all(said == {"OK"} for case, said in found.items() if case not in LEFT_OPEN)


@only_in_make_prove
async def test_long_messages_and_thousands_of_fragments_come_back_whole(no_errors):
    found = await verdicts(ENOUGH_BYTES, LONG)
    assert len(found) == 54
    assert set.union(*found.values()) == {"OK"}


async def test_the_cases_find_a_server_that_takes_no_message_over_a_thousand_bytes():
    found = await verdicts(1_000, FRAMING)
    assert {case for case, said in found.items() if "FAILED" in said} == {
        f"1.{kind}.{length}" for kind in (1, 2) for length in (6, 7, 8)
    }
