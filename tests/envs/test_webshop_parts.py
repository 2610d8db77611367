"""WebShop's parts, one by one: files, actions, words, stems, scores, colours, nouns."""

from __future__ import annotations

import json
import random
import shutil
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import turnwise.envs  # noqa: F401  (registers turnwise/WebShop-v0)
from turnwise.envs.webshop import catalogue
from turnwise.envs.webshop.analysis import analyze, tokens
from turnwise.envs.webshop.data import DataFile, open_source
from turnwise.envs.webshop.env import WebShopEnv, queries
from turnwise.envs.webshop.fuzzy import token_set_ratio
from turnwise.envs.webshop.goals import Goals
from turnwise.envs.webshop.index import _contenders as contenders
from turnwise.envs.webshop.index import build
from turnwise.envs.webshop.nouns import SpacyNouns, stand_in_nouns
from turnwise.envs.webshop.pages import parse_action
from turnwise.envs.webshop.porter import stem
from turnwise.envs.webshop.reward import normalize_color, reachable, score
from turnwise.envs.webshop.store import open_shelves, open_written, write_shelves

# ---------------------------------------------------------------------- official files


@cache
def shared() -> WebShopEnv:
    return WebShopEnv(split="test")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Our products in the form of the official files, with one human request."""
    products, entries = catalogue.generate(num_products=60)
    (tmp_path / "items_shuffle_1000.json").write_text(json.dumps(products))
    (tmp_path / "items_ins_v2_1000.json").write_text(json.dumps(entries))
    product = next(each for each in products if each["customization_options"])
    name, values = next(iter(product["customization_options"].items()))
    request = {
        "instruction": "i want this one, please.",
        "instruction_attributes": entries[product["asin"]]["attributes"][:1],
        "instruction_options": [values[0]["value"]],
        "options": [f"{name}: {values[0]['value']}"],
    }
    unusable = {**request, "instruction_attributes": []}
    (tmp_path / "items_human_ins.json").write_text(json.dumps({product["asin"]: [unusable, request]}))
    return tmp_path


def test_official_files_give_what_the_catalogue_gives(folder: Path) -> None:
    env, own = WebShopEnv(folder), WebShopEnv(num_products=60)
    assert env.observation_mode == "text"
    assert env.simulator.shelves.products[7].title == own.simulator.shelves.products[7].title
    assert list(env.goals) == list(own.goals)
    human = WebShopEnv(folder, goals="human", split_scheme="verl_agent", split="test")
    human.reset(options={"task": 0})
    assert human.goal.instruction_text.startswith("i want this one, please, and price lower than ")
    assert human.exact_purchase().reward == 1.0
    assert len(human.goals) == 1, "a request without attributes is no goal"


def test_the_smallest_set_that_holds_enough_is_read(folder: Path) -> None:
    for name in ("items_shuffle", "items_ins_v2"):
        shutil.copy(folder / f"{name}_1000.json", folder / f"{name}.json")
    names = {count: open_source(folder, count).products_file for count in (10, 1000, 1001, None)}
    assert {count: path.name for count, path in names.items() if path} == {
        10: "items_shuffle_1000.json",
        1000: "items_shuffle_1000.json",
        1001: "items_shuffle.json",
        None: "items_shuffle.json",
    }
    assert len(list(open_source(folder, 10))) == 10


def test_products_without_an_asin_and_repeated_ones_are_left_out(folder: Path) -> None:
    products, _ = catalogue.generate(num_products=3)
    bad = [{**products[0], "asin": "nan"}, {**products[0], "asin": "B0123456789"}, {**products[1], "name": "again"}]
    (folder / "items_shuffle_1000.json").write_text(json.dumps([*bad[:2], *products, bad[2]]))
    assert [each.title for each in open_source(folder)] == [each["name"] for each in products]


def test_missing_and_damaged_files_are_named(folder: Path) -> None:
    whole = (folder / "items_shuffle_1000.json").read_text()

    def fails(text: str, message: str) -> None:
        (folder / "items_shuffle_1000.json").write_text(text)
        with pytest.raises(ValueError, match=message) as caught:
            list(open_source(folder))
        assert "items_shuffle_1000.json" in str(caught.value)
        assert "princeton-nlp/WebShop" in str(caught.value)

    fails(whole[: len(whole) // 2], "is damaged .* after [0-9]+ entries")
    fails("", "does not begin with '\\['")
    fails("{}", "does not begin with '\\['")
    fails("[1, 2]", "Product 0 of .* is not as expected")
    fails(json.dumps([{"asin": "B1"}]), "Product 0 of .* is not as expected: no field")
    (folder / "items_ins_v2_1000.json").unlink()
    with pytest.raises(ValueError, match=r"No items_ins_v2_1000\.json in"):
        WebShopEnv(folder)
    (folder / "items_shuffle_1000.json").unlink()
    with pytest.raises(ValueError, match=r"No items_shuffle\.json or items_shuffle_1000\.json in"):
        WebShopEnv(folder)


@pytest.mark.parametrize("size", [1, 7, 64, 10_000])
def test_a_file_is_read_in_pieces_of_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr("turnwise.envs.webshop.data._CHUNK", size)
    values = [{"a": 'x"]},[' * count, "b": [count, {"é": None}]} for count in range(30)]
    path = tmp_path / "list.json"
    path.write_text(json.dumps(values, indent=1))
    assert list(DataFile(path).values()) == values
    named = {f"k{count}": value for count, value in enumerate(values)}
    path.write_text(json.dumps(named))
    assert dict(DataFile(path).items()) == named


def test_a_catalogue_in_the_cache_is_the_same_as_one_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    monkeypatch.setenv("TURNWISE_CACHE", str(tmp_path / "cache"))
    source = open_source(folder)
    memory = open_shelves(source)
    monkeypatch.setattr("turnwise.envs.webshop.store.IN_MEMORY", 10)
    monkeypatch.setattr("turnwise.envs.webshop.index._BLOCK", 16)
    open_shelves.cache_clear()
    try:
        stored = open_shelves(source)
        assert list(stored.products) == [stored.products[n] for n in range(60)] == list(memory.products)
        for kind in ("synthetic", "human"):
            assert list(Goals(stored, kind)) == list(Goals(memory, kind))
        for goal in Goals(memory):
            found, scores = memory.index.search(goal.instruction_text)
            again, equal = stored.index.search(goal.instruction_text)
            assert (found, scores.tolist()) == (again, equal.tolist())
        assert len(list((tmp_path / "cache/webshop").iterdir())) == 1, "and nothing half made is left"
        env = WebShopEnv(folder)
        env.reset(seed=0)
        assert env.exact_purchase().reward == 1.0
    finally:
        open_shelves.cache_clear()


# ---------------------------------------------------------------------- parts


def test_writing_and_reading_shelves_needs_no_cache(tmp_path: Path) -> None:
    source = open_source(None, 25)
    write_shelves(source, tmp_path / "shelves")
    assert list(open_written(tmp_path / "shelves", "x").products) == list(source)


@pytest.mark.parametrize(
    ("action", "parsed"),
    [
        ("search[red  shoes]", ("search", "red  shoes")),
        ("click[Buy Now]", ("click", "buy now")),
        ("click[a[b]]", ("click[a", "b]")),
        ("click[]", ("click[]", "")),
        ("buy", ("buy", "")),
        ("think: [x] click[y]", ("think: [x] click", "y")),
    ],
)
def test_actions_are_parsed_as_officially(action: str, parsed: tuple[str, str]) -> None:
    assert parse_action(action) == parsed


def test_queries_leave_out_the_price_and_then_the_options() -> None:
    wish = "find me machine wash men's jeans with straight leg"
    text = f"{wish} with color: dark [washed] blue, and size: 36w x 32l, and price lower than 90.00 dollars"
    assert queries(text) == [f"{wish} with color: dark washed blue, and size: 36w x 32l", wish]
    assert queries("I need a bag") == ["i need a bag"]


def test_words_are_analysed_as_by_lucene() -> None:
    """Expected: DefaultEnglishAnalyzer of anserini 0.22.1."""
    assert analyze("The Men's T-Shirts & 5.5\" x 3,000 U.S.A. state-of-the-art") == [
        *("men", "t", "shirt", "5.5", "x", "3,000", "u.s.a", "state", "art"),
    ]
    assert analyze("Finish/Frame description:Solid wifi_6 don’t ©2020 ❤️ 中文 ½ café's") == [
        *("finish", "frame", "description:solid", "wifi_6", "don’t", "©", "2020", "❤️", "中", "文", "café"),
    ]
    assert tokens("a.b a.1 1.b 1,2 a,b a:b 1:2 __ _a_ ''a''b'' 1'2") == [
        *("a.b", "a", "1", "1", "b", "1,2", "a", "b", "a:b", "1", "2", "_a_", "a", "b", "1'2"),
    ]


STEMS = (
    "caresses caress|ponies poni|ties ti|cats cat|feed feed|agreed agre|plastered plaster|bled bled|"
    "motoring motor|sing sing|conflated conflat|troubled troubl|sized size|hopping hop|falling fall|"
    "hissing hiss|failing fail|filing file|happy happi|sky sky|relational relat|conditional condit|"
    "rational ration|digitizer digit|operator oper|feudalism feudal|hopefulness hope|formality formal|"
    "sensibility sensibl|triplicate triplic|electrical electr|goodness good|revival reviv|allowance allow|"
    "replacement replac|adjustment adjust|adoption adopt|homologous homolog|bowdlerize bowdler|"
    "probate probat|rate rate|cease ceas|controll control|roll roll|possibly possibl|technology technolog|"
    "is is|dais dai|400.00 400.00"
)


@pytest.mark.parametrize("pair", STEMS.split("|"))
def test_stems_are_porters(pair: str) -> None:
    """The examples of Porter's paper (run through all steps), and Lucene's two departures."""
    word, expected = pair.split()
    assert stem(word) == expected


def test_scores_are_bm25_by_hand_and_ties_go_by_id() -> None:
    """Lengths 2, 2, 4; mean 8 / 3; idf(red) = ln(1 + 0.5 / 3.5), idf(shoes) = ln(1 + 1.5 / 2.5).

    Norm of length 2: 1 / (0.9 * (0.6 + 0.4 * 2 / 2.667)) = 1.2346; of length 4: 0.9259.
    """
    index = build(["red shoe", "shoes red", "red red red hat"], lambda: ["b", "a", "c"])
    found, scores = index.search("Red shoes", limit=3)
    assert found == [1, 0, 2], "equal scores: id a before b"
    red, shoes = np.log(1 + 0.5 / 3.5), np.log(1 + 1.5 / 2.5)
    short = 1 - 1 / (1 + 1.2345679)
    np.testing.assert_allclose(scores[:2], (red + shoes) * short, rtol=1e-6)
    np.testing.assert_allclose(scores[2], red * (1 - 1 / (1 + 3 * 0.9259259)), rtol=1e-6)
    assert index.search("red shoes", limit=1)[0] == [1]
    assert index.search("the blue")[0] == []


def test_leaving_out_hopeless_documents_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Words from one in two documents to one in forty; every list is a long one."""
    rng = random.Random(0)
    texts = [" ".join(f"w{n}" for n in range(2, 41) if rng.random() < 1 / n) or "none" for _ in range(2000)]
    index = build(texts, lambda: [f"{rng.random()}" for _ in texts])
    queries = [" ".join(f"w{rng.randint(2, 40)}" for _ in range(rng.randint(1, 8))) for _ in range(200)]
    whole = [index.search(query) for query in queries]
    asked: list[Any] = []

    def watched(*arguments: Any) -> Any:
        asked.append(contenders(*arguments))
        return asked[-1]

    monkeypatch.setattr("turnwise.envs.webshop.index._LONG", 40)
    monkeypatch.setattr("turnwise.envs.webshop.index._contenders", watched)
    for query, (found, scores) in zip(queries, whole, strict=True):
        again, equal = index.search(query)
        assert (again, equal.tolist()) == (found, scores.tolist())
    left_out = [len(each) for each in asked if each is not None]
    assert len(left_out) > 50, "documents were left out"
    assert min(left_out) < 200


