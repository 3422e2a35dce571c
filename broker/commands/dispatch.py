"""Commands: who does them, how many at once, and that what is sent twice is done once (PROTOCOL section 4).

Handlers run in the broker's own nursery, each in a cancel scope with a deadline, and answer by a plain call: so
none delays an event, a ping or another command. What belongs to an account (what is remembered, what is under
way, its rates) stands in an `AccountCommands`; what belongs to one connection in a `Lane`.
"""

import inspect
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any, Final, Literal

import msgspec
import trio
from msgspec import Struct

from ..access.keys import Key
from ..access.rates import Rates, TokenBucket, require_of_all, take_from_all
from ..accounts import Accounts
from ..config import Config, TierRatesConfig
from ..errors import BUSY_RETRY_MS, HTTP_STATUS, CommandError, RequestError, first_of, part_from_frames
from ..fairness import FairLimiter
from ..log.engines.answers import AnswerKey
from ..protocol.decoding import decode_params, is_long, prove_command
from ..protocol.documents import at_once
from ..protocol.faithful import encode_faithfully, require_json
from ..protocol.messages import Command, Proof
from ..tracing import Tracing
from ..turns import in_turns
from .context import CommandContext, context_of, span_of
from .keeping import ANSWER_SECONDS, KeptAnswers
from .remembered import ONCE_SECONDS, Outcome, Remembered, RememberedStatistics, Run
from .requests import CommandRequest
from .sharing import SharedAnswers

logger = logging.getLogger(__name__)

BUILT_IN_ACTIONS: Final = frozenset(
    {"subscribe", "unsubscribe", "publish", "ping", "ack", "hold", "lease", "nack", "wait_for"}
)
"""The broker's own; every other action has a handler."""
MAX_PROVING: Final = 4
"""Long commands that are proved side by side: each costs everybody else half a millisecond a turn of the loop."""
MAX_WAITING_REPEATS: Final = 64
"""Commands of one connection that may wait for an answer beside those it may have under way: all are repeats."""
REQUEST: Final = ""
ONCE: Final = "once"
"""Kinds of identity."""
ASK_AGAIN: Final = frozenset({"forbidden", "rate_limited", "unavailable", "timeout", "internal"})
"""Error codes that, beside all `invalid_…`, are not remembered: the same `request_id` asks the handler again."""


_NO_HANDLER: Final = (
    "There is no action {0!r}: neither a handler in the broker's program (`@broker.command({0!r})`)"
    " nor an API behind `[commands] url` does it"
)
_OBJECTS: Final = (
    msgspec.inspect.StructType,
    msgspec.inspect.TypedDictType,
    msgspec.inspect.DataclassType,
    msgspec.inspect.DictType,
    msgspec.inspect.UnionType,
    msgspec.inspect.AnyType,
)
"""What msgspec makes of a JSON object; attrs classes count as dataclasses."""


WhenClientLeaves = Literal["finish", "cancel"]
HandlerFunction = Callable[[Any, CommandContext], Awaitable[Any]]
Reply = Callable[[Outcome], None]


class ActionHandler(Struct, frozen=True):
    """Who does an action, and the type that its parameters are decoded as."""

    function: HandlerFunction
    params_type: Any
    seconds: float
    when_client_leaves: WhenClientLeaves


class _Doing(Struct):
    """A handler at work."""

    scope: trio.CancelScope
    when_client_leaves: WhenClientLeaves


class AccountCommands:
    """What one account has under way and remembered."""

    def __init__(self, remembered: Remembered, once: Remembered) -> None:
        self.remembered = remembered
        self.once = once
        self.rates = Rates()
        self.configured: TierRatesConfig | None = None
        """What the rates were made of."""
        self.under_way = 0
        self.lanes = 0

    def forget(self, now: float, most: int) -> int:
        """Forget outcomes that are too old, at most so many. Returns how many these were."""
        forgotten = self.remembered.forget(now, most)
        return forgotten + self.once.forget(now, most - forgotten)

    def idle(self, now: float) -> bool:
        """Whether nothing here must be kept: who owes its rate is remembered, so that leaving gains nothing."""
        if self.under_way or self.lanes or not (self.remembered.idle and self.once.idle):
            return False
        return all(bucket.is_full(now) for bucket in (*self.rates.commands, *self.rates.events))


