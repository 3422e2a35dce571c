"""Many agents on one screen: what comes into each inbox of an account, and what bounces, over one connection.

    pip install ./clients/python        # from a checkout
    DAIMON_API_KEY=dm_live_… DAIMON_WS_URL=ws://127.0.0.1:8765 python terminal_dashboard.py [INBOX …]

On a terminal a table is drawn again with each event; elsewhere its lines are printed as they change.
"""

import asyncio
import sys
from collections import Counter
from typing import Any

from daimon_email import DaimonWebSocket, Event, Gap, Message

client = DaimonWebSocket()
received: Counter[str] = Counter()
bounced: Counter[str] = Counter()
last: dict[str, str] = {}
ON_TERMINAL = sys.stdout.isatty()


def shown(text: str, width: int) -> str:
    """Return a stranger's text so that it cannot steer the terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)[:width]


def line(inbox_id: str) -> str:
    """Return an inbox's row."""
    counts = f"{received[inbox_id]:6d} received {bounced[inbox_id]:4d} bounced"
    return f"{shown(inbox_id, 32):32} {counts}  {last.get(inbox_id, '')}"


def draw(inbox_id: str) -> None:
    """Show what is new."""
    if ON_TERMINAL:
        print("\x1b[2J\x1b[H" + "\n".join(map(line, sorted(received | bounced))), flush=True)
    else:
        print(line(inbox_id), flush=True)


@client.on("message.received")
def update(message: Message) -> None:
    """Count a mail."""
    received[message.inbox_id] += 1
    last[message.inbox_id] = shown(message.subject, 40)
    draw(message.inbox_id)


@client.on("message.bounced")
def alert(bounce: Any, event: Event) -> None:
    """Count a mail that could not be delivered."""
    inbox_id = event.inbox_id or ""
    bounced[inbox_id] += 1
    last[inbox_id] = shown(f"! {bounce.recipient}: {bounce.reason}", 40)
    draw(inbox_id)


@client.on("gap")
def missed(gap: Gap) -> None:
    """Say that the counts are too low."""
    print(f"{gap.count if gap.count is not None else 'some'} events were missed", file=sys.stderr)


async def main(inbox_ids: list[str]) -> None:
    """Follow these inboxes, or all."""
    await client.subscribe(inbox_ids or "*")
    await client.connect()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
