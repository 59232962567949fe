"""What is typed after ``/`` filters as it says, and no expression can hang the screen."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microscope_tui.lines.pattern import LOOKED_AT, MOST_CHARACTERS, Pattern

NAMES = ["L1.moe", "L12.moe", "L3.dense", "exp/lr 3e-4"]
PLAIN = st.text(st.characters(exclude_categories=["Cs", "Z", "C"]), min_size=1, max_size=20)
PIECES = st.sampled_from(
    ["a", "b", "ab", ".", "\\d", "[ab]", "(", "(?:", ")", "*", "+", "?", "{2,5}", "{3}", "|", "$"]
)


def kept(text: str) -> list[str]:
    pattern = Pattern.parse(text)
    assert pattern.error == ""
    return [name for name in NAMES if pattern.matches(name)]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", NAMES),
        ("  ", NAMES),
        ("MOE", ["L1.moe", "L12.moe"]),
        ("moe 12", ["L12.moe"]),
        ("l1 !12", ["L1.moe"]),
        ("!moe  !lr", ["L3.dense"]),
        (".", ["L1.moe", "L12.moe", "L3.dense"]),
        ("/^l.\\./", ["L1.moe", "L3.dense"]),
        ("!/^l.\\./", ["L12.moe", "exp/lr 3e-4"]),
        ("/1|3/ !moe", ["L3.dense", "exp/lr 3e-4"]),
        ("/^L1", ["L1.moe", "L12.moe"]),
        ("/p/lr 3/", ["exp/lr 3e-4"]),
        ("/p/lr 3", ["exp/lr 3e-4"]),
        ("p/l", ["exp/lr 3e-4"]),
        ("/p\\/ ?lr/ 3e", ["exp/lr 3e-4"]),
        ("/[/]l/", ["exp/lr 3e-4"]),
    ],
)
def test_words_must_all_be_there_and_negated_ones_must_not(text: str, names: list[str]) -> None:
    assert kept(text) == names


@pytest.mark.parametrize("text", ["!", "/", "//", "!/", "!//", " ! / "])
def test_what_is_only_begun_filters_nothing_yet(text: str) -> None:
    assert kept(text) == NAMES


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("/(/", "no regular expression: missing ), unterminated subpattern"),
        ("/abc\\", "no regular expression: bad escape (end of pattern)"),
        ("/*/", "no regular expression: nothing to repeat"),
        ("/a{99999999999999999999}/", "no regular expression: too large a number"),
        ("/(?<=a)b/", "(? is not understood here"),
        ("/(a+)\\1/", "\\1 is not understood here"),
        ("a" * (MOST_CHARACTERS + 1), "longer than 100 characters: shorten it"),
    ],
)
def test_a_mistake_filters_nothing_and_is_said(text: str, words: str) -> None:
    pattern = Pattern.parse(text)
    assert words in pattern.error
    assert all(pattern.matches(name) for name in NAMES)
    assert pattern.text == text


@pytest.mark.parametrize(
    "body",
    [
        "(a+)+$",
        "(?:a*)*b",
        "(a|a)*$",
        "(a|aa)+$",
        "(a?){50}b",
        "((ab)*c)*d",
        "((?:a{2}){2}){2}",
        "(?:(?:){200}){200}",
    ],
)
def test_a_repeat_in_a_repeat_is_refused_in_words(body: str) -> None:
    pattern = Pattern.parse(f"/{body}/")
    assert "must hold no repeat" in pattern.error
    assert pattern.matches("a" * 200)


@pytest.mark.parametrize(
    "body",
    ["a*a*a*b", "a?" * 30 + "a" * 30, "(a|a)" * 18, ".{0,99}.{0,99}.{9,}x", "a*a*(){200}b"],
)
def test_many_choices_in_a_row_are_refused_in_words(body: str) -> None:
    assert "make several" in Pattern.parse(f"/{body}/").error


def test_a_repeat_longer_than_what_is_looked_at_is_refused() -> None:
    assert "at most 200 times" in Pattern.parse("/(?:){201}/").error
    assert "at most 200 times" in Pattern.parse("/a{3,999}/").error


@pytest.mark.parametrize(
    "body",
    [
        "layers\\.\\d+\\.moe.*w1",
        "^(run|exp)-[0-9a-f]{8}$",
        "(ab)+c?",
        "L(1|2|3|4|5|6|7|8|9)\\b",
        "[*+?{|(]+[]+]*",
        "\\*\\+\\?\\{\\(\\|{x}",
        "a{,3}?b++",
    ],
)
def test_what_people_type_is_allowed(body: str) -> None:
    pattern = Pattern.parse(f"/{body}/")
    assert pattern.error == ""
    assert len(pattern.terms) == 1


def test_the_worst_that_is_allowed_comes_to_an_end() -> None:
    for body in ("a*a*b", "a*a*a?b", "a{0,99}a{0,99}b", "(a+)(a+)b"):
        pattern = Pattern.parse(f"/{body}/")
        assert pattern.error == ""
        assert not pattern.matches("a" * 5000)


def test_an_expression_sees_the_beginning_and_a_word_all_of_a_name() -> None:
    name = "a" * LOOKED_AT + "zebra"
    assert Pattern.parse("zebra").matches(name)
    assert not Pattern.parse("/zebra/").matches(name)


def test_a_doubtful_expression_warns_nobody() -> None:
    assert Pattern.parse("/[[a]/").matches("[")  # a FutureWarning in ``re``, an error in tests


@given(st.text(max_size=120), st.text(max_size=300))
def test_no_text_raises_and_an_error_matches_everything(text: str, name: str) -> None:
    pattern = Pattern.parse(text)
    assert pattern.matches(name) or not pattern.error


@given(st.lists(PLAIN.filter(lambda word: word[0] not in "!/"), max_size=4), PLAIN)
def test_a_name_matches_its_own_words_in_any_case(words: list[str], other: str) -> None:
    name = " ".join([other, *reversed(words)])
    assert Pattern.parse(" ".join(words)).matches(name)
    assert Pattern.parse(" ".join(words)).matches(name.casefold())


@given(PLAIN.filter(lambda word: word[0] not in "!/"), st.text(max_size=60))
def test_a_word_and_its_negation_part_all_names(word: str, name: str) -> None:
    assert Pattern.parse(word).matches(name) is not Pattern.parse(f"!{word}").matches(name)


@given(st.lists(PIECES, max_size=14).map("".join), st.text("ab1", max_size=12))
def test_an_expression_that_is_allowed_means_what_re_says(body: str, name: str) -> None:
    pattern = Pattern.parse(f"/{body}/")
    if not pattern.error and body:
        assert pattern.matches(name) is bool(re.search(body, name, re.IGNORECASE))
