"""What is typed after ``/`` filters as it says."""

import pytest
from hypothesis import given, strategies as st

from microscope_tui.draw.words import matches

NAMES = ["L1.moe", "L12.moe", "L3.dense", "exp/lr 3e-4"]
WORDS = st.text(st.characters(exclude_categories=["Cs", "Z", "C"]), min_size=1, max_size=20).filter(
    lambda word: not set("!*?") & set(word)
)


def kept(text: str) -> list[str]:
    return [name for name in NAMES if matches(text, name)]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", NAMES),
        *((begun, NAMES) for begun in ("  ", "!", " ! ", "! !")),
        *(("MOE", ["L1.moe", "L12.moe"]), ("moe 12", ["L12.moe"]), ("l1 !12", ["L1.moe"])),
        *(("!moe  !lr", ["L3.dense"]), (".", ["L1.moe", "L12.moe", "L3.dense"])),
        *(("p/l", ["exp/lr 3e-4"]), ("L1*", [])),
    ],
)
def test_words_must_all_be_there_and_negated_ones_must_not(text: str, names: list[str]) -> None:
    assert kept(text) == names


@pytest.mark.parametrize("text", ["(", "[a", "abc\\", "a{9}", "+", "^L1$", "/L1/"])
def test_signs_of_regular_expressions_are_themselves(text: str) -> None:
    assert kept(text) == []
    assert matches(text, f"before {text} behind")


@given(st.text(max_size=120), st.text(max_size=300))
def test_no_text_raises(text: str, name: str) -> None:
    matches(text, name)


@given(st.lists(WORDS, max_size=4), WORDS)
def test_a_name_matches_its_own_words_in_any_case(words: list[str], other: str) -> None:
    name = " ".join([other, *reversed(words)])
    assert matches(" ".join(words), name)
    assert matches(" ".join(words), name.casefold())


@given(WORDS, st.text(max_size=60))
def test_a_word_and_its_negation_part_all_names(word: str, name: str) -> None:
    assert matches(word, name) is not matches(f"!{word}", name)