class Lane:
    """One connection's commands. ``leave`` when it ends."""

    def __init__(self, account: AccountCommands, rates: Rates | None) -> None:
        self.account = account
        self.rates = rates
        self.waiting: dict[Reply, Run] = {}

    def buckets(self, kind: Literal["commands", "events"]) -> list[TokenBucket]:
        """Return the buckets that a command or event of this connection is taken from."""
        own: list[TokenBucket] = getattr(self.rates, kind) if self.rates else []
        shared: list[TokenBucket] = getattr(self.account.rates, kind)
        return [*own, *shared]


class _Waiter:
    """Gives an outcome to who waits for it in a lane, where he waits no more.

    No function, which would hold itself to leave, and with it all that it holds for the garbage collector.
    """

    __slots__ = ("_reply", "_waiting")

    def __init__(self, waiting: dict[Reply, Run], reply: Reply) -> None:
        self._waiting = waiting
        self._reply = reply

    def __call__(self, outcome: Outcome) -> None:
        self._waiting.pop(self, None)
        self._reply(outcome)


class CommandsStatistics(Struct, frozen=True):
    """What the broker has of commands."""

    under_way: int
    """Handlers at work."""
    accounts: int
    """Accounts of which something is kept: a connection, a command, a rate."""
    answered: Mapping[tuple[str, ...], int]
    """Commands answered since the start, by action and outcome: "ok", or an error code.

    The broker's own actions and those that have a handler; every other action, and every code of a handler's own, is
    "other".
    """


