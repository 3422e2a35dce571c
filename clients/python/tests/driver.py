"""The conformance driver of the Python client: lines of JSON in, lines of JSON out.

`python driver.py [--loop asyncio|trio] [--break NAME]`; ``--break`` makes the client a broken one, to see that a scene
notices.
"""

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any
from urllib.request import urlopen

sys.path.insert(0, str(Path(__file__).parents[1]))

import anyio
import daimon_email.client
from breaking import FAULTS
from daimon_email import (
    BadSignatureError,
    CommandError,
    ConnectionEndedError,
    DaimonError,
    DaimonWebSocket,
    FileStore,
    OverflowingError,
    TimedOutError,
)

OPTIONS = ("api_key", "client_id", "inbox_ids", "event_types", "reconnect_delay", "ack", "concurrency", "order")


def write(**item: Any) -> None:
    sys.stdout.write(json.dumps(item) + "\n")
    sys.stdout.flush()


def code_of(error: BaseException) -> Any:
    if isinstance(error, (CommandError, ConnectionEndedError)):
        return error.code
    names = {TimedOutError: "timed_out", OverflowingError: "overflowing", BadSignatureError: "bad_signature"}
    return names.get(type(error), type(error).__name__)


class Driver:
    def __init__(self, tasks) -> None:
        self.tasks = tasks
        self.client: DaimonWebSocket | None = None
        self.handling: dict[str | None, dict[str, Any]] = {None: {}}
        """What handlers do with an event; None: with all others."""

    def connect(self, url, token_url=None, cursor_file=None, grace_seconds=None, **options) -> None:
        if grace_seconds is not None:
            daimon_email.client.GRACE_SECONDS = grace_seconds

        async def token():
            return await anyio.to_thread.run_sync(fetched, token_url)

        self.client = client = DaimonWebSocket(
            url=url,
            token=None if token_url is None else token,
            cursor_store=None if cursor_file is None else FileStore(cursor_file),
            **{name: value for name, value in options.items() if name in OPTIONS},
        )
        client.on("connected", lambda: write(on="connected"))
        client.on("disconnected", lambda reason: write(on="disconnected", reason=reason))
        client.on("gap", lambda gap: write(on="gap", count=gap.count))
        client.on("error", lambda error: write(on="error", code=code_of(error)))
        client.on("*", self.handle)
        self.tasks.start_soon(self.run)

    async def run(self) -> None:
        try:
            await self.client.connect()
        except ConnectionEndedError as error:
            write(on="ended", code=error.code, status=error.status)
        else:
            write(on="ended")

    async def handle(self, payload, event) -> None:
        write(on="event", type=event.type, event_id=event.event_id, inbox_id=event.inbox_id)
        told = self.handling.get(event.event_id, self.handling[None])
        await anyio.sleep(told.get("milliseconds", 0) / 1_000)
        if "command" in told:
            await self.answered(event.event_id, self.client.command(**told["command"]))
        if told.get("fail"):
            raise ValueError("the handler was told to fail")
        write(on="handled", event_id=event.event_id)

    async def answered(self, answer_id, call) -> None:
        try:
            write(on="answer", id=answer_id, result=as_json(await call))
        except DaimonError as error:
            write(on="answer", id=answer_id, error={"code": code_of(error)})

    def asked(self, answer_id, call) -> None:
        self.tasks.start_soon(self.answered, answer_id, call)

    async def hear(self, do, id=None, **said) -> None:  # noqa: A002
        client = self.client
        match do:
            case "connect":
                self.connect(**said)
            case "handle" if "event_id" in said:
                self.handling[said.pop("event_id")] = said
            case "handle":
                self.handling = {None: said}
            case "command":
                self.asked(id, client.command(said["action"], said.get("params"), timeout=said.get("timeout", 30)))
            case "subscribe":
                self.asked(id, client.subscribe(said["inbox_ids"], since=said.get("since")))
            case "unsubscribe":
                self.asked(id, client.unsubscribe(said["inbox_ids"]))
            case "wait_for":
                wanted = {"event_type": said.pop("type")} | said
                self.asked(id, client.wait_for(**wanted))
            case "pause":
                client.pause()
            case "resume":
                client.resume()
            case "reconnect_now":
                client.reconnect_now()
            case "close" if client is None:
                write(on="ended")
            case "close":
                await client.close()
            case "verify":
                self.asked(id, verified(**said))


def fetched(url):
    with urlopen(url) as answer:
        return answer.read().decode()


async def verified(headers, body, secret):
    return daimon_email.verify(headers, body, secret)


def as_json(result: Any) -> Any:
    if isinstance(result, daimon_email.Found):
        links = [dict(link) for link in result.links]
        return as_json(result.event) | {"code": list(result.codes), "link": links}
    if isinstance(result, daimon_email.Event):
        return {"event_id": result.event_id, "type": result.type, "inbox_id": result.inbox_id}
    return None if result is None else json.loads(json.dumps(result, default=dict))


async def main() -> None:
    async with anyio.create_task_group() as tasks:
        driver = Driver(tasks)
        write(on="started")
        while line := await anyio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
            await driver.hear(**json.loads(line))
        tasks.cancel_scope.cancel()


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    parser = argparse.ArgumentParser()
    parser.add_argument("--loop", choices=["asyncio", "trio"], default="asyncio")
    parser.add_argument("--break", choices=FAULTS, dest="fault")
    options = parser.parse_args()
    if options.fault:
        FAULTS[options.fault].apply()
    anyio.run(main, backend=options.loop)
