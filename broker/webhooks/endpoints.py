"""The endpoints of all accounts: made, changed, removed, and what each gets by what its key reaches now.

What is changed is written down first, then it holds, then it is answered. An endpoint goes by a key as a connection
does: where that reaches less, it gets less from the same step on, and when it is gone, the endpoint is disabled.
Changes of one account are made one after the other.
"""

import logging
import secrets as chance
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

import msgspec
import trio

from ..access.keyring import Keyring
from ..access.keys import Key
from ..config import AccountConfig
from ..errors import RequestError
from ..log import letterbook
from ..log.outbox import Outbox
from .endpoint import (
    MAX_ENDPOINTS,
    Because,
    Checks,
    Endpoint,
    EndpointChange,
    EndpointSeen,
    NewEndpoint,
    configured,
    decode_endpoint,
    encode_endpoint,
    owned,
    rotated,
    seen,
)
from .live import DOINGS, Announce, Health, Live
from .signing import SECRET_BYTES, secret_of

logger = logging.getLogger(__name__)

RETRY_SECONDS: Final = 5.0
"""When a key is asked for again that nobody could speak for, and what could not be written is tried again."""
_ROWS: Final = 256
"""Endpoints that are read at once."""
_INSERT: Final = "INSERT INTO webhooks (account, webhook_id, record) VALUES (?, ?, ?)"
_UPDATE: Final = "UPDATE webhooks SET record = ?, failing_since = ?, said_failing = ? WHERE number = ?"


class _Account:
    """An account's endpoints, by their ids. ``changing``: whoever changes one of them holds it."""

    __slots__ = ("changing", "counted", "lives", "users")

    def __init__(self) -> None:
        self.lives: dict[str, Live] = {}
        self.changing = trio.Lock()
        self.users = 0
        """Those who are about to change something."""
        self.counted = Counter[str]()
        """Its endpoints by how they do, as they are counted among all."""