class Commands:
    """All handlers, and all that is under way. ``kept``: where a restart finds what is remembered, if there is that."""

    def __init__(self, config: Config, kept: KeptAnswers | None = None, tracing: Tracing | None = None) -> None:
        self._config = config
        self._kept = kept
        self._tracing = tracing
        self._handlers: dict[str, ActionHandler] = {}
        self._accounts = Accounts(self._make_account)
        self._doing: dict[Run, _Doing] = {}
        self._proving = FairLimiter(MAX_PROVING)
        self._nursery: trio.Nursery | None = None
        self._ended = trio.lowlevel.ParkingLot()
        self._answered = Counter[tuple[str, ...]]()
        self.fallback: ActionHandler | None = None
        """Who does the actions that have no handler of their own."""
        self.shared: SharedAnswers | None = None
        """Where other nodes find what is under way and remembered, if there are others."""
        self.is_current: Callable[[str, str], bool] = _never
        """Whether a lease of an account is current, by its id."""

    def register(self, action: str, function: HandlerFunction, *, seconds: float, leave: WhenClientLeaves) -> None:
        """Let ``function`` do an action. Its first parameter's annotation is what parameters must be.

        Raises `ValueError` if the action has a handler, `TypeError` if the function cannot be one.
        """
        if action in self._handlers:
            raise ValueError(f"{action!r} has a handler already")
        self._handlers[action] = ActionHandler(function, _params_type(action, function), seconds, leave)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the handlers, for ever, after what another run has kept is remembered."""
        if self._kept is not None:
            await self._kept.restore(self._remember)
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await trio.sleep_forever()

    async def settled(self) -> None:
        """Wait until no handler is at work: also those whose client has left, whose answers are kept when they end."""
        while self._doing:
            await self._ended.park()

    # --- accounts and lanes

    def _make_account(self, account_id: str) -> AccountCommands:
        kept = self._kept
        seconds = self._config.replay.seconds if kept is None else ANSWER_SECONDS
        forgotten = None if kept is None else kept.forget
        return AccountCommands(
            Remembered(seconds, owner=(account_id, REQUEST), forgotten=forgotten),
            Remembered(ONCE_SECONDS, owner=(account_id, ONCE), forgotten=forgotten),
        )

    def _remember(self, key: AnswerKey, digest: bytes, outcome: Outcome, ended_at: float) -> None:
        account = self._accounts.open(key.account_id)
        remembered = account.once if key.kind == ONCE else account.remembered
        remembered.restore(key.identity, digest, outcome, ended_at)

    def account(self, key: Key) -> AccountCommands:
        """Return what a key's account has under way; make it if there is nothing. Its rates are those of the key."""
        account = self._accounts.open(str(key.account_id))
        rates = self._config.rates.of(key.tier)
        if rates is not account.configured and not key.is_library:
            account.configured = rates
            account.rates.change(rates.commands_per_account, rates.events_per_account, trio.current_time())
        return account

    def require(self, key: Key) -> None:
        """Raise `RequestError` if a key may give a handler no command at all now. To be asked before it is read."""
        key.require("command")
        require_of_all(self.account(key).rates.commands, 1, trio.current_time(), "commands")

    def lane(self, key: Key, *, shared_rates_only: bool = False) -> Lane:
        """Return a connection's own lane; `leave` it in the end. A single request has no rates of its own."""
        account = self.account(key)
        account.lanes += 1
        lane = Lane(account, None if shared_rates_only else Rates())
        self.change_key(lane, key)
        return lane

    def change_key(self, lane: Lane, key: Key) -> None:
        """Let the rates of a lane and of its account be those of a key."""
        self.account(key)
        if lane.rates is not None:
            rates = self._config.rates.of(key.tier)
            lane.rates.change(rates.commands_per_connection, rates.events_per_connection, trio.current_time())

    def reload(self, config: Config) -> None:
        """Take the rates of another configuration, for whoever comes or changes from now on."""
        self._config = config

    def leave(self, lane: Lane) -> None:
        """End a lane: nobody there hears an answer any more; what is under way ends as its handler declares."""
        lane.account.lanes -= 1
        for reply, run in lane.waiting.items():
            if reply in run.replies:
                run.replies.remove(reply)
            doing = self._doing.get(run)
            if doing is not None and not run.replies and doing.when_client_leaves == "cancel":
                doing.scope.cancel()
        lane.waiting.clear()

    # --- doing

    async def prove(self, key: Key, command: Command) -> Command:
        """Return a command with its proof, found in turns with others if it is long.

        Of one that the key may not give, or that nobody does, the parameters are not looked at: the proof says so. The
        key is to be judged again afterwards, in the step in which the command is begun.
        """
        try:
            key.require("publish" if command.action == "publish" else "command")
            if command.action not in BUILT_IN_ACTIONS:
                self._handler_of(command.action)
        except RequestError as fault:
            return msgspec.structs.replace(command, proof=Proof(b"", part_from_frames(fault)))
        if not is_long(command):
            return at_once(prove_command(command))
        async with self._proving.place(key.account_id):
            return await in_turns(prove_command(command))

    def begin(self, lane: Lane, request: CommandRequest, reply: Reply) -> Run | None:
        """Begin a command: a new `Run` to be done and finished, or None if it was sent before.

        Then ``reply`` is called with the first one's outcome, now or when it has one. Raises `RequestError`.
        """
        remembered = lane.account.remembered if request.once is None else lane.account.once
        run, new = remembered.begin(request.identity, request.digest, trio.current_time())
        if not new and request.once is not None:
            reply = partial(_reply_again, reply)
        if run.outcome is not None:
            reply(run.outcome)
            return None
        if not new and len(lane.waiting) >= self._config.commands.max_per_connection + MAX_WAITING_REPEATS:
            raise _too_many()

        waiter = _Waiter(lane.waiting, reply)
        lane.waiting[waiter] = run
        run.replies.append(waiter)
        return run if new else None

    def finish(self, run: Run, outcome: Outcome) -> None:
        """Give a run of `begin` its outcome."""
        run.remembered.finish(run, outcome, trio.current_time())

    def submit(self, lane: Lane, request: CommandRequest, reply: Reply) -> None:
        """Do a command, or give the answer of the first one if it was sent before; ``reply`` gets the outcome."""
        try:
            run = self.begin(lane, request, reply)
        except RequestError as error:
            reply(refused(error))
            return
        if run is None:
            return
        try:
            handler, params = self._admit(lane, request)
        except RequestError as error:
            self.finish(run, refused(error))
            return
        except Exception:
            self.finish(run, _failed(request.command.action))
            return
        scope = trio.CancelScope()
        self._doing[run] = _Doing(scope, handler.when_client_leaves)
        lane.account.under_way += 1
        assert self._nursery is not None
        self._nursery.start_soon(self._do, lane, run, handler, params, request, scope)

    def _handler_of(self, action: str) -> ActionHandler:
        """Return who does an action. Raises `RequestError` (`unknown_action`) if nobody does."""
        handler = self._handlers.get(action, self.fallback)
        if handler is None:
            raise RequestError("unknown_action", _NO_HANDLER.format(action))
        return handler

    def _admit(self, lane: Lane, request: CommandRequest) -> tuple[ActionHandler, Any]:
        """Return who does a command, and its decoded parameters. Raises `RequestError`."""
        command, limits = request.command, self._config.commands
        if request.lease_id is not None and not self.is_current(str(request.key.account_id), request.lease_id):
            raise RequestError("lease_lost", "This lease is over: the event is another worker's - at `$.lease_id`")
        handler = self._handler_of(command.action)
        under_way = sum(run in self._doing for run in lane.waiting.values())
        if under_way >= limits.max_per_connection or lane.account.under_way >= limits.max_per_account:
            raise _too_many()
        params = decode_params(command, handler.params_type)
        if not request.key.is_library:
            take_from_all(lane.buckets("commands"), 1, trio.current_time(), "commands")
        return handler, params

    async def _do(
        self,
        lane: Lane,
        run: Run,
        handler: ActionHandler,
        params: Any,
        request: CommandRequest,
        scope: trio.CancelScope,
    ) -> None:
        """Run one handler to its outcome."""
        outcome = refused(RequestError("unavailable", "The client left"))
        deadline = trio.current_time() + handler.seconds
        context = context_of(request, run.digest, deadline)
        span = None if self._tracing is None else span_of(self._tracing, request)
        if span is not None:
            context = msgspec.structs.replace(context, traceparent=span.traceparent)
        try:
            with scope, nullcontext() if span is None else span.current():
                with trio.move_on_at(deadline) as in_time:
                    outcome = await self._outcome_of(run, handler, params, context)
                if in_time.cancelled_caught:
                    outcome = refused(RequestError("timeout", f"It took longer than {handler.seconds} s"))
            if self._kept is not None:
                await self._kept.keep(run, outcome)
            if self.shared is not None:
                await self.shared.finish(run, outcome)
        finally:
            del self._doing[run]
            lane.account.under_way -= 1
            self.finish(run, outcome)
            self._ended.unpark_all()
            if span is not None:
                span.end(None if outcome.error is None else outcome.error.code)

    async def _outcome_of(self, run: Run, handler: ActionHandler, params: Any, context: CommandContext) -> Outcome:
        """Return what a command comes to: here, or, where nodes share what they do, at the one that began it first."""
        if self.shared is not None:
            try:
                elsewhere = await self.shared.begin(run)
            except RequestError as error:
                return refused(error)
            if elsewhere is not None:
                return elsewhere
        return await _outcome_of(handler, params, context)

    def forget(self, now: float, *, most: int) -> bool:
        """Forget outcomes that are too old, and accounts of which nothing is left: at most so many of both.

        Returns whether the round over all accounts is under way.
        """
        return self._accounts.forget(now, most=most)

    def count(self, action: str, error: RequestError | None) -> None:
        """Count a command that was answered, whoever did it, with a result or with this error."""
        known = action in BUILT_IN_ACTIONS or action in self._handlers
        outcome = "ok" if error is None else error.code if error.code in HTTP_STATUS else "other"
        self._answered[action if known else "other", outcome] += 1

    def remembered(self) -> list[RememberedStatistics]:
        """Return what is remembered, two items for each account: a step that is as long as there are accounts."""
        return [kept.statistics() for account in self._accounts for kept in (account.remembered, account.once)]

    def statistics(self) -> CommandsStatistics:
        """Return what is under way, and what was done."""
        return CommandsStatistics(len(self._doing), len(self._accounts), dict(self._answered))


