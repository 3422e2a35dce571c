"""Clients that come and are reset: `python -m proofs.churning HOST PORT TIMES`; prints what they heard as JSON.

A process of its own, so that the descriptors that are free at the broker are taken by its clients alone. Each client
of an account knows the word that stands in all events of its account, and takes each byte that it gets for a frame.
"""

import json
import random
import sys
from collections import Counter

import trio
from clients import ALICE, BOB, FrameParser, open_socket, reset, upgrade_head

WORDS = {ALICE: "alice", BOB: "bob"}
AT_ONCE = 12
"""Of each account."""


class Churner:
    """The clients of one account."""

    def __init__(self, address, key, times):
        self._address, self._key, self._left = address, key, times
        self.heard: Counter[str] = Counter()

    async def run(self):
        async with trio.open_nursery() as nursery:
            for _ in range(AT_ONCE):
                nursery.start_soon(self._come_and_go)

    async def _come_and_go(self):
        while self._left > 0:
            self._left -= 1
            stream = await open_socket(self._address)
            try:
                with trio.move_on_after(random.choice((0.001, 5, 5, 5))):
                    if random.random() < 0.1:
                        await self._ask(stream)
                    else:
                        await self._listen(stream, random.randint(0, 6))
            finally:
                self.heard["connections"] += 1
                reset(stream)

    async def _ask(self, stream):
        await stream.send_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        said = bytes(await stream.receive_some(65_536))
        if not (said.startswith(b"HTTP/1.1 200 ") and said.endswith(b"}")):
            self._strange(said)

    async def _listen(self, stream, enough):
        """Read so many pieces, whole frames or not."""
        await stream.send_all(upgrade_head("inbox_ids=*", key=self._key))
        head = b""
        while b"\r\n\r\n" not in head:
            head += bytes(await stream.receive_some(65_536)) or b"\r\n\r\n"
        head, _, rest = head.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 101 "):
            self._strange(head)
            return
        parser = FrameParser()
        for _ in range(enough):
            try:
                for _, payload in parser.feed(rest):
                    self._judge(payload)
            except AssertionError as error:
                self._strange(str(error).encode())
                return
            rest = bytes(await stream.receive_some(65_536))
            if not rest:
                return

    def _judge(self, payload):
        frame = json.loads(payload) if payload else {}
        if "payload" in frame:
            words = set(frame["payload"]["words"].split())
            self.heard["events"] += 1
            if words != {WORDS[self._key]} or frame["inbox_id"] != f"in_{WORDS[self._key]}":
                self._strange(payload)
        elif frame and frame.get("account_id", "") not in ("", f"acct_{WORDS[self._key]}"):
            self._strange(payload)

    def _strange(self, said):
        self.heard["strange"] += 1
        print(f"{WORDS[self._key]} heard {said[:200]!r}", file=sys.stderr)


async def main(host, port, times):
    churners = [Churner((host, port), key, times // 2) for key in WORDS]
    async with trio.open_nursery() as nursery:
        for churner in churners:
            nursery.start_soon(churner.run)
    print(json.dumps(sum((churner.heard for churner in churners), Counter())))


if __name__ == "__main__":
    trio.run(main, sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
