"""A neighbour of another account: it publishes, hears its own events, and pings, as long as it is let."""

from fairness.steps import Steps

from benchmarks.hostile.client import UnexpectedError, opened
from benchmarks.hostile.target import NEIGHBOUR, Target


class Neighbour:
    """Counts its rounds: an event heard and a ping answered in each; and what the broker did while it waited."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self.rounds = 0
        self.longest_wait = 0.0
        """Seconds of the broker's work while the neighbour waited for one answer."""

    async def live(self, target: Target) -> None:
        """Go on until cancelled. Raises `UnexpectedError` if anything is missing."""
        async with opened(target, NEIGHBOUR, "?inbox_ids=in_neighbour") as websocket:
            while True:
                name = f"r{self.rounds}"
                event = {"type": "a.b", "inbox_id": "in_neighbour", "payload": {"name": name}}
                before = self._steps.work
                await websocket.say(action="publish", request_id=name, events=event)
                heard = [await websocket.text(), await websocket.text()]
                if not any(said and said.get("payload") == {"name": name} for said in heard):
                    raise UnexpectedError(f"an event is missing: {heard}")
                self._waited(before)
                before = self._steps.work
                await websocket.ask("p", action="ping")
                self._waited(before)
                self.rounds += 1

    def _waited(self, before: float) -> None:
        self.longest_wait = max(self.longest_wait, self._steps.work - before)