def _never(account_id: str, lease_id: str) -> bool:
    """Know no lease."""
    return False


def _too_many() -> RequestError:
    return RequestError("rate_limited", "Too many commands are under way", retry_after_ms=BUSY_RETRY_MS)


def refused(error: RequestError) -> Outcome:
    """Return the outcome of a command that the broker itself refused.

    Without the frames that it was raised in: they hold the command, and who has this outcome.
    """
    return Outcome(b"", part_from_frames(error), lasting=False)


def _reply_again(reply: Reply, outcome: Outcome) -> None:
    """Tell an outcome to who gave a command that was given before; one that does not last is not that of another."""
    reply(msgspec.structs.replace(outcome, duplicate=outcome.lasting))


async def _outcome_of(handler: ActionHandler, params: Any, context: CommandContext) -> Outcome:
    """Call a handler; whatever it raises but a refusal is logged once and is ``internal``."""
    outcome = None
    try:
        result = await handler.function(params, context)
        text = encode_faithfully({} if result is None else result)
        require_json(text)
        outcome = Outcome(text)
    except* (CommandError, RequestError) as group:
        outcome = _refusal_of(first_of(group), context.action)
    except* Exception:
        outcome = _failed(context.action)
    return outcome


def _refusal_of(refusal: BaseException, action: str) -> Outcome:
    """Return the outcome of a command that its handler refused."""
    assert isinstance(refusal, (CommandError, RequestError))
    retry_after_ms = refusal.retry_after_ms if isinstance(refusal, RequestError) else None
    error = RequestError(refusal.code, refusal.message, retry_after_ms=retry_after_ms)
    try:
        text = encode_faithfully([error.code, error.message, retry_after_ms])
        msgspec.json.decode(text, type=tuple[str, str, int | float | None])
    except Exception:
        return _failed(action)
    lasting = error.code not in ASK_AGAIN and not error.code.startswith("invalid_")
    return Outcome(b"", error, lasting)


