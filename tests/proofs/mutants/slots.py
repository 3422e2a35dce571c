# ruff: noqa: E501
"""Of slots and rates: how many come in, who is replaced, who is taken for a ghost, how often something may be done."""

from proofs.mutants.mutant import Mutant, of

ADMISSION = "tests/access/test_admission.py"
SLOTS = " ".join(
    f"tests/access/test_slots.py::{test}"
    for test in (
        "test_no_more_slots_are_given_than_the_limit_and_a_released_one_is_given_again",
        "test_a_name_takes_its_own_slot_over_also_at_the_limit",
        "test_nothing_is_kept_of_an_account_without_slots_nor_of_one_that_was_refused",
        "test_only_those_who_have_a_slot_are_its_holders",
        "test_what_goes_with_a_slot_elsewhere_is_given_back_with_it_and_nobody_holds_it_then",
    )
)

MUTANTS: list[Mutant] = [
    *of(
        "broker/access/slots.py", f"{SLOTS} tests/access/test_looks.py",
        ("an account has no more connections than its tier",
         "and limit is not None and of_account.counted >= limit:", "and limit is not None and of_account.counted > limit:"),
        ("a name's own slot is always free to it",
         "if replaced is None and name is not LOOK and limit", "if name is not LOOK and limit"),
        ("a look takes none of the tier's slots",
         "return len(self) - (LOOK in self)", "return len(self)"),
        ("a look comes in where the tier is full",
         "if replaced is None and name is not LOOK and limit", "if replaced is None and limit"),
        ("the release of a slot that was taken over does nothing",
         "        if self.get(slot.key) is slot:\n", "        if slot.key in self:\n"),
        ("of an account without slots nothing is kept",
         "                del self._accounts[self._account_id]\n", "                pass\n"),
        ("a slot that is taken over is counted once",
         "        self._accounts.taken += replaced is None\n", "        self._accounts.taken += 1\n"),
        ("a look is none of those of whom one may lose its slot",
         "if slot.holder is not None and slot.key is not LOOK]", "if slot.holder is not None]"),
        ("what goes with a slot elsewhere is given back with it",
         "        if self.claim is not None:\n            self.claim.release()\n", ""),
        ("a slot that is released has no holder",
         "        self._of_account.release(self)\n        self.holder = None\n", "        self._of_account.release(self)\n"),
    ),
    *of(
        "broker/access/rates.py", "tests/access/test_rates.py",
        ("a bucket holds no more than its burst",
         "self.tokens = min(self.burst, self.tokens + (now - self.filled_at) * self.per_second)", "self.tokens = self.tokens + (now - self.filled_at) * self.per_second"),
        ("time counts once in a bucket",
         "        self.filled_at = now\n        missing", "        missing"),
        ("what is more than a bucket holds is taken from a full one",
         "missing = min(amount, self.burst) - self.tokens", "missing = amount - self.tokens"),
        ("a wait is as long as it takes",
         "return missing / self.per_second if missing > _ROUNDING else 0.0", "return missing if missing > _ROUNDING else 0.0"),
        ("the sums of floating point keep nobody waiting",
         "if missing > _ROUNDING else", "if missing > 0 else"),
        ("what is taken is taken from every bucket",
         "    for bucket in buckets:\n        bucket.take(amount)\n", "    buckets and buckets[0].take(amount)\n"),
        ("nothing is taken where one bucket has too little",
         "    require_of_all(buckets, amount, now, what)\n", ""),
        ("the longest wait of all buckets is told",
         "wait = max((bucket", "wait = min((bucket"),
        ("a bucket that is changed keeps what is in it",
         "        buckets[0].change(rate.per_second, burst, now)\n", "        buckets[0] = TokenBucket.full(rate.per_second, burst, now)\n"),
        ("what came in before a change came in at the old rate",
         "        self.wait_seconds(0, now)\n", ""),
        ("a rate that is taken away limits nothing",
         "        buckets.clear()\n", "        pass\n"),
    ),
]  # fmt: skip
"""Each is wrong by one small thing."""
