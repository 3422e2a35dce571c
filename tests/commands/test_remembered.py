"""What is remembered of commands: one outcome for each identity, for a time, within a number and a size."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from broker.commands.dispatch import AccountCommands
from broker.commands.remembered import (
    MAX_ANSWERS,
    MAX_BYTES,
    RUN_OVERHEAD_BYTES,
    Outcome,
    Remembered,
    RememberedStatistics,
)
from broker.errors import RequestError

ONE = ("key_1", "", "r1")
DONE = Outcome(b'{"sent":true}')
REFUSED = Outcome(b"", RequestError("no_such_message", "There is none"))
ASK_AGAIN = Outcome(b"", RequestError("unavailable", "Nobody is there"), lasting=False)


def begin_new(remembered, identity=ONE, digest=b"a", now=0.0):
    run, new = remembered.begin(identity, digest, now)
    assert new
    return run


def hear(run):
    heard = []
    run.replies.append(heard.append)
    return heard


def test_what_is_sent_again_while_it_is_under_way_waits_for_the_same_run():
    remembered = Remembered(300)
    run = begin_new(remembered)
    assert remembered.begin(ONE, b"a", 1.0) == (run, False)
    first, second = hear(run), hear(run)
    remembered.finish(run, DONE, 2.0)
    assert first == second == [DONE]


def test_of_an_account_no_more_is_forgotten_in_a_step_than_is_asked_for_of_either_kind():
    account = AccountCommands(Remembered(10), Remembered(20))
    for remembered in (account.remembered, account.once):
        for number in range(3):
            remembered.finish(begin_new(remembered, ("key", "", f"r{number}")), DONE, 0.0)
    assert account.forget(10.0, 4) == 0
    assert (account.forget(15.0, 4), account.once.statistics().answers) == (3, 3)
    assert [account.forget(30.0, 2) for _ in range(3)] == [2, 1, 0]
    for remembered in (account.remembered, account.once):
        for number in range(3):
            remembered.finish(begin_new(remembered, ("key", "", f"r{number}"), now=40.0), DONE, 40.0)
    assert (account.forget(80.0, 4), account.once.statistics().answers) == (4, 2)


@pytest.mark.parametrize("outcome", [DONE, REFUSED], ids=["a result", "a refusal"])
def test_what_is_sent_again_afterwards_has_the_first_outcome(outcome):
    remembered = Remembered(300)
    remembered.finish(begin_new(remembered), outcome, 0.0)
    run, new = remembered.begin(ONE, b"a", 1.0)
    assert not new
    assert run.outcome is outcome


def test_an_outcome_that_does_not_last_is_told_to_all_who_wait_and_then_asked_for_again():
    remembered = Remembered(300)
    run = begin_new(remembered)
    heard = hear(run)
    remembered.finish(run, ASK_AGAIN, 0.0)
    assert heard == [ASK_AGAIN]
    assert remembered.idle
    assert begin_new(remembered) is not run


@pytest.mark.parametrize("ended", [False, True], ids=["under way", "ended"])
def test_the_same_request_id_with_other_content_is_refused_and_harms_nothing(ended):
    remembered = Remembered(300)
    run = begin_new(remembered)
    if ended:
        remembered.finish(run, DONE, 0.0)
    with pytest.raises(RequestError) as caught:
        remembered.begin(ONE, b"b", 1.0)
    assert caught.value.code == "request_id_reused"
    assert remembered.begin(ONE, b"a", 1.0) == (run, False)


def test_after_a_failure_that_does_not_last_other_content_is_welcome():
    remembered = Remembered(300)
    remembered.finish(begin_new(remembered), ASK_AGAIN, 0.0)
    begin_new(remembered, digest=b"b")


@pytest.mark.parametrize("other", [("key_2", "", "r1"), ("key_1", "laptop", "r1"), ("key_1", "", "r2")])
def test_another_key_client_or_request_id_is_another_command(other):
    remembered = Remembered(300)
    run = begin_new(remembered)
    assert begin_new(remembered, other, b"b") is not run


def test_commands_without_a_request_id_are_always_new_and_leave_nothing():
    remembered = Remembered(300)
    runs = [begin_new(remembered, None) for _ in range(3)]
    heard = [hear(run) for run in runs]
    for run in runs:
        remembered.finish(run, DONE, 0.0)
    assert heard == [[DONE]] * 3
    assert remembered.idle


def test_an_outcome_is_kept_for_the_whole_window_counted_from_its_end():
    remembered = Remembered(300)
    run = begin_new(remembered, now=0.0)
    remembered.finish(run, DONE, 100.0)
    assert remembered.begin(ONE, b"a", 400.0) == (run, False)
    assert begin_new(remembered, now=400.1) is not run


def test_an_outcome_that_is_too_old_is_not_given_however_many_older_ones_are_still_to_be_forgotten():
    remembered = Remembered(300)
    for number in range(1_000):
        remembered.finish(begin_new(remembered, ("key_1", "", f"r{number}")), DONE, 0.0)
    begin_new(remembered, ("key_1", "", "r999"), b"other content", now=301.0)
    assert remembered.statistics().answers > 900


def test_a_run_under_way_is_never_forgotten():
    remembered = Remembered(300)
    run = begin_new(remembered)
    assert remembered.begin(ONE, b"a", 10_000.0) == (run, False)


def test_the_oldest_ended_goes_first_when_there_are_too_many():
    remembered = Remembered(300, max_answers=2)
    names = [("key_1", "", name) for name in ("r1", "r2", "r3")]
    runs = [begin_new(remembered, name) for name in names]
    for run in (runs[1], runs[0], runs[2]):
        remembered.finish(run, DONE, 0.0)
    assert remembered.begin(names[0], b"a", 0.0) == (runs[0], False)
    assert remembered.begin(names[2], b"a", 0.0) == (runs[2], False)
    begin_new(remembered, names[1])


def test_an_answer_that_alone_is_too_big_is_given_but_not_kept():
    remembered = Remembered(300, max_bytes=RUN_OVERHEAD_BYTES + 100)
    run = begin_new(remembered)
    heard = hear(run)
    big = Outcome(b"x" * 101)
    remembered.finish(run, big, 0.0)
    assert heard == [big]
    assert remembered.statistics() == RememberedStatistics(0, 0, 0)


def test_the_words_of_a_refusal_count_as_much_as_a_result():
    sizes = []
    for outcome in (
        Outcome(b"x" * 1000),
        Outcome(b"", RequestError("", "x" * 1000)),
        Outcome(b"", RequestError("é" * 500, "")),
    ):
        remembered = Remembered(300)
        remembered.finish(begin_new(remembered), outcome, 0.0)
        sizes.append(remembered.statistics().bytes)
    assert sizes == [sizes[0]] * 3
    assert sizes[0] >= 1000 + RUN_OVERHEAD_BYTES


def test_no_more_than_ten_thousand_answers_and_16_mib_are_kept():
    assert (MAX_ANSWERS, MAX_BYTES) == (10_000, 16_777_216)
    remembered = Remembered(300)
    for number in range(10_005):
        remembered.finish(begin_new(remembered, ("key_1", "", str(number))), DONE, 0.0)
    assert remembered.statistics().answers == 10_000
    for number in range(20):
        remembered.finish(begin_new(remembered, ("key_1", "", f"big{number}")), Outcome(b"x" * 1_048_576), 0.0)
    statistics = remembered.statistics()
    assert statistics.answers == 15
    assert 15 * 1_048_576 < statistics.bytes <= 16_777_216


class RememberedMachine(RuleBasedStateMachine):
    """Against a list of what has ended, oldest first."""

    SECONDS = 10
    MAX_ANSWERS = 3
    MAX_BYTES = 3 * RUN_OVERHEAD_BYTES

    def __init__(self):
        super().__init__()
        self.remembered = Remembered(self.SECONDS, max_answers=self.MAX_ANSWERS, max_bytes=self.MAX_BYTES)
        self.now = 0.0
        self.under_way = {}  # identity → (digest, run, what each who waits heard)
        self.ended = []  # (identity, digest, run, when)
        self.anonymous = []

    def forget(self):
        self.ended = [item for item in self.ended if item[3] >= self.now - self.SECONDS]

    @rule(
        key=st.sampled_from(["k1", "k2"]),
        client=st.sampled_from(["", "c1"]),
        request_id=st.sampled_from(["r1", "r2"]),
        digest=st.sampled_from([b"a", b"b"]),
    )
    def begin(self, key, client, request_id, digest):
        identity = (key, client, request_id)
        self.forget()
        ended = {name: (known, run) for name, known, run, _ in self.ended}
        under_way = self.under_way.get(identity)
        known, expected = under_way[:2] if under_way else ended.get(identity, (None, None))
        if known not in (None, digest):
            with pytest.raises(RequestError, match="request_id_reused"):
                self.remembered.begin(identity, digest, self.now)
            return
        run, new = self.remembered.begin(identity, digest, self.now)
        assert new == (known is None)
        if new:
            assert run.outcome is None
            self.under_way[identity] = (digest, run, [hear(run)])
        else:
            assert run is expected
            if run.outcome is None:
                under_way[2].append(hear(run))

    @rule()
    def begin_without_request_id(self):
        run = begin_new(self.remembered, None, now=self.now)
        self.anonymous.append(run)
        self.forget()

    @precondition(lambda self: self.anonymous)
    @rule()
    def finish_without_request_id(self):
        self.remembered.finish(self.anonymous.pop(), DONE, self.now)

    @precondition(lambda self: self.under_way)
    @rule(data=st.data(), size=st.integers(0, 2 * RUN_OVERHEAD_BYTES), lasting=st.booleans(), fails=st.booleans())
    def finish(self, data, size, lasting, fails):
        identity = data.draw(st.sampled_from(sorted(self.under_way)))
        digest, run, waiting = self.under_way.pop(identity)
        error = RequestError("no_such", "x" * size) if fails else None
        outcome = Outcome(b"" if fails else b"x" * size, error, lasting)
        self.remembered.finish(run, outcome, self.now)
        assert run.outcome is outcome
        assert waiting == [[outcome]] * len(waiting)
        if lasting:
            self.ended.append((identity, digest, run, self.now))
        while len(self.ended) > self.MAX_ANSWERS or sum(map(self.cost, self.ended)) > self.MAX_BYTES:
            self.ended.pop(0)

    @staticmethod
    def cost(item):
        identity, _, run, _ = item
        outcome = run.outcome
        words = len("no_such") + len(outcome.error.message) if outcome.error else len(outcome.result)
        return RUN_OVERHEAD_BYTES + words + len("".join(identity))

    @rule(seconds=st.integers(1, 12))
    def pass_time(self, seconds):
        self.now += seconds

    @rule()
    def tidy(self):
        self.remembered.forget(self.now, 10)
        self.forget()

    @invariant()
    def it_holds_what_the_list_holds(self):
        size = sum(map(self.cost, self.ended))
        assert self.remembered.statistics() == RememberedStatistics(len(self.under_way), len(self.ended), size)
        assert self.remembered.idle == (not self.under_way and not self.ended)


TestRemembered = RememberedMachine.TestCase
TestRemembered.settings = settings(max_examples=150, stateful_step_count=40)
