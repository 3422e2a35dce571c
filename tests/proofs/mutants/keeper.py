# ruff: noqa: E501
"""Of the keeper of many nodes: what it follows, who it is, and what clients of all nodes acknowledge."""

from proofs.mutants.mutant import Mutant, of

KEEPER = "tests/keeper/test_keeper.py"


def promised(*tests: str) -> str:
    """Return the tests of the keeper that hold a promise."""
    return " ".join(f"{KEEPER}::test_{test}" for test in tests)


POSTED = promised("what_is_published_at_any_node_is_posted_by_the_keeper")
MADE = promised("an_endpoint_that_is_made_gets_what_is_published_at_another_node_from_its_answer_on")
QUEUES = promised("queues_give_what_was_published_at_any_node")
BACK = promised("a_keeper_that_comes_back_posts_what_was_published_while_it_was_away")
GAP = promised("what_left_the_window_while_the_keeper_was_away_is_told")
HISTORY = promised("another_history_of_the_engine_is_a_gap_and_what_comes_then_is_posted_once")
WITHOUT = promised("a_keeper_begins_without_its_engine_and_posts_when_that_is_there")
ROOM = promised("what_waits_at_the_disk_is_taken_in_when_there_is_room_again")
STANDS_BY = promised("of_two_nodes_with_a_log_on_disk_one_stands_by_until_the_other_is_gone")
ACKED = promised("what_a_client_acknowledges_at_any_node_is_not_posted")
LATE = promised("who_acknowledges_too_late_is_told_what_the_keeper_had_begun_with")
AWAY = promised("what_is_acknowledged_while_the_keeper_is_away_is_not_posted_when_it_is_back")
EARLY = promised("what_is_acknowledged_before_the_keeper_has_it_is_not_posted")
FIRST = promised("all_nodes_know_of_the_first_keeper_before_it_takes_anything_in")
HELD = promised("a_client_holds_an_event_at_any_node")
REACHED = promised("it_is_written_down_how_far_an_account_was_where_nothing_was_for_anybody")
LOST = promised("who_has_lost_the_lease_keeps_nothing")
NO_LONGER = promised("who_needs_an_account_no_longer_does_not_follow_it")

