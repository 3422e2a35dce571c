"""The scripts of the server that nodes share, called one by one as a node calls them."""

import msgspec
from valkeys import Server

from broker.log.engines.valkey import Names
from broker.log.engines.valkey.scripts import HEADS, HELLO, Script
from broker.log.engines.valkey.storing import APPEND, FINISH, TAKE_BACK, TAKEN_BACK, TRIM

ACCOUNTS = ("a", "b")
MOST, MOST_BYTES, OVERHEAD, LONG_MS = 7, 1_100, 40, 10_000_000
NAMES = Names(0)


def page_of(batch) -> bytes:
    """Events (id, inbox, how long it is) as a node sends them."""
    words = []
    for event_id, inbox, size in batch:
        words += [f"{event_id} {inbox}", inbox, 't {"cursor":"c.', f'","payload":"{"p" * size}"}}']
    return msgspec.msgpack.encode(words)


def position_of(line: str) -> int:
    return int(line.split(" ", 1)[0])


class Scripts:
    """A server, and its scripts as a node runs them."""

    def __init__(self, at: Server, taken_back: int = TAKEN_BACK) -> None:
        """``taken_back``: the scripts' `TAKEN_BACK`."""
        self.at = at
        self.generation = ""
        self.page = 3
        """Events of one page."""
        self.limits = [LONG_MS, MOST, MOST_BYTES, LONG_MS, LONG_MS, 65_536, OVERHEAD]
        self._taken_back = taken_back

    def run(self, script: Script, keys, *arguments):
        text = script.text.replace(
            f"taken_back, most_marks = {TAKEN_BACK},", f"taken_back, most_marks = {self._taken_back},"
        )
        return self.at.command("EVAL", text, len(keys), *keys, *arguments)

    def hello(self, candidate: str) -> str:
        self.generation = self.run(HELLO, [NAMES.generation], candidate, "1")[0]
        return self.generation

    def append(self, by_account, generation: str | None = None, marks=(), of_list="", *, begin=False):
        keys, arguments = [NAMES.generation], []
        for account_id, batch in by_account.items():
            keys += [NAMES.of_account(kind, account_id) for kind in "msdxqp"]
            pages = [page_of(batch[start : start + self.page]) for start in range(0, len(batch), self.page)]
            words = [word for mark in marks for word in mark]
            arguments += [NAMES.events(account_id), len(pages), len(marks), *words, *pages]
        of_lists = [NAMES.long_list(""), of_list, LONG_MS, "begin" if begin else ""]
        limits = [*self.limits, *of_lists]
        answer = self.run(APPEND, keys, generation or self.generation, "candidate", *limits, *arguments)
        if answer[0] in ("stale", "busy", "lost", "reused") or isinstance(answer, str):
            return answer
        told = [text.split() for text in answer]
        return [[int(word) if at % 2 else word for at, word in enumerate(words)] for words in told]

    def finish(self, of_list: str, behind, mark=("", ""), generation: str | None = None):
        keys, arguments = [NAMES.generation, NAMES.long_list(of_list)], [of_list, self.limits[0], *mark]
        for account_id, number in behind.items():
            keys += [NAMES.of_account(kind, account_id) for kind in "msdqp"]
            arguments += [number, NAMES.events(account_id)]
        return self.run(FINISH, keys, generation or self.generation, "candidate", *arguments)

    def take_back(self, of_list: str, *of: str):
        keys = [NAMES.of_account(kind, account_id) for account_id in of for kind in "msdx"]
        return self.run(TAKE_BACK, [NAMES.long_list(of_list), *keys], of_list)

    def trim(self, keep):
        keys = [NAMES.of_account(kind, account_id) for account_id in keep for kind in "msd"]
        limits = [*self.limits[:3], OVERHEAD]
        return self.run(TRIM, [NAMES.generation, *keys], self.generation, "candidate", *limits, *keep.values())

    def heads(self, *floors: int, of=ACCOUNTS):
        keys = [NAMES.generation, *(NAMES.of_account("m", account_id) for account_id in of)]
        return self.run(HEADS, keys, self.generation, "candidate", LONG_MS, *floors)

    def of(self, script: Script, kinds: str, account_id: str, *arguments):
        keys = [NAMES.of_account(kind, account_id) for kind in kinds]
        return self.run(script, keys, self.generation, *arguments)
