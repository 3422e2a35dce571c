"""Traffic of an account as it looks in life: mails to a few inboxes over five minutes, bounces, complaints, agents."""

import random
from datetime import UTC, datetime, timedelta

INBOXES = {"inbox_sales": 10, "inbox_support": 7, "inbox_recruiting": 4, "inbox_billing": 4, "inbox_press": 2}
INBOXES |= {"inbox_ops": 2, "inbox_legal": 1}
SENDERS = ["Ada Lindqvist", "Mei Chen", "Tomás Rivera", "Olu Adeyemi", "Jon Berg", "Priya Nair"]
SUBJECTS = [
    "Quote for 40 seats", "Re: Contract, second draft", "Out of office until Monday", "Is Tuesday fine?",
    "Invoice 4471 is due on Friday", "[URGENT] Login codes do not arrive", "New candidate for Platform Engineer",
    "Re: Interview request", "Your order has shipped", "Re: Quote for 40 seats",
]  # fmt: skip
BODY = "Hello,\n\ncan your agent help me with this? I have attached what I found so far.\n\nBest regards\n"


def _mail(chance, number, inbox):
    sender = chance.choice(SENDERS)
    address = f"{sender.lower().replace(' ', '.').replace('á', 'a')}@contoso.example"
    message = {
        "message_id": f"msg_{number:06d}",
        "inbox_id": inbox,
        "from": f"{sender} <{address}>",
        "to": [f"{inbox.removeprefix('inbox_')}@agents.example.com"],
        "subject": chance.choice(SUBJECTS),
        "body": BODY + sender,
        "labels": ["inbox", "unread"],
    }
    return "message.received", {"message": message}


def events_of_five_minutes(count=420, seed=8):
    """Return so many events, the oldest first, made by the seed alone but for the time that they end at."""
    chance, end = random.Random(seed), datetime.now(UTC)
    inboxes, weights = list(INBOXES), list(INBOXES.values())
    ages = sorted((290 * chance.betavariate(1, 1.15) + chance.expovariate(0.5) for _ in range(count)), reverse=True)
    for number, age in enumerate(ages):
        inbox, kind = chance.choices(inboxes, weights)[0], chance.random()
        about = {"message_id": f"msg_{number:06d}"}
        if kind < 0.05:
            named, payload = "message.bounced", {"recipient": "ines@litware.example", "reason": "550 5.1.1 no mailbox"}
        elif kind < 0.06:
            named, payload = "message.complaint", {"recipient": "grumpy@fabrikam.example", "feedback_type": "abuse"}
        elif kind < 0.07:
            named, payload, inbox = "account.upgraded", {"tier": "growth", "previous_tier": "developer"}, None
        elif kind < 0.15:
            named, payload = "agent.replied", about
        else:
            named, payload = _mail(chance, number, inbox)
        at = (end - timedelta(seconds=age)).isoformat(timespec="milliseconds")
        event = {"type": named, "event_id": f"evt_{number:06d}", "created_at": at, "payload": payload}
        yield event if inbox is None else event | {"inbox_id": inbox}