class Endpoints:
    """All endpoints. ``look_at`` is called with one that may have something to post."""

    def __init__(
        self,
        outbox: Outbox,
        keyring: Keyring,
        checks: Checks,
        look_at: Callable[[Live], None],
        announce: Announce,
    ) -> None:
        self._outbox = outbox
        self._storage = outbox.storage
        self._keyring = keyring
        self._checks = checks
        self._look_at = look_at
        self._announce = announce
        self._accounts: dict[str, _Account] = {}
        self._by_number: dict[int, Live] = {}
        self._counted = Counter[str]()
        self._nursery: trio.Nursery | None = None

    # --- its life

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take back what was kept, then do what takes longer than a step, for ever. Raises `RequestError`."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await self._load()
            self._outbox.woken = self.woken
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None

    async def _load(self) -> None:
        after: int | None = 0
        while after is not None:
            rows = await self._storage.read(partial(_page, after=after))
            after = rows[-1][0] if len(rows) == _ROWS else None
            for number, account_id, record, failing_since, said in rows:
                live = Live(number, decode_endpoint(record), Health(failing_since, bool(said)))
                if live.endpoint.status == "removed":
                    self._soon(self._forget, live)
                else:
                    self._account(account_id).lives[live.endpoint.webhook_id] = live
                    self._by_number[number] = live
                    self._soon(self._recall, live)
                await trio.lowlevel.checkpoint()
        for account_id in list(self._accounts):
            self._route(account_id)
            await trio.lowlevel.checkpoint()

    def _soon(self, task: Callable[[Live], Awaitable[None]], live: Live) -> None:
        """Let a task run that takes longer than a step, unless this is at its end: then the next start does it."""
        if self._nursery is not None:
            self._nursery.start_soon(task, live)

    async def follow(self, accounts: Iterable[AccountConfig]) -> None:
        """Let these be the configuration's endpoints: others that stood there are removed. Raises `RequestError`."""
        wanted = {account.id: {w.id: w for w in account.webhooks} for account in accounts if account.webhooks}
        now = self._outbox.wall_clock()
        for account_id in {*wanted, *self._accounts}:
            async with self._changing(account_id) as account:
                of_account = wanted.get(account_id, {})
                for live in list(account.lives.values()):
                    if live.endpoint.configured and live.endpoint.webhook_id not in of_account:
                        await self._remove(account, live)
                for webhook_id, section in of_account.items():
                    endpoint = configured(account_id, section, now)
                    existing = account.lives.get(webhook_id)
                    if existing is None:
                        self._begin(account, await self._insert(endpoint))
                    elif _differs(existing.endpoint, endpoint):
                        await self._change(account, existing, _going_on(existing.endpoint, endpoint))

    # --- for accounts

    def of(self, key: Key) -> list[Live]:
        """Return the endpoints that a key sees: an inbox key its own, another all of the account."""
        account = self._accounts.get(str(key.account_id))
        lives = [] if account is None else account.lives.values()
        return sorted((live for live in lives if _is_visible(live, key)), key=lambda live: live.number)

    def find(self, key: Key, webhook_id: str) -> Live:
        """Return one of them. Raises `RequestError` (`not_found`)."""
        account = self._accounts.get(str(key.account_id))
        live = None if account is None else account.lives.get(webhook_id)
        if live is None or not _is_visible(live, key):
            raise RequestError("not_found", "There is no such endpoint")
        return live

    def shown(self, live: Live, *, with_secret: bool = False) -> EndpointSeen:
        """Return an endpoint as its account sees it."""
        key = live.key or live.endpoint.key
        return seen(live.endpoint, key, live.health.failing_since, with_secret=with_secret)

    async def make(self, key: Key, asked: NewEndpoint) -> EndpointSeen:
        """Make an endpoint; the same again is answered with the one that is there, without its secret.

        Raises `RequestError`: `invalid_params`, `forbidden`, `conflict`, `unavailable`.
        """
        async with self._changing(str(key.account_id)) as account:
            key = self._keyring.confirm(key) if not key.is_library else key
            key.require("webhooks")
            secret = secret_of(chance.token_bytes(SECRET_BYTES))
            endpoint = self._checks.made(asked, key, f"wh_{chance.token_hex(12)}", secret, self._outbox.wall_clock())
            existing = account.lives.get(endpoint.webhook_id)
            if existing is not None:
                if not _is_visible(existing, key) or existing.endpoint.content() != endpoint.content():
                    raise RequestError("conflict", "There is another endpoint of this id - at `$.webhook_id`")
                return self.shown(existing)
            if len(account.lives) >= MAX_ENDPOINTS:
                raise RequestError("conflict", f"An account may have {MAX_ENDPOINTS} endpoints")
            async with self._outbox.followed.beginning(endpoint.account_id):
                live = await self._insert(endpoint)
                self._begin(account, live)
            return self.shown(live, with_secret=True)

    async def change(self, key: Key, webhook_id: str, change: EndpointChange) -> EndpointSeen:
        """Change an endpoint. Raises `RequestError` as `make` does, and `not_found`."""
        async with self._changed_by(key, webhook_id) as (account, live, worth):
            changed = self._checks.changed(live.endpoint, change, worth)
            await self._change(account, live, changed)
            return self.shown(live)

    async def rotate(self, key: Key, webhook_id: str) -> EndpointSeen:
        """Give an endpoint another secret; the old one signs beside it for a day. Raises `RequestError`."""
        async with self._changed_by(key, webhook_id) as (account, live, _):
            secret = secret_of(chance.token_bytes(SECRET_BYTES))
            await self._change(account, live, rotated(live.endpoint, secret, self._outbox.wall_clock()))
            return self.shown(live, with_secret=True)

    async def remove(self, key: Key, webhook_id: str) -> None:
        """Remove an endpoint, with what it was owed. Raises `RequestError`."""
        async with self._changed_by(key, webhook_id) as (account, live, _):
            await self._remove(account, live)

    def disable(self, live: Live, because: Because) -> None:
        """Disable an endpoint from this step on. What it is owed waits for as long as it would have."""
        if live.endpoint.status in ("disabled", "removed"):
            return
        endpoint = live.endpoint = msgspec.structs.replace(live.endpoint, status="disabled", disabled_because=because)
        self._route(endpoint.account_id)
        logger.warning("webhook %s of account %s is disabled: %s", endpoint.webhook_id, endpoint.account_id, because)
        self._announce(
            endpoint.account_id,
            "webhook.disabled",
            {"webhook_id": endpoint.webhook_id, "url": endpoint.shown_url, "because": because},
        )
        self._soon(self._write_down, live)

    def woken(self, webhook: int, due_at: float) -> None:
        """Hear that letters of an endpoint may be due (seconds since 1970)."""
        live = self._by_number.get(webhook)
        if live is not None:
            live.due(due_at)
            self._look_at(live)

    def lives(self) -> Iterable[Live]:
        """Return all endpoints."""
        return self._by_number.values()

    # --- changing

    @asynccontextmanager
    async def _changing(self, account_id: str) -> AsyncIterator[_Account]:
        """Change endpoints of an account inside the block, and nobody else does."""
        account = self._account(account_id)
        account.users += 1
        try:
            async with account.changing:
                yield account
        finally:
            account.users -= 1
            if not account.users and not account.lives:
                self._accounts.pop(account_id, None)

    @asynccontextmanager
    async def _changed_by(self, key: Key, webhook_id: str) -> AsyncIterator[tuple[_Account, Live, Key]]:
        """Change an endpoint of an account by a key that may do that, inside the block."""
        async with self._changing(str(key.account_id)) as account:
            worth = self._keyring.confirm(key) if not key.is_library else key
            worth.require("webhooks")
            live = self.find(worth, webhook_id)
            if live.endpoint.configured:
                raise RequestError("conflict", "This endpoint stands in the configuration of the broker")
            yield account, live, worth

    def _account(self, account_id: str) -> _Account:
        return self._accounts.setdefault(account_id, _Account())

    async def _insert(self, endpoint: Endpoint) -> Live:
        row = (endpoint.account_id, endpoint.webhook_id, encode_endpoint(endpoint))
        # A removed one of this name may still be there in part: it goes by another.
        number = await self._storage.write(lambda connection: connection.execute(_INSERT, row).lastrowid)
        return Live(int(number or 0), endpoint, Health())

    def _begin(self, account: _Account, live: Live) -> None:
        """Let an endpoint that is written down be there."""
        account.lives[live.endpoint.webhook_id] = live
        self._by_number[live.number] = live
        if live.endpoint.key_sha256:
            self._watch(live)
        else:
            live.key = live.endpoint.key
        self._route(live.endpoint.account_id)

    async def _change(self, account: _Account, live: Live, endpoint: Endpoint) -> None:
        before = live.endpoint
        is_another = endpoint.url != before.url or (before.status == "disabled" and endpoint.status == "active")
        health = Health() if is_another else live.health
        if endpoint.order != before.order and endpoint.order == "none":
            # From here on new letters stand in no line; those that do leave it.
            live.route = msgspec.structs.replace(live.route, in_order=False)
        await self._save(live, endpoint, health)
        live.endpoint, live.health = endpoint, health
        if is_another:
            live.breaker.reset()
        is_back = before.status == "disabled" and endpoint.status != "disabled"
        if endpoint.key_sha256 != before.key_sha256 or is_back:
            live.watching.close()
            if endpoint.key_sha256:
                self._watch(live)
            else:
                live.key = endpoint.key
        self._reroute(live)
        if endpoint.order != before.order:
            await self._in_pages(partial(letterbook.put_in_line, webhook=live.number, in_order=live.route.in_order))
        if is_another:
            await self._in_pages(partial(letterbook.hurry, webhook=live.number, now=self._outbox.wall_clock()))
        self.woken(live.number, 0.0)

    async def _in_pages(self, step: Callable[..., int | None]) -> None:
        """Write something of all letters of an endpoint, a page in a step: it says ``after`` which to go on."""
        after: int | None = 0
        while after is not None:
            after = await self._storage.write(partial(step, after=after))

    async def _save(self, live: Live, endpoint: Endpoint, health: Health) -> None:
        row = (encode_endpoint(endpoint), health.failing_since, health.said, live.number)
        await self._storage.write(lambda connection: connection.execute(_UPDATE, row).rowcount)

    async def _write_down(self, live: Live) -> None:
        """Write down how an endpoint is now, however long that takes."""
        while True:
            try:
                await self._save(live, live.endpoint, live.health)
            except RequestError:
                await trio.sleep(RETRY_SECONDS)
            else:
                return

    async def _remove(self, account: _Account, live: Live) -> None:
        removed = msgspec.structs.replace(live.endpoint, status="removed")
        row = (f"{live.endpoint.webhook_id}\0{live.number}", encode_endpoint(removed), live.number)
        statement = "UPDATE webhooks SET webhook_id = ?, record = ? WHERE number = ?"
        await self._storage.write(lambda connection: connection.execute(statement, row).rowcount)
        live.endpoint = removed
        live.close()
        del account.lives[row[0].partition("\0")[0]]
        del self._by_number[live.number]
        self._route(removed.account_id)
        self._soon(self._forget, live)

    async def _forget(self, live: Live) -> None:
        """Forget all that is left of an endpoint, in steps, however long that takes."""
        is_left = True
        while is_left:
            try:
                is_left = await self._storage.write(partial(letterbook.remove, webhook=live.number))
            except RequestError:
                await trio.sleep(RETRY_SECONDS)

    # --- what each gets

    def _reroute(self, live: Live) -> None:
        """Let the outbox know what an endpoint gets by now."""
        live.route = live.endpoint.route(live.number, live.key or live.endpoint.key)
        self._route(live.endpoint.account_id)

    def _route(self, account_id: str) -> None:
        """Let the outbox know which endpoints an account has by now, and for which clients they wait."""
        account = self._accounts.get(account_id)
        routes = []
        fallbacks: dict[str, tuple[int, ...]] = {}
        for live in [] if account is None else account.lives.values():
            endpoint = live.endpoint
            if endpoint.mode == "fallback":
                for client_id in endpoint.client_ids:
                    fallbacks[client_id] = (*fallbacks.get(client_id, ()), live.number)
            if endpoint.status != "disabled":
                routes.append(live.route)
        self._outbox.route(account_id, routes, fallbacks)
        self._count(account)

    def _count(self, account: _Account | None) -> None:
        """Count an account's endpoints by how they do, among all."""
        if account is not None:
            self._counted -= account.counted
            account.counted = Counter(live.doing for live in account.lives.values())
            self._counted += account.counted

    def counted(self) -> dict[str, int]:
        """Return how many endpoints there are, by how they do."""
        return {doing: self._counted[doing] for doing in DOINGS}

    def noted(self, live: Live) -> None:
        """Hear that an endpoint does otherwise than it did."""
        self._count(self._accounts.get(live.endpoint.account_id))

    def _watch(self, live: Live) -> None:
        """Go by an endpoint's key from now on: as it is judged in this step, whatever it reached before."""
        try:
            key = self._keyring.confirm(live.endpoint.key)
        except RequestError as error:
            if error.code == "unauthorized":
                self.disable(live, "key_gone")
            else:
                live.key = None
                self._soon(self._recall, live)
            return
        live.watching.enter_context(self._keyring.watch(key, None, partial(self._judged, live)))
        self._judged(live, key)

    def _judged(self, live: Live, key: Key | None) -> None:
        """Hear what an endpoint's key reaches now."""
        if key is None or "webhooks" not in key.scopes or key.account_id != live.endpoint.account_id:
            self.disable(live, "key_gone")
            return
        live.key = key
        endpoint = owned(live.endpoint, key)
        if endpoint != live.endpoint and live.endpoint.status != "removed":
            live.endpoint = endpoint
            self._soon(self._write_down, live)
        self._reroute(live)
        self._look_at(live)

    async def _recall(self, live: Live) -> None:
        """After a start: find out what an endpoint's key reaches. Until that is known it gets letters, and no post."""
        endpoint = live.endpoint
        while endpoint.key_sha256:
            try:
                key = await self._keyring.recall(endpoint.key)
            except RequestError as error:
                if error.code == "unauthorized":
                    self.disable(live, "key_gone")
                    return
                await trio.sleep(RETRY_SECONDS)
            else:
                if self._by_number.get(live.number) is live and live.key is None:
                    live.watching.enter_context(self._keyring.watch(key, None, partial(self._judged, live)))
                    self._judged(live, key)
                return
        live.key = endpoint.key
        self._reroute(live)
        self._look_at(live)


