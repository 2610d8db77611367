"""Search-R1's protocol to the letter, the plain form, and how answers are scored."""

from __future__ import annotations

import pytest

from turnwise.envs.search.answers import em, f1, measure, normalised, sub_em
from turnwise.envs.search.corpus import Document, document
from turnwise.envs.search.hits import Hit
from turnwise.envs.search.protocol import PROTOCOLS, Call, protocol_named

R1, PLAIN = PROTOCOLS["search_r1"], PROTOCOLS["plain"]
HITS = [
    Hit(document("7", "Bath", "Bath is a city in Maine."), 2.5),
    Hit(document("9", "William King", "A governor."), 1.0),
]


def test_the_search_r1_prompt_ends_with_the_question_and_a_question_mark() -> None:
    prompt = R1.opening("who founded belcorp ")
    assert prompt.startswith("Answer the given question. You must conduct reasoning inside <think> and </think> first")
    assert "You can search as many times as your want." in prompt
    assert prompt.endswith("For example, <answer> Beijing </answer>. Question: who founded belcorp?\n")
    assert R1.opening("who?").endswith("Question: who?\n")


@pytest.mark.parametrize(
    ("reply", "call"),
    [
        ("<think> hm </think>\n<search> bath maine </search>", Call("search", "bath maine")),
        ("<answer> Bath,\n Maine </answer>", Call("answer", "Bath,\n Maine")),
        # cut at the first </search>, whatever follows
        ("<search> a </search> <search> b </search> <answer> c </answer>", Call("search", "a")),
        # no </search>: cut at the first </answer>
        ("<answer> a </answer> <answer> b </answer>", Call("answer", "a")),
        # an answer before a search acts, but the last answer is the one that is scored
        ("<answer> a </answer><answer> b </answer><search> c </search>", Call("answer", "b")),
        # an answer after the first search is cut off
        ("<search> a </search><answer> b </answer>", Call("search", "a")),
        # the cut leaves an answer without its end
        ("<answer> a </search>", None),
        ("<search> a </answer>", None),
        ("<search></search>", Call("search", "")),
        ("<SEARCH> a </SEARCH>", None),
        ("search: a", None),
        ("", None),
    ],
)
def test_search_r1_replies(reply: str, call: Call | None) -> None:
    assert R1.parse(reply) == call


def test_the_search_r1_information_block_to_the_letter() -> None:
    assert R1.information(HITS) == (
        '\n\n<information>Doc 1(Title: "Bath") Bath is a city in Maine.\n'
        'Doc 2(Title: "William King") A governor.</information>\n\n'
    )
    assert R1.information([]) == "\n\n<information></information>\n\n"
    untitled = Hit(Document("1", "one line"), 1.0)
    assert R1.information([untitled]) == "\n\n<information>Doc 1(Title: one line)</information>\n\n"


def test_the_search_r1_answer_to_an_invalid_reply() -> None:
    assert R1.invalid == (
        "\nMy previous action is invalid. If I want to search, I should put the query between <search> and </search>. "
        "If I want to give the final answer, I should put the answer between <answer> and </answer>. "
        "Let me try again.\n"
    )


@pytest.mark.parametrize(
    ("reply", "call"),
    [
        ("search: mira dolen", Call("search", "mira dolen")),
        (" Answer :  red\n river ", Call("answer", "red river")),
        ("search:", None),
        ("answer: ", None),
        ("search mira", None),
        ("research: mira", None),
        ("<search> mira </search>", None),
    ],
)
def test_plain_replies(reply: str, call: Call | None) -> None:
    assert PLAIN.parse(reply) == call


def test_plain_documents_are_lines_that_say_their_title_once() -> None:
    assert PLAIN.information(HITS) == "Bath is a city in Maine.\nWilliam King: A governor."
    assert PLAIN.information([]) == "nothing found."


@pytest.mark.parametrize("name", PROTOCOLS)
def test_what_a_protocol_writes_it_reads(name: str) -> None:
    protocol = protocol_named(name)
    assert protocol.parse(protocol.search("red river")) == Call("search", "red river")
    assert protocol.parse(protocol.answer("red river")) == Call("answer", "red river")


def test_an_unknown_protocol_or_reward_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="Did you mean 'plain'"):
        protocol_named("plane")
    with pytest.raises(ValueError, match="Did you mean 'sub_em'"):
        measure("subem")


def test_normalising() -> None:
    assert normalised("  The Bath, Maine! ") == "bath maine"
    assert normalised("An apple a day") == "apple day"
    assert normalised("theatre") == "theatre"
    assert normalised('Jonny" Craig') == "jonny craig"
    assert normalised("U.S.A.") == "usa"


def test_exact_match() -> None:
    assert em("the Bath, maine", ["Portland", "Bath Maine"]) == 1
    assert em("in Bath Maine", ["Bath Maine"]) == 0
    assert sub_em("in Bath Maine", ["Bath Maine"]) == 1
    assert sub_em("Bath", ["Bath Maine"]) == 0


def test_f1_by_hand() -> None:
    assert f1("Bath", ["Bath, Maine"]) == pytest.approx(2 / 3)  # P = 1, R = 1/2
    assert f1("bath bath maine", ["bath maine"]) == pytest.approx(0.8)  # P = 2/3, R = 1
    assert f1("the city of bath", ["bath maine", "bath city"]) == pytest.approx(0.8)  # P = 2/3, R = 1 with the second
    assert f1("portland", ["bath"]) == 0
    assert f1("yes", ["yes"]) == 1
    assert f1("yes it is", ["yes"]) == 0  # a verdict is right or wrong
    assert f1("no", ["no one"]) == 0
    assert f1("", ["bath"]) == 0