def _failed(action: str) -> Outcome:
    """Log what is being handled, and return the outcome of a command that failed by it."""
    logger.exception("the handler of %s failed", action)
    return refused(RequestError("internal", "The command failed"))


def _params_type(action: str, function: HandlerFunction) -> Any:
    """Return what a handler's parameters are decoded as; `dict` if it does not say. Raises `TypeError`."""
    who = f"the handler of {action!r}"
    if not callable(function) or not any(map(inspect.iscoroutinefunction, (function, type(function).__call__))):
        raise TypeError(f"{who} must be an async function")
    try:
        signature = inspect.signature(function, eval_str=True)
    except NameError as error:
        raise TypeError(f"{who} has an annotation that cannot be read: {error}") from None
    try:
        first = next(iter(signature.bind(None, None).arguments))
    except TypeError:
        raise TypeError(f"{who} must take two arguments, the parameters and the `CommandContext`") from None
    kind = signature.parameters[first].annotation
    if kind is inspect.Parameter.empty:
        return dict
    try:
        is_object = isinstance(msgspec.inspect.type_info(kind), _OBJECTS)
    except TypeError as error:
        raise TypeError(f"{who} asks for parameters that cannot be decoded: {error}") from None
    if not is_object:
        raise TypeError(f"{who} asks for parameters of the type {kind}, which is no form of a JSON object")
    return kind
