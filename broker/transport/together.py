"""What operators and clients are told of all of a broker, by whichever of its workers they ask (`observe.siblings`).

A worker answers for itself first. Where it has siblings, each of them is asked for the same, and what comes is merged;
a broker that is one process asks nobody.
"""

from collections.abc import Generator, Mapping, Sequence
from typing import Any, Final

import msgspec
import trio
from msgspec import Raw
from msgspec.structs import replace

from ..broker import Broker
from ..errors import RequestError
from ..observe.choosing import (
    ChosenPage,
    OperatorConnection,
    OperatorPage,
    Wanted,
    check_wanted,
    one_of,
    page_of,
)
from ..observe.connections import ConnectionsPage
from ..observe.live import Snapshot
from ..observe.merging import (
    NumberedPage,
    merged_connections,
    merged_metrics,
    merged_pages,
    merged_snapshots,
)
from ..observe.metrics import Reading, exposition
from ..observe.siblings import ANSWER_SECONDS, About, Question, framed, read_to_end
from ..protocol.messages import encode
from ..turns import in_turns
from .listeners import listening_at

_MAX_QUESTION_BYTES: Final = 65_536
_ROWS: Final = 128
"""Of a deep page that are written, or read, in one step."""


# --- what is told ------------------------------------------------------------


async def metrics(broker: Broker) -> bytes:
    """Return what `GET /metrics` tells."""
    own = await _own_metrics(broker)
    if broker.siblings is None:
        return own
    return await in_turns(merged_metrics([own, *await _others(broker, Question("metrics"))]))


async def connections(broker: Broker, account_id: str | None, after: str) -> ConnectionsPage:
    """Return what `GET /v1/connections` tells. Raises `RequestError`."""
    own = await _own_connections(broker, account_id, after)
    question = Question("connections", account_id, {"after": after})
    return merged_connections([own, *_decoded(await _others(broker, question), NumberedPage)])


async def close(broker: Broker, account_id: str | None, connection_id: str) -> None:
    """Close a connection of an account (None: of any). Raises `RequestError` (`not_found`) if there is none."""
    try:
        broker.connections.close(connection_id, account_id)
    except RequestError:
        if not await _others(broker, Question("close", account_id, {"id": connection_id})):
            raise


async def chosen(broker: Broker, query: Mapping[str, str]) -> OperatorPage:
    """Return what `GET /v1/operator/connections` tells. Raises `RequestError`."""
    wanted = check_wanted(query)
    if broker.siblings is None:
        return (await page_of(await broker.censuses.look(), wanted, broker.connections)).told()
    own = await _own_chosen(broker, wanted)
    answers = await _others(broker, Question("chosen", None, query))
    others = [await in_turns(_page_of_lines(answer)) for answer in answers]
    return (await in_turns(merged_pages([own, *others], wanted))).told()


async def connection(broker: Broker, connection_id: str) -> OperatorConnection | Raw:
    """Return what `GET /v1/operator/connections/{id}` tells. Raises `RequestError` (`not_found`)."""
    try:
        return await _own_connection(broker, connection_id)
    except RequestError:
        for answer in await _others(broker, Question("connection", None, {"id": connection_id})):
            return Raw(answer)
        raise


async def tasks(broker: Broker, query: Mapping[str, str]) -> Any:
    """Return what `GET /debug/tasks` tells: where there are several workers, one tree under the other.

    Raises `RequestError`.
    """
    try:
        own = await broker.tasks.asked(query)
    except RequestError as error:
        if error.code == "not_found":
            for answer in await _others(broker, Question("tasks", None, query)):
                return Raw(answer)
        raise
    if broker.siblings is None or "under" in query:
        return own
    trees = _decoded([encode(own), *await _others(broker, Question("tasks", None, query))], dict[str, Any])
    roots = [tree["root"] for tree in trees]
    count, below = ("tasks", "under") if query.get("grouped") == "1" else ("told", "tasks")
    root = {**{name: type(value)() for name, value in roots[0].items()}, "name": "workers", below: roots}
    return {"root": root, count: sum(tree[count] for tree in trees)}