def test_a_repeated_word_of_a_query_counts_as_often() -> None:
    index = build(["red shoe", "blue hat"], lambda: ["a", "b"])
    once, thrice = index.search("red")[1][0], index.search("red RED reds")[1][0]
    np.testing.assert_allclose(thrice, 3 * once, rtol=1e-6)


def test_colours_are_normalised_with_the_official_quirk() -> None:
    assert normalize_color("black1901") == "black"
    assert normalize_color("dark blue") == "blue", "the first of the list, not of the text"
    assert normalize_color("xl") == "xl"
    assert normalize_color(("color", "red")) == "red"
    assert normalize_color(("color", "black1901")) == ("color", "black1901")


def test_some_options_cannot_be_matched_even_by_themselves() -> None:
    shelves, goal = shared().simulator.shelves, shared().goals[0]
    product = shelves.products[shelves.numbers[goal.asin]]
    for value, can in (("grey", True), ("midnight blue", True), ("black1901", False)):
        wanted = replace(goal, options={"color": value})
        assert reachable(product, wanted, price=1.0) == can
        assert (score(product, wanted, 1.0, {"color": value})[0] == 1.0) == can


def test_the_type_reward_falls_with_shared_nouns() -> None:
    shelves, goal = shared().simulator.shelves, shared().goals[0]
    product = shelves.products[shelves.numbers[goal.asin]]
    nouns = {goal.title: tuple("abcdefghijk"), "other": ("x",)}
    for title, r_type in (("k", 0.1), ("bc", 0.5), ("abc", 1.0), ("x", 0.0)):
        other = replace(product, title=title, query="other", product_category="other")
        tagged = {**nouns, title: tuple(title)}
        assert score(other, goal, 1.0, {}, tagged.__getitem__)[1]["r_type"] == r_type