MUTANTS: list[Mutant] = [
    *of(
        "broker/keeper/following.py",
        BACK,
        (
            "an account is followed from where it was taken in",
            "_Account(account_id, self._loaded.pop(account_id, None))",
            "_Account(account_id, None)",
        ),
        (
            "it is known after a restart how far that was",
            "        self._loaded = await self._storage.read(kept.read_cursors)\n",
            "",
        ),
    ),
    *of(
        "broker/keeper/following.py",
        GAP,
        (
            "a gap is told to who has webhooks",
            '(("webhook.gap", self._outbox.has), ("queue.gap", self._backlog.has))',
            '(("queue.gap", self._backlog.has),)',
        ),
        (
            "a gap is told to who has queues",
            '(("webhook.gap", self._outbox.has), ("queue.gap", self._backlog.has))',
            '(("webhook.gap", self._outbox.has),)',
        ),
        ("a gap says where it begins", '"from": account.cursor, "to": gap.to', '"from": gap.to, "to": gap.to'),
        ("a gap says how many were missed", '"count": gap.count}', '"count": None}'),
        ("a gap is counted", "        self.missed += gap.count or 0\n", ""),
    ),
    *of(
        "broker/keeper/following.py",
        "tests/keeper/test_following.py",
        (
            "what is much to write down is taken in by a few",
            "max(1, SHARE // self._rows_of(account.account_id))",
            "SHARE",
        ),
        ("what is taken in has its own cursor", "{step[-1].position}", "{page[-1].position}"),
        ("what is for few is taken in together", "if len(entries) > most:", "if entries:"),
    ),
    *of(
        "broker/keeper/following.py",
        HISTORY,
        (
            "each gap has an id of its own",
            'blake2b(f"{account.cursor}".encode(), digest_size=12)',
            'blake2b(b"", digest_size=12)',
        ),
    ),
    *of(
        "broker/keeper/following.py",
        MADE,
        (
            "an account begins where its log is now",
            "            await self._write(account, subscriber.cursor, ())\n        reached",
            "            pass\n        reached",
        ),
    ),
    *of(
        "broker/keeper/following.py",
        WITHOUT,
        (
            "nobody makes a queue of which nothing could come",
            "            if not account.known.is_set():\n",
            "            if False:\n",
        ),
    ),
    *of(
        "broker/keeper/following.py",
        ROOM,
        (
            "a disk that is short of room takes nothing in",
            "if self._storage.short_of_room or self._storage.is_stuck:",
            "if self._storage.is_stuck:",
        ),
        ("what was taken in is counted", "self.events += await self._storage", "await self._storage"),
    ),
    *of(
        "broker/keeper/following.py",
        NO_LONGER,
        (
            "an account that nobody needs is not followed",
            "            if account.scope is not None:\n                account.scope.cancel()\n",
            "",
        ),
    ),
    *of(
        "broker/keeper/following.py",
        POSTED,
        (
            "what comes is written down as an event",
            "entries += [_with_event(entry) for entry in some if",
            "entries += [entry for entry in some if",
        ),
        (
            "what is for somebody is written down at once",
            "if entries or trio.current_time() >=",
            "if trio.current_time() >=",
        ),
    ),
    *of(
        "broker/keeper/following.py",
        QUEUES,
        (
            "what is for a queue alone is taken in, too",
            "return self._outbox.wants(account_id, entry) or self._backlog.wants(account_id, entry)",
            "return self._outbox.wants(account_id, entry)",
        ),
        (
            "letters and jobs are written with what they are of",
            "(self._outbox.add, self._backlog.add)",
            "(self._outbox.add,)",
        ),
    ),
    *of(
        "broker/keeper/following.py",
        EARLY,
        (
            "an acknowledgement waits until the keeper has what was acknowledged",
            "            if reached == prefix and int(through) >= int(position):\n                return\n",
            "            return\n",
        ),
    ),
    *of(
        "broker/keeper/lease.py",
        STANDS_BY,
        (
            "one node is the keeper, though there is another",
            "if holder and holder ~= ARGV[1] and redis.call('EXISTS', ARGV[2] .. holder) == 1 then",
            "if false then",
        ),
        (
            "a keeper that leaves gives the lease back",
            "                await self._wire.call(GIVE_BACK, self._keys, (self._wire.node,))\n",
            "                pass\n",
        ),
        (
            "who stands by makes no endpoints",
            "        if self._other is not None:\n            message",
            "        if False:\n            message",
        ),
        (
            "who has the lease stands by no more",
            "            self._other = None\n            self.lost",
            "            self.lost",
        ),
        (
            "who stands by tries again",
            "            with trio.move_on_after(RENEW_SECONDS):\n",
            "            with trio.move_on_after(3_600):\n",
        ),
    ),
    *of(
        "broker/keeper/lease.py",
        FIRST,
        (
            "the first keeper of all waits until others know of it",
            "                if is_first:\n                    await trio.sleep(NEW_SECONDS)\n                    continue\n",
            "",
        ),
    ),
    *of(
        "broker/keeper/settling.py",
        ACKED,
        (
            "all nodes know which clients are waited for",
            "for i = 2, #ARGV do redis.call('SADD', KEYS[1], ARGV[i]) end",
            "",
        ),
        (
            "what is acknowledged is taken when the keeper hears of it",
            '            if kind == "settle":\n',
            '            if kind == "":\n',
        ),
        (
            "who has acknowledged is answered",
            "            await self._wire.tell(asked.node, msgspec.json.encode(answer))\n",
            "            pass\n",
        ),
        (
            "what was taken leaves the list",
            "                if messages:\n                    await self._wire.call(DONE",
            "                if False:\n                    await self._wire.call(DONE",
        ),
    ),
    *of(
        "broker/keeper/settling.py",
        LATE,
        ("it is answered what was begun with", "outcome.acked, outcome.claimed]", "outcome.acked, []]"),
    ),
    *of(
        "broker/keeper/settling.py",
        AWAY,
        (
            "nothing is posted before what was acknowledged meanwhile is taken",
            "        return account_id in self._taken\n",
            "        return True\n",
        ),
    ),
    *of(
        "broker/keeper/settling.py",
        EARLY,
        (
            "an acknowledgement is taken when what it is of is there",
            "        await self._following.passed(account_id, asked.known)\n",
            "",
        ),
    ),
    *of(
        "broker/keeper/settling.py",
        "tests/keeper/test_settling.py",
        ("of who ends nothing is settled", "            self._taken.clear()  #", "            pass  #"),
    ),
    *of(
        "broker/keeper/settling.py",
        HELD,
        ("a hold is no acknowledgement", "            if asked.seconds is None:\n", "            if True:\n"),
    ),
    *of(
        "broker/keeper/following.py",
        WITHOUT,
        (
            "who makes an endpoint waits until its account is followed",
            "            with trio.move_on_after(BEGIN_SECONDS):\n                await account.known.wait()\n            if not account.known.is_set():",
            "            if False:",
        ),
    ),
    *of(
        "broker/keeper/following.py",
        ROOM,
        (
            "an account is followed when the engine is there",
            "                except RequestError:\n                    await trio.sleep(RETRY_SECONDS)\n\n    async def _take",
            "                except RequestError:\n                    return\n\n    async def _take",
        ),
    ),
    *of(
        "broker/keeper/following.py",
        REACHED,
        (
            "it is written down how far it was where nothing was for anybody",
            "                if waited.cancelled_caught:\n                    await self._write(account, reached, ())\n",
            "",
        ),
    ),
    *of(
        "broker/keeper/keeper.py",
        LOST,
        (
            "who has lost the lease keeps nothing",
            "                    keeping.cancel_scope.cancel()\n",
            "                    await trio.sleep_forever()\n",
        ),
    ),
    *of(
        "broker/keeper/keeper.py",
        STANDS_BY,
        (
            "who asks is refused where another node is the keeper",
            "        self.require()\n        async with",
            "        async with",
        ),
    ),
]
