"""Signatures, as receivers verify them."""

import base64
import hashlib
import hmac
import json
from time import time

import msgspec
import pytest
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from broker.config import WebhookSecret
from broker.webhooks.signing import secret_of, signed_headers

NEW, OLD = secret_of(bytes(range(32))), secret_of(bytes(range(24)))
OTHER = secret_of(bytes(32))
BODY = '{"type":"message.received","payload":{"subject":"Grüße ☃"}}'.encode()


def headers_of(*secrets, body=BODY, now=None):
    headers = signed_headers(secrets, "evt_1", body, time() if now is None else now)
    return {name.decode(): value.decode() for name, value in headers}


def verifies(secret: str, headers: dict[str, str], body: bytes) -> bool:
    """What the Standard Webhooks specification says, by hand."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    ours = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    return any(given == f"v1,{ours}" for given in headers["webhook-signature"].split(" "))


def test_a_receiver_verifies_with_the_library_of_standard_webhooks():
    assert Webhook(NEW).verify(BODY, headers_of(NEW)) == json.loads(BODY)


def test_a_receiver_verifies_by_the_specification():
    headers = headers_of(NEW, now=1_700_000_000.9)
    assert headers["webhook-timestamp"] == "1700000000"
    assert verifies(NEW, headers, BODY)
    assert not verifies(NEW, headers, BODY + b" ")
    assert not verifies(OTHER, headers, BODY)


@pytest.mark.parametrize("secret", [NEW, OLD])
def test_while_a_secret_is_changed_both_verify(secret):
    headers = headers_of(NEW, OLD)
    assert Webhook(secret).verify(BODY, headers)
    assert verifies(secret, headers, BODY)


def test_no_other_secret_verifies():
    with pytest.raises(WebhookVerificationError):
        Webhook(OTHER).verify(BODY, headers_of(NEW, OLD))


def test_a_secret_without_its_padding_signs_the_same():
    assert headers_of(NEW.rstrip("="), now=5.0) == headers_of(NEW, now=5.0)


def test_a_secret_is_written_as_the_configuration_takes_it():
    assert msgspec.convert(NEW, WebhookSecret) == NEW
    assert len(base64.b64decode(NEW.removeprefix("whsec_"))) == 32