async def snapshot_of_all(broker: Broker, own: Snapshot) -> Snapshot:
    """Return the figures of all workers together."""
    return merged_snapshots([own, *_decoded(await _others(broker, Question("live")), Snapshot)])


# --- asking ------------------------------------------------------------------


async def _others(broker: Broker, question: Question) -> list[bytes]:
    return [] if broker.siblings is None else await broker.siblings.ask(question)


def _decoded(answers: list[bytes], kind: Any) -> list[Any]:
    return [msgspec.json.decode(answer, type=kind) for answer in answers]


# --- answering ---------------------------------------------------------------


async def _own_metrics(broker: Broker) -> bytes:
    survey = await broker.connections.survey()
    return exposition(Reading(broker.statistics(), survey, broker.config))


async def _own_connections(broker: Broker, account_id: str | None, after: str) -> NumberedPage:
    return NumberedPage(*await broker.connections.numbered(account_id, after))


async def _own_chosen(broker: Broker, wanted: Wanted) -> ChosenPage:
    """Return all that may be on the page: whose rows stand before it, is known when they are merged."""
    up_to_its_end = replace(wanted, offset=0, limit=wanted.offset + wanted.limit)
    return await page_of(await broker.censuses.look(), up_to_its_end, broker.connections)


def _lines_of(page: ChosenPage) -> Generator[None, None, Sequence[bytes]]:
    """Return a page as one worker tells it to another: its counts, then some rows a line."""
    lines = [encode((page.total, page.matching))]
    for start in range(0, len(page.rows), _ROWS):
        lines.append(encode(page.rows[start : start + _ROWS]))
        yield
    return lines


def _page_of_lines(text: bytes) -> Generator[None, None, ChosenPage]:
    counts, *lines = text.split(b"\n")
    total, matching = msgspec.json.decode(counts, type=tuple[int, int])
    rows = list[tuple[int, OperatorConnection]]()
    for line in lines:
        rows += msgspec.json.decode(line, type=list[tuple[int, OperatorConnection]])
        yield
    return ChosenPage(total, matching, rows)


async def _own_connection(broker: Broker, connection_id: str) -> OperatorConnection:
    broker.connections.find(connection_id)
    return one_of(await broker.censuses.look(), broker.connections, connection_id)


async def _own(broker: Broker, question: Question) -> bytes:
    """Return what this worker answers to another. Raises `RequestError` if that is nothing."""
    about: About = question.about
    if about == "metrics":
        return await _own_metrics(broker)
    if about == "connections":
        return encode(await _own_connections(broker, question.account_id, question.query.get("after", "")))
    if about == "close":
        broker.connections.close(question.query.get("id", ""), question.account_id)
        return b"{}"
    if about == "live":
        return encode(await broker.live.own())
    if about == "chosen":
        return b"\n".join(await in_turns(_lines_of(await _own_chosen(broker, check_wanted(question.query)))))
    if about == "connection":
        return encode(await _own_connection(broker, question.query.get("id", "")))
    return encode(await broker.tasks.asked(question.query))


async def answer_siblings(broker: Broker, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    """Answer the other workers, for as long as this one runs. Raises `OSError` if the socket file cannot be had."""
    assert broker.siblings is not None
    with listening_at(broker.siblings.path) as listening:

        async def answer(stream: trio.SocketStream) -> None:
            try:
                with trio.move_on_after(2 * ANSWER_SECONDS):
                    said = await read_to_end(stream, _MAX_QUESTION_BYTES)
                    await stream.send_all(framed(await _own(broker, msgspec.json.decode(said, type=Question))))
            except (OSError, trio.BrokenResourceError, RequestError, msgspec.DecodeError):
                pass  # who asked has gone, or there is no such thing here: it hears nothing
            finally:
                await trio.aclose_forcefully(stream)

        listener = trio.SocketListener(trio.socket.from_stdlib_socket(listening))
        async with trio.open_nursery() as nursery:
            await nursery.start(trio.serve_listeners, answer, [listener])
            task_status.started()
