"""Keys that have live connections: judged again at a reload, asked for again when what was said has had its time.

PROTOCOL section 8. A key that is watched is in one of four states:

| state | what it says | what may follow |
|---|---|---|
| configured | the configuration has the key | it leaves it: resting, if an answer is kept, else asking |
| resting | what was said outside holds for its time | the time is over: asking |
| asking | a question is under way, or waits to be | an answer: resting, or gone; none: resting, or gone if doubted |
| gone | nobody knows the key: its connections end | an opening learns that it is known again: resting |

From each of them it becomes configured when the configuration has it; when its last connection leaves, nothing is kept.

What a key reaches is judged once; its connections are told in slices, and each of them before it uses its key
(`Watch.settle`) or is written to (`WatchedKeys.settle`). So no step is long, and none goes by what was true before.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Final

import trio
from msgspec import Struct

from ..schedule import Schedule
from .keys import Key
from .lookup import RETRY_SECONDS, Kept, Lookup

MAX_ASKING_AGAIN: Final = 16
"""Questions for keys of live connections under way at once: those who want to come in are not kept waiting by them."""
SHORTEST_SECONDS: Final = 1.0
"""How soon a key of a live connection is asked for again at the earliest."""
SLICE_SECONDS: Final = 0.001
LEAST_TOLD: Final = 1
"""So many connections are told in one step at least, and more until a slice's time is over: one may take that alone."""

Changed = Callable[[Key | None], None]
"""Called with what a key reaches now; None: it is gone."""


class _Configured:
    """The configuration has the key."""


class _Resting(Struct, frozen=True):
    """What was said outside holds until its time is over; ``stop`` keeps that from being noticed."""

    stop: Callable[[], None]


class _Asking(Struct, frozen=True):
    """A question is under way, or waits to be."""

    doubted: bool
    """Whether only the configuration ever spoke for the key: then no answer ends it."""


class _Gone:
    """Nobody knows the key."""


_State = _Configured | _Resting | _Asking | _Gone
_CONFIGURED: Final = _Configured()
_GONE: Final = _Gone()


class _WatchedKey:
    """A key that has live connections. ``key`` is what was judged last; None: it is gone."""

    __slots__ = ("accounts", "digest", "judgements", "key", "reloads", "remote", "state", "watches")

    def __init__(self, digest: str, remote: str | None, key: Key | None, reloads: int) -> None:
        self.digest = digest
        self.remote = remote
        self.state: _State = _GONE if key is None else _CONFIGURED
        self.key = key
        self.judgements = 0
        """How often it was judged: who knows of fewer is to be told."""
        self.reloads = reloads
        """After how many reloads it was judged."""
        self.watches = 0
        self.accounts: set[_Account] = set()
        """Those whose connections watch it: one, unless the key has moved."""


class _Account:
    """The watches of one account's connections."""

    __slots__ = ("reloads", "untold", "watches")

    def __init__(self, reloads: int) -> None:
        self.watches: dict[Watch, None] = {}
        self.untold: dict[Watch, None] = {}
        """Those that may not know yet what was judged last."""
        self.reloads = reloads
        """How many reloads ``untold`` knows of."""


class Watch:
    """One connection's interest in its key."""

    __slots__ = ("_changed", "_keys", "_known", "_narrowing", "_watched")

    def __init__(self, keys: "WatchedKeys", watched: _WatchedKey, key: Key, changed: Changed) -> None:
        self._keys = keys
        self._watched = watched
        self._narrowing = key.narrowing
        self._changed = changed
        self._known = watched.judgements

    def settle(self) -> None:
        """Call ``changed`` if the key was judged since that was called last. To be done before the key is used."""
        watched = self._watched
        self._keys.judge_again(watched)
        if self._known != watched.judgements:
            self._known = watched.judgements
            self._changed(None if watched.key is None else watched.key.narrowed(self._narrowing))


