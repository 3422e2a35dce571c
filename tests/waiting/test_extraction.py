"""Codes and links: found in the mails that services send, and in bounded work in those that strangers send."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.waiting.conditions import Mail
from broker.waiting.extraction import MAX_CANDIDATES, Link, codes_of, extract, links_of


def mail(body="", subject="", sender="Acme <no-reply@mail.acme.com>"):
    return Mail(from_=sender, subject=subject, body=body)


@pytest.mark.parametrize(
    ("subject", "body", "code"),
    [
        ("Your verification code", "Hello,\n\n493201\n\nValid for 10 minutes. © 2026 Acme, Suite 12345", "493201"),
        ("Your verification code", "Your code is 493 201.", "493201"),
        ("", "Your code: 493-201", "493201"),
        ("123456 is your Acme code", "Do not share it. Order 88442211", "123456"),
        ("", "G-771204 is your Google verification code.", "771204"),
        ("", "Use AB12CD to sign in, your one-time passcode.", "AB12CD"),
        ("", "Your PIN is 4711, and your order is 20261126.", "4711"),
        ("", "Ihr Bestätigungscode lautet 880011", "880011"),
        ("", "<html><head><style>.a{width:999999px}</style></head><p>Code</p><p><b>305117</b></p></html>", "305117"),
        ("", "Call 030 1234567. Your code is 204060. Street 12345", "204060"),
        ("", "TOTAL 111111. YOUR CODE: 493201", "493201"),
        ("", f"{'İ' * 100} 111111 your code: 493201", "493201"),
        ("", "Choose 111111 or\n493201\nas you like, and be well", "493201"),
        ("", f"code {'x ' * 50} 111111 {'y ' * 50} verify 493201", "493201"),
        ("", f"111111 is none. Your code: 493201{' z' * 100}", "493201"),
        ("", f"111111 {'x ' * 60} 493201 is the code", "493201"),
        ("", "Code: 2026 or 4711", "4711"),
        ("111111 for you", "or else 493201", "111111"),
    ],
)
def test_the_code_of_a_mail_comes_first(subject, body, code):
    assert codes_of(mail(body, subject))[0] == code


@pytest.mark.parametrize(
    "body",
    [
        "",
        "no code at all",
        "price 12.50",
        "12345678901",
        "http://acme.com/123456",
        "a1234b",
        "id=493201",
        "user493201@x.com",
        "v1.123456",
        "code 493 apples",
        "code apples 201",
        "code 493; 201",
        "code 493\n201",
        "order 4711 is your code",
        "copyright 2026",
    ],
)
def test_what_is_part_of_something_else_is_no_code(body):
    assert codes_of(mail(body)) == []


@pytest.mark.parametrize("tag", ["style", "script", "head"])
def test_what_nobody_sees_of_a_mail_has_no_code(tag):
    hidden = f"<{tag} a='b'>code 111111</{tag}>"
    assert codes_of(mail(f"{hidden}<p>Code</p>{hidden.upper()}<b>305117</b>{hidden}")) == ["305117"]


def test_there_are_three_candidates_at_most_and_none_twice():
    assert codes_of(mail("code 111111 code 222222 code 333333 code 444444 code 111111")) == [
        "111111",
        "222222",
        "333333",
    ]
    links = links_of(mail(" ".join(f"https://acme.com/verify/{n}" for n in (1, 2, 3, 4, 1))))
    assert [link.url[-1] for link in links] == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("body", "url"),
    [
        ("Go to https://acme.com/verify?token=abc123. Thank you", "https://acme.com/verify?token=abc123"),
        ("(https://acme.com/confirm/abc)", "https://acme.com/confirm/abc"),
        ("([https://acme.com/confirm/abc]).", "https://acme.com/confirm/abc"),
        ("(see https://acme.com/confirm/a_(b))", "https://acme.com/confirm/a_(b)"),
        ("**https://acme.com/confirm/abc**, _https://acme.com/_", "https://acme.com/confirm/abc"),
        ("https://acme.com/confirm?token=Zm9v_", "https://acme.com/confirm?token=Zm9v_"),
        ("https://acme.com/confirm?token=Zm9v*_.", "https://acme.com/confirm?token=Zm9v*_"),
        ('<a href="https://acme.com/login?a=1&amp;token=zz">in</a>', "https://acme.com/login?a=1&token=zz"),
        (
            "https://acme.com/privacy https://acme.com/logo.png https://acme.com/unsubscribe?x=1 https://t.io/activate/9",
            "https://t.io/activate/9",
        ),
        ("https://acme.com/ https://acme.com/magic-link/abc", "https://acme.com/magic-link/abc"),
    ],
)
def test_the_link_that_is_to_be_followed_comes_first(body, url):
    assert links_of(mail(body))[0].url == url


@pytest.mark.parametrize(
    ("url", "sender", "same"),
    [
        ("https://acme.com/verify", "a@acme.com", True),
        ("https://app.acme.com/verify", "A <a@acme.com>", True),
        ("https://ACME.com/verify", "a@mail.acme.com", True),
        ("https://acme.com.evil.org/verify", "a@acme.com", False),
        ("https://notacme.com/verify", "a@acme.com", False),
        ("https://acme.com@evil.org/verify", "a@acme.com", False),
        ("https://com/verify", "a@acme.com", False),
        ("https://acme.com/verify", "", False),
    ],
)
def test_a_link_says_whether_it_leads_to_the_sender(url, sender, same):
    assert links_of(mail(url, sender=sender)) == [Link(url, same)]


@pytest.mark.parametrize(
    "body",
    [
        "ftp://acme.com/verify",
        "https://[acme.com/verify",
        "https://acme.com/verify.PNG",
        "https://acme.com/unsubscribe?x=1",
        "https:///verify",
    ],
)
def test_what_leads_nowhere_or_is_not_to_be_followed_is_no_link(body):
    assert links_of(mail(body)) == []


def test_of_two_links_to_the_same_site_the_one_that_has_more_to_say_comes_first():
    links = links_of(mail("https://acme.com/a?b=1 https://acme.com/a?b=123456789"))
    assert [link.url for link in links] == ["https://acme.com/a?b=123456789", "https://acme.com/a?b=1"]


def test_of_two_links_one_to_the_senders_site_comes_first():
    links = links_of(mail("https://other.io/a https://acme.com/a"))
    assert [(link.url, link.same_site) for link in links] == [
        ("https://acme.com/a", True),
        ("https://other.io/a", False),
    ]


def test_a_link_that_is_cut_off_where_we_stop_to_look_is_none():
    assert links_of(mail("x" * 32_700 + " https://acme.com/verify/" + "a" * 500)) == []
    assert links_of(mail("https://" + "a" * 5_000 + ".com"))[0].url.startswith("https://aaa")


def test_only_what_is_asked_for_is_looked_for():
    both = mail("code 493201 https://acme.com/verify")
    assert extract(both, code=True, link=False).link is None
    assert extract(both, code=False, link=True).code is None


@given(body=st.text(max_size=3_000), subject=st.text(max_size=200), sender=st.text(max_size=100))
def test_whatever_a_stranger_writes_there_are_candidates_or_none(body, subject, sender):
    for text in (body, f"<{body}>", f"https://{body}", f"code {body} 123456"):
        found = extract(mail(text, subject, sender), code=True, link=True)
        assert len(found.code) <= MAX_CANDIDATES
        assert len(found.link) <= MAX_CANDIDATES
        assert all(4 <= len(code) <= 8 for code in found.code)


PIECES = [
    "<",
    ">",
    "<style",
    "</style>",
    "1234 ",
    "A1B2C3D4 ",
    "code ",
    "http://a.b/",
    "https://",
    "@",
    "&amp;",
    "123 ",
    "-",
]


@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=4), st.integers(10_000, 60_000))
def test_a_long_mail_made_to_be_slow_is_bounded_by_what_is_looked_at(pieces, times):
    """The work is that of a mail of a fixed length: what stands behind makes no difference."""
    text = "".join(pieces) * times
    cut = text[:40_000]
    assert codes_of(mail(text)) == codes_of(mail(cut))
    if "http" not in text:
        assert links_of(mail(text)) == []


@pytest.mark.parametrize(
    ("sender", "same_site"),
    [
        ("a@example.com", True),
        ("Ada <a@mail.example.com.>", True),
        ("x@evil.io (a@example.com)", False),
        ("a@example.com evil.io", False),
        ("a@example.com\u200b.evil.io", False),
        ('"a@example.com" <x@evil.io>', False),
        ("x@evil.io, a@example.com", False),
    ],
)
def test_a_link_leads_to_the_site_of_the_one_real_address_alone(sender, same_site):
    assert links_of(mail("https://example.com/verify?t=1", sender=sender))[0].same_site is same_site