@pytest.mark.parametrize(
    ("first", "second", "ratio"),
    [
        ("dark heather", "heather dark dark", 100),
        ("red", "('color', 'red')", 100),
        ("", "red", 0),
        ("new york mets", "new york meats", 96),  # one letter in 27 is inserted: 100 - 100 / 27
        ("3x-large", "x-large", 93),  # "large 3x" and "large x", 15 letters, differ by one: 100 - 100 / 15
        ("black1901", "color black", 50),  # 1901 and "color " of 20 letters: 100 - 100 * 10 / 20
    ],
)
def test_token_set_ratios(first: str, second: str, ratio: int) -> None:
    assert token_set_ratio(first, second) == ratio == token_set_ratio(second, first)


def test_the_stand_in_counts_words_as_nouns() -> None:
    title = "Dr. J's 16x24inch T-Shirts (Pack of 2) for Men, don't fade! 5ft/60\""
    assert stand_in_nouns(title) == (
        *("dr.", "j", "'s", "16x24inch", "shirts", "pack", "men", "n't", "fade", "5ft/60"),
    )


@pytest.mark.slow  # importing spaCy takes seconds
def test_spacy_models_are_asked_for_by_name() -> None:
    pytest.importorskip("spacy", reason="needs spaCy")
    with pytest.raises(ValueError, match="no spaCy model 'en_core_web_nope' here: python -m spacy download"):
        WebShopEnv(nouns="en_core_web_nope")


def test_without_spacy_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(ValueError, match=r'needs spaCy: pip install -e "\.\[envs\]"'):
        SpacyNouns()