class _Slice:
    """How many may be told in one step."""

    __slots__ = ("_least", "_until")

    def __init__(self) -> None:
        self._least = LEAST_TOLD
        self._until = perf_counter() + SLICE_SECONDS

    def count(self) -> None:
        """Count one who was told."""
        self._least -= 1

    @property
    def over(self) -> bool:
        """Whether others are to have their turn."""
        return self._least <= 0 and perf_counter() >= self._until


class WatchedKeys:
    """All keys that have live connections. ``configured`` says what the configuration has under a SHA-256."""

    def __init__(self, configured: Callable[[str], Key | None], lookup: Lookup | None, schedule: Schedule) -> None:
        self._configured = configured
        self._lookup = lookup
        self._schedule = schedule
        self._reloads = 0
        self._watched: dict[str, _WatchedKey] = {}
        self._accounts: dict[str, _Account] = {}
        self._unsettled: dict[_Account, None] = {}
        """Those of which somebody may not know yet what was judged last."""
        self._to_ask: OrderedDict[_WatchedKey, None] = OrderedDict()
        self._askers = 0
        self._judged = trio.Event()
        self._nursery: trio.Nursery | None = None

    def __len__(self) -> int:
        return len(self._watched)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Ask again for the keys that are watched, and tell their connections what they reach, for ever."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            while True:
                await self._judged.wait()
                self._judged = trio.Event()
                while self._unsettled:
                    await trio.lowlevel.checkpoint()
                    self._tell_some()

    @contextmanager
    def watch(self, key: Key, remote: str | None, changed: Changed) -> Iterator[Watch]:
        """Call ``changed`` whenever the key was judged again, inside the block.

        ``key`` was judged in this very step; ``remote`` is the client's address, if it is known.
        """
        watched = self._watched.get(key.sha256) or self._begin(key.sha256, remote)
        self.judge_again(watched)
        watch = Watch(self, watched, key, changed)
        account_id = str(key.account_id)
        account = self._accounts.setdefault(account_id, _Account(self._reloads))
        account.watches[watch] = None
        watched.accounts.add(account)
        watched.watches += 1
        try:
            yield watch
        finally:
            del account.watches[watch]
            account.untold.pop(watch, None)
            if not account.watches:
                del self._accounts[account_id]
                self._unsettled.pop(account, None)
            watched.watches -= 1
            if not watched.watches:
                self._enter(watched, _GONE)
                del self._watched[watched.digest]

    def _begin(self, digest: str, remote: str | None) -> _WatchedKey:
        key = self._configured(digest)
        watched = self._watched[digest] = _WatchedKey(digest, remote, key, self._reloads)
        if key is None and self._lookup is not None:
            kept = self._lookup.kept(digest)
            if kept is None:
                self._start_asking(watched, doubted=False)
            else:
                self._believe(watched, kept)
        return watched

    # --- judging

    def reloaded(self) -> None:
        """Judge all keys again: the configuration is another. Some connections are told at once, the others soon."""
        self._reloads += 1
        self._unsettled = dict.fromkeys(self._accounts.values())
        self._tell_all()

    def judge_again(self, watched: _WatchedKey) -> None:
        """Judge a key after a reload, if that was not done yet."""
        if watched.reloads == self._reloads:
            return
        watched.reloads = self._reloads
        # Also what is as it was is said again: other rates may go with it.
        watched.judgements += 1
        key = self._configured(watched.digest)
        if key is not None or self._lookup is None:
            watched.key = key
            self._enter(watched, _GONE if key is None else _CONFIGURED)
        elif watched.state is _CONFIGURED:
            kept = self._lookup.kept(watched.digest)
            if kept is None:
                self._start_asking(watched, doubted=True)
            else:
                self._believe(watched, kept)

    def key(self, digest: str) -> Key | None:
        """Return what a key that has live connections reaches now; None: it has none, or is gone."""
        watched = self._watched.get(digest)
        if watched is None:
            return None
        self.judge_again(watched)
        return watched.key

    def learned(self, digest: str, kept: Kept) -> None:
        """Hear what was said of a key to somebody who wants to come in with it."""
        watched = self._watched.get(digest)
        if watched is not None:
            self.judge_again(watched)
            if watched.state is not _CONFIGURED and watched.key != kept.key:
                self._hear(watched, kept)

    def _hear(self, watched: _WatchedKey, kept: Kept) -> None:
        """Take what was said outside for what a key reaches; tell its connections if that is something else."""
        before = watched.key
        self._believe(watched, kept)
        if watched.key != before:
            watched.judgements += 1
            for account in watched.accounts:
                if account.watches:
                    account.untold = dict(account.watches)
                    self._unsettled[account] = None
            self._tell_all()

    def _believe(self, watched: _WatchedKey, kept: Kept) -> None:
        watched.key = kept.key
        if kept.key is None:
            self._enter(watched, _GONE)
        else:
            self._rest(watched, kept.until)

    def _enter(self, watched: _WatchedKey, state: _State) -> None:
        """Leave a state, and what was begun in it, for another."""
        if isinstance(watched.state, _Resting):
            watched.state.stop()
        elif isinstance(watched.state, _Asking):
            self._to_ask.pop(watched, None)
        watched.state = state

    # --- telling

    def settle(self, account_id: str) -> bool:
        """Tell connections of an account what their keys reach, as many as one step bears; return whether all know.

        To be done before anything is written to all of them.
        """
        account = self._accounts.get(account_id) if self._unsettled else None
        if account is None or account not in self._unsettled:
            return True
        settled = self._tell(account, _Slice())
        if settled:
            self._unsettled.pop(account, None)
        return settled

    def _tell_all(self) -> None:
        """Tell everybody who may not know: some in this step, the others in steps of their own."""
        self._tell_some()
        if self._unsettled:
            self._judged.set()

    def _tell_some(self) -> None:
        bound = _Slice()
        while self._unsettled and not bound.over:
            account, _ = self._unsettled.popitem()
            if not self._tell(account, bound):
                self._unsettled[account] = None

    def _tell(self, account: _Account, bound: _Slice) -> bool:
        """Tell those of an account who may not know, until the slice is over. Returns whether all know."""
        if account.reloads != self._reloads:
            account.reloads = self._reloads
            account.untold = dict(account.watches)
        while account.untold and not bound.over:
            watch, _ = account.untold.popitem()
            watch.settle()
            bound.count()
        return not account.untold

    # --- asking again

    def _rest(self, watched: _WatchedKey, until: float) -> None:
        """Let what was said hold until then (by trio's clock), then ask."""

        def end(now: float) -> None:
            assert self._lookup is not None
            self.judge_again(watched)
            if watched.state is resting:
                kept = self._lookup.kept(watched.digest)
                if kept is not None and kept.until > now:
                    self._hear(watched, kept)
                else:
                    self._start_asking(watched, doubted=False)

        resting = _Resting(self._schedule.add(max(until, trio.current_time() + SHORTEST_SECONDS), end))
        self._enter(watched, resting)

    def _start_asking(self, watched: _WatchedKey, *, doubted: bool) -> None:
        self._enter(watched, _Asking(doubted))
        self._to_ask[watched] = None
        if self._askers < MAX_ASKING_AGAIN:
            self._askers += 1
            assert self._nursery is not None
            self._nursery.start_soon(self._ask)

    async def _ask(self) -> None:
        """Ask for one key after the other, until none waits."""
        assert self._lookup is not None
        while self._to_ask:
            watched, _ = self._to_ask.popitem(last=False)
            asking = watched.state
            kept = await self._lookup.ask(watched.digest, watched.remote)
            # Else its last connection has left, or the configuration has it by now.
            if isinstance(asking, _Asking) and watched.state is asking:
                self._answered(watched, asking, kept)
        self._askers -= 1

    def _answered(self, watched: _WatchedKey, asking: _Asking, kept: Kept | None) -> None:
        """Take an answer. None leaves the connections, unless nobody outside ever knew the key."""
        now = trio.current_time()
        if kept is not None or asking.doubted:
            self._hear(watched, kept or Kept(None, now))
        else:
            self._rest(watched, now + RETRY_SECONDS)
