"""What a broker owes beside its streams, as models: events to webhook endpoints, and work to the workers of queues.

Pure, but for the endpoint's own answers: what was published comes in, what was seen is judged.
"""

import json
from dataclasses import dataclass, field
from typing import Any

import trio
from proofs.witness import OWN, History, Published, accepts
from receivers import OK, Received, Receiver, answering

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
TAKES, REFUSES, CUTS = "takes", "refuses", "cuts"


@dataclass(frozen=True)
class Wanted:
    """Which events something is for. ``inboxes`` None: all. ``own``: the account's own, too."""

    inboxes: tuple[str, ...] | None = None
    types: tuple[str, ...] | None = None
    own: bool = True

    def wants(self, event: Published) -> bool:
        held = self.own if event.inbox == OWN else self.inboxes is None or event.inbox in self.inboxes
        return held and accepts(self.types, event.type)


# --- webhooks


class Endpoint:
    """An endpoint that takes, refuses or cuts, and believes nothing. ``in_line``: whether each inbox is in order."""

    def __init__(self, name: str, wanted: Wanted, in_line: bool) -> None:
        self.name, self.wanted, self.in_line = name, wanted, in_line
        self.does = TAKES
        self.life = 0
        """Of the broker, counted when it begins to end, and when another has begun: between, posts are of either."""
        self.taken: dict[str, int] = {}
        """Events that were taken, and in which life of the broker."""
        self._posts: list[tuple[Received, str, int]] = []

    def stand_at(self, receiver: Receiver) -> None:
        """Answer what a receiver receives."""
        self._receiver = receiver
        receiver.answer = self._answer

    @property
    def url(self) -> str:
        return self._receiver.url

    async def _answer(self, stream: trio.abc.Stream) -> None:
        does = self.does
        self._posts.append((self._receiver.requests[-1], does, self.life))
        if does == CUTS:
            await trio.aclose_forcefully(stream)
        else:
            await stream.send_all(OK if does == TAKES else answering(500))

    def owed(self, history: History) -> list[Published]:
        """What is for it, and was not taken yet."""
        taken = self.taken.keys() | {request.event_id for request, does, _ in self._posts if does == TAKES}
        return [event for event in history.events if self.wanted.wants(event) and event.event_id not in taken]

    def judge(self, account: str, history: History) -> None:
        """Hold all that came since the last time against what was published."""
        posts, self._posts = self._posts, []
        by_id = {event.event_id: event for event in history.events}
        for request, does, life in posts:
            event = by_id.get(request.event_id)
            assert event is not None, f"{self.name} got what nobody published: {request.event_id}"
            assert self.wanted.wants(event), f"{self.name} got what is not for it: {event}"
            body = json.loads(request.body)
            request.verify(SECRET)
            assert request.headers["webhook-account"] == account
            assert (body["event_id"], body.get("inbox_id", OWN), body["type"]) == (
                event.event_id,
                event.inbox,
                event.type,
            )
            assert history.position_of(body["cursor"]) == event.position
            before = self.taken.get(event.event_id)
            is_between = bool(life % 2)
            assert before is None or before < life or is_between, f"{self.name} had taken it: {event.event_id}"
            if self.in_line and before is None:
                first = next(e for e in history.events if self._is_next_of(e, event.inbox))
                assert event == first, f"{self.name} is to have {first} first, not {event}"
            if does == TAKES:
                self.taken[event.event_id] = life

    def _is_next_of(self, event: Published, inbox: str) -> bool:
        return event.inbox == inbox and self.wanted.wants(event) and event.event_id not in self.taken


# --- queues


@dataclass
class Job:
    """An event of a queue."""

    event: Published
    attempts: int = 0
    state: str = "waiting"
    lease_id: str | None = None
    holder: object = None
    """The connection that it was given to."""


@dataclass
class Queue:
    """A queue. ``in_line``: whether of each inbox one event at a time is given, in order."""

    name: str
    wanted: Wanted
    in_line: bool
    jobs: dict[str, Job] = field(default_factory=dict)
    over: list[str] = field(default_factory=list)
    """Leases that were once."""

    def published(self, event: Published) -> None:
        if self.wanted.wants(event) and not event.type.startswith("queue."):
            self.jobs[event.event_id] = Job(event)

    def in_state(self, state: str) -> list[Job]:
        return [job for job in self.jobs.values() if job.state == state]

    @property
    def due(self) -> list[Job]:
        """What may be given now."""
        if not self.in_line:
            return self.in_state("waiting")
        heads: dict[str, Job] = {}
        for job in self.jobs.values():
            if job.state in ("waiting", "leased"):
                heads.setdefault(job.event.inbox, job)
        return [job for job in heads.values() if job.state == "waiting"]

    def given(self, result: dict[str, Any], most: int, holder: object) -> list[Job]:
        """Take the answer to a `lease`; return what was given."""
        due = self.due
        assert len(result["leases"]) == min(most, len(due)), f"{len(due)} were due, {result}"
        given = []
        for lease in result["leases"]:
            event = lease["event"]
            job = self.jobs.get(event["event_id"])
            assert job is not None, f"{self.name} gave what is not its: {event['event_id']}"
            assert job in due, f"{self.name} gave what was not due: {job}"
            assert job not in given, f"given twice: {job}"
            assert lease["attempt"] == job.attempts + 1, f"{lease['attempt']} after {job.attempts}"
            assert (event.get("inbox_id", OWN), event["type"]) == (job.event.inbox, job.event.type)
            job.state, job.attempts = "leased", job.attempts + 1
            job.lease_id, job.holder = lease["lease_id"], holder
            given.append(job)
        assert result["waiting"] == len(self.in_state("waiting"))
        return given

    def ended(self, job: Job, state: str) -> None:
        """A lease is over: acknowledged, given back, or its time was."""
        assert job.lease_id is not None
        self.over.append(job.lease_id)
        job.state, job.lease_id, job.holder = state, None, None

    def left(self, holder: object) -> None:
        """A connection has closed for good: what it had is as if it had not been given."""
        for job in self.in_state("leased"):
            if job.holder == holder:
                self.ended(job, "waiting")
                job.attempts -= 1
