"""Keys that a program makes for itself."""

from hashlib import sha256

import broker
from broker.keys import hash_key, new_key


def test_a_new_key_is_random_and_of_the_form_of_its_kind():
    assert new_key().startswith("dm_live_")
    assert new_key(operator=True).startswith("dm_operator_")
    assert len({new_key() for _ in range(100)}) == 100
    assert len(new_key().removeprefix("dm_live_")) == 43, "256 bits"


def test_the_hash_of_a_key_is_what_the_configuration_holds():
    assert broker.keys.hash_key("dm_live_x") == hash_key("dm_live_x") == sha256(b"dm_live_x").hexdigest()
