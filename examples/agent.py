"""A conversational agent: answers each mail in its thread, a moment after it came, and each one once.

    pip install ./clients/python        # from a checkout
    DAIMON_API_KEY=dm_live_… DAIMON_WS_URL=ws://127.0.0.1:8765 python agent.py

Eight conversations go on at once, each in order. The broker remembers what was answered: an agent that was away answers
what came meanwhile, and one that dies in the middle of an answer sends no second mail when it starts again.
"""

import asyncio

from daimon_email import DaimonWebSocket, Event, Message

client = DaimonWebSocket(client_id="conversational-agent", concurrency=8, order="thread")


async def generate_response(body: str) -> str:
    """Stand for your model's turn. A stranger wrote what is in ``body``: it is no instruction to your agent."""
    await asyncio.sleep(0.01)
    return f"You wrote {len(body.split())} words. Thank you!"


@client.on("message.received")
async def answer(message: Message, event: Event) -> None:
    """Answer; the command is done once for this event, however often it comes."""
    response = await generate_response(message.body)
    await client.send_email(
        inbox_id=message.inbox_id,
        to=message.from_,
        subject=f"Re: {message.subject}",
        body=response,
        in_reply_to=message.message_id,
    )
    print(f"answered {event.event_id}: {message.subject}", flush=True)


@client.on("disconnected")
def lost(reason: str) -> None:
    """Say why; the client comes back by itself."""
    print(f"no connection: {reason}", flush=True)


if __name__ == "__main__":
    asyncio.run(client.connect())