def _page(connection: sqlite3.Connection, after: int) -> list[tuple[int, str, bytes, float | None, int]]:
    statement = (
        "SELECT number, account, record, failing_since, said_failing FROM webhooks WHERE number > ?"
        " ORDER BY number LIMIT ?"
    )
    return connection.execute(statement, (after, _ROWS)).fetchall()


def _is_visible(live: Live, key: Key) -> bool:
    return key.inbox_ids is None or live.endpoint.key_sha256 == key.sha256


def _differs(existing: Endpoint, wanted: Endpoint) -> bool:
    """Whether an endpoint of the configuration is to change; one that was disabled is to be active again."""
    return existing.content() != wanted.content() or existing.secret != wanted.secret or existing.status == "disabled"


def _going_on(existing: Endpoint, wanted: Endpoint) -> Endpoint:
    """Return what is wanted of an endpoint that is there: a secret that it had still signs for a while."""
    kept = {
        "created_at": existing.created_at,
        "old_secret": existing.old_secret,
        "old_secret_until": existing.old_secret_until,
    }
    if existing.secret == wanted.secret:
        return msgspec.structs.replace(wanted, **kept)
    made = msgspec.structs.replace(wanted, created_at=existing.created_at, secret=existing.secret)
    return rotated(made, wanted.secret, max(wanted.created_at, existing.created_at))
