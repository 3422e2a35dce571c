"""Webhooks: which one is believed."""

import base64
import hashlib
import hmac
import json
import time

from ..brokers import INBOX
from ..expecting import expect
from ..stage import Stage, scene

SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()
OTHER_SECRET = "whsec_" + base64.b64encode(b"o" * 32).decode()
EVENT = {
    "type": "message.received",
    "event_id": "evt_1",
    "inbox_id": INBOX,
    "created_at": "2026-11-23T10:00:00.123Z",
    "cursor": "c1",
    "payload": {"message": {"message_id": "msg_1", "subject": "Grüße"}},
}
BODY = json.dumps(EVENT, ensure_ascii=False)


def signed(*signing: str, age_seconds: int = 0, body: str = BODY) -> dict[str, str]:
    """Return the headers of a webhook that is signed with these secrets (Standard Webhooks)."""
    said = str(int(time.time()) - age_seconds)
    signatures = []
    for secret in signing:
        key = base64.b64decode(secret.removeprefix("whsec_"))
        digest = hmac.new(key, f"evt_1.{said}.{body}".encode(), hashlib.sha256).digest()
        signatures.append(f"v1,{base64.b64encode(digest).decode()}")
    return {"webhook-id": "evt_1", "webhook-timestamp": said, "webhook-signature": " ".join(signatures)}


@scene()
async def webhook(stage: Stage) -> None:
    """A good signature, an old one, a wrong one, one of two secrets."""
    driver = await stage.driver()
    good = {"event_id": "evt_1", "type": "message.received", "inbox_id": INBOX}
    cases = {
        "good": (signed(SECRET), BODY, good),
        "in another case": ({name.title(): value for name, value in signed(SECRET).items()}, BODY, good),
        "one of two": (signed(OTHER_SECRET, SECRET), BODY, good),
        "280 s old": (signed(SECRET, age_seconds=280), BODY, good),
        "old": (signed(SECRET, age_seconds=400), BODY, None),
        "from the future": (signed(SECRET, age_seconds=-400), BODY, None),
        "another secret": (signed(OTHER_SECRET), BODY, None),
        "another body": (signed(SECRET), BODY.replace("evt_1", "evt_2"), None),
        "no signature": ({**signed(), "webhook-signature": ""}, BODY, None),
        "no headers": ({}, BODY, None),
        "no time": ({**signed(SECRET), "webhook-timestamp": "today"}, BODY, None),
    }
    for name, (headers, body, expected) in cases.items():
        await driver.tell("verify", id=name, headers=headers, body=body, secret=SECRET)
        answer = await driver.until("answer", id=name)
        if expected is None:
            expect(name, answer.get("error"), {"code": "bad_signature"})
        else:
            expect(name, answer.get("result"), expected)
