"""A person is told of urgent mail at once: by the program that NOTIFY names, or by a line here.

    pip install ./clients/python        # from a checkout
    DAIMON_API_KEY=dm_live_… DAIMON_WS_URL=ws://127.0.0.1:8765 NOTIFY=notify-send python notifications.py

The program gets the title and the text as its two arguments; no shell sees what a stranger wrote. Where this was is
kept in a file, so that what came while it was off is told when it starts again.
"""

import os
import subprocess

import trio
from daimon_email import DaimonWebSocket, FileStore, Message

NOTIFY = os.environ.get("NOTIFY")
client = DaimonWebSocket(
    event_types=["message.received"], cursor_store=FileStore(os.environ.get("STORE", "notifications.cursor"))
)


async def notify(title: str, body: str) -> None:
    """Tell a person."""
    if NOTIFY:
        with trio.move_on_after(10):
            await trio.run_process([NOTIFY, title, body], stdout=subprocess.DEVNULL, check=False)
    print(f"{title} | {body}", flush=True)


@client.on("message.received")
async def look(message: Message) -> None:
    """Tell of it if it is urgent."""
    if "[URGENT]" in message.subject or "priority" in message.labels:
        await notify("Urgent mail", f"From {message.from_}: {message.subject}")


if __name__ == "__main__":
    trio.run(client.connect)
