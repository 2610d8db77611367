"""The page in a real browser: it opens, filters, colours, stays small, and executes nothing that a run contains."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.view.chromium import Tab, chromium, find_chromium
from tests.view.runs import EVENT, EVIL, attempt, episode, forked_group, make_run, task, turn
from turnwise.view.page import write_view

BINARY = find_chromium()
pytestmark = pytest.mark.skipif(BINARY is None, reason="no chromium on the PATH (Debian: apt-get install chromium)")

OPENED = "document.querySelectorAll('.turn-card').length"


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    assert BINARY is not None
    with chromium(tmp_path_factory.mktemp("profile") / "chromium", BINARY) as opened:
        yield opened


@pytest.fixture
def fresh(tab: Tab) -> Iterator[Tab]:
    """The tab, whose page must not have complained in the end."""
    tab.errors.clear()
    tab.resize(1280, 800)
    yield tab
    tab.run("new Promise((done) => setTimeout(done, 50))")
    assert tab.errors == []


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two updates of a tree run: a forked group, a group whose texts attack, and one whose replies are empty."""
    folder = tmp_path_factory.mktemp("page")
    attack = [
        episode(0, task(8, EVIL), s, [turn(f"{EVIL} observed", f"{EVIL}\x1b[0m", first=True, reward=float(s == 0))])
        for s in range(3)
    ]
    plain = [attempt(1, task(9, "fetch"), s, s == 1) for s in range(3)]
    run = make_run(
        *(folder / "run", [[*forked_group(), *attack], plain], "rollout.group_size=3"),
        algorithm="aepo",
        events=[EVENT],
        eval_success=0.25,
    )
    write_view([run], folder / "view.html")
    return (folder / "view.html").as_uri()


def labels(tab: Tab) -> list[str]:
    found: list[str] = tab.run("[...document.querySelectorAll('.row .label')].map((node) => node.textContent)")
    return found


def choose(tab: Tab, name: str, value: str) -> None:
    tab.run(
        f"(() => {{ const field = document.querySelector('#filter [name={name}]'); field.value = '{value}';"
        "field.dispatchEvent(new Event(field.tagName === 'SELECT' ? 'change' : 'input')); })()"
    )


def test_the_overview_draws_its_charts_and_says_what_the_watchdog_said(fresh: Tab, page: str) -> None:
    fresh.open(page)
    fresh.until("document.querySelectorAll('.plot .main-svg').length >= 7")
    assert fresh.run("document.querySelectorAll('.event.grave').length") == 2
    assert "nearly deterministic" in fresh.run("document.querySelector('.events').textContent")
    assert fresh.run("document.querySelectorAll('.shapelayer path').length") > 0  # a mark at the event's update


def test_the_theme_can_be_switched(fresh: Tab, page: str) -> None:
    fresh.open(page)
    seen = []
    for _ in range(3):
        fresh.key("t")
        seen.append(fresh.run("getComputedStyle(document.body).backgroundColor"))
    assert len(set(seen)) == 2  # light, dark, and what the system prefers, which is light
    fresh.resize(1280, 800, dark=True)
    assert fresh.run("getComputedStyle(document.body).backgroundColor") not in (seen[0], "")


def test_the_evaluation_has_its_tables(fresh: Tab, page: str) -> None:
    fresh.open(page, "evaluation")
    text = fresh.run("document.getElementById('evaluation').textContent")
    assert "75.0 % [30.1, 95.4]" in text  # Wilson, 3 of 4
    assert "panel hash aaaa" in text


def test_filters_and_search(fresh: Tab, page: str) -> None:
    fresh.open(page, "trajectories")
    assert len(labels(fresh)) == 9
    choose(fresh, "outcome", "success")
    assert len(labels(fresh)) == 3
    choose(fresh, "outcome", "")
    choose(fresh, "stream", "branched")
    assert labels(fresh) == ["Your task is to: grow."] * 2
    choose(fresh, "stream", "")
    choose(fresh, "from", "1")
    assert len(labels(fresh)) == 3
    choose(fresh, "from", "")
    fresh.key("/", *"grow")
    assert len(labels(fresh)) == 3
    fresh.key("Escape", "j")  # Esc leaves the field: j is a key again
    fresh.until(OPENED)
    assert "3 of 9" in fresh.run("document.getElementById('count').textContent")


def test_keys_walk_through_trajectories_and_turns(fresh: Tab, page: str) -> None:
    fresh.open(page, "trajectories")
    fresh.key("j")
    fresh.until(OPENED)
    fresh.key("ArrowRight", "ArrowRight")
    assert fresh.run("document.querySelector('.turn-card.selected').id") == "turn-1"
    fresh.key("ArrowLeft")
    assert fresh.run("document.querySelector('.turn-card.selected').id") == "turn-0"
    fresh.key("ArrowDown")
    fresh.until("document.querySelector('.heading code').textContent === 'train-7-0-1'")
    fresh.key("k")
    fresh.until("document.querySelector('.heading code').textContent === 'train-7-0-0'")
    fresh.key("]", "]")
    fresh.until("document.querySelector('.heading code').textContent === 'train-7-0-2'")
    fresh.key("?")
    assert fresh.run("document.getElementById('help').open")
    where = fresh.run("location.href")
    fresh.open(*where.split("#"))  # the address names the trajectory
    fresh.until("document.querySelector('.heading code').textContent === 'train-7-0-2'")


def test_colourings(fresh: Tab, page: str) -> None:
    fresh.open(page, "trajectories")
    fresh.key("j")
    fresh.until(OPENED)
    seen = {}
    for key, name in zip("1234", ("entropy", "logprob", "advantage", "mask"), strict=True):
        fresh.key(key)
        assert fresh.run("document.querySelector('#colouring [aria-pressed=true]').dataset.value") == name
        counted = f"['token', 'by-{name}'].map((kind) => document.querySelectorAll('.reply .' + kind).length)"
        counts = fresh.run(counted)
        assert counts[0] == counts[1] > 0
        seen[name] = fresh.run(
            "getComputedStyle(document.querySelectorAll('.reply')[2].querySelector('.token')).backgroundColor"
        )
    assert len(set(seen.values())) == 4
    assert fresh.run("document.querySelectorAll('.observation .given').length") > 0  # the mask shows the model's input
    text = "[...document.querySelectorAll('#turn-0 .reply .token')].map((node) => node.textContent).join('')"
    assert fresh.run(text) == "go to drawer 1"
    fresh.run("document.querySelector('.reply .token').dispatchEvent(new PointerEvent('pointerenter'))")
    assert "log-prob -0.1" in fresh.run("document.getElementById('token').textContent")


def test_a_tree_and_the_numbers_that_made_it_branch(fresh: Tab, page: str) -> None:
    fresh.open(page, "trajectories")
    fresh.key("j")
    fresh.until(OPENED)
    assert fresh.run("document.querySelectorAll('.tree .lane').length") == 3
    assert fresh.run("document.querySelectorAll('.tree .fork').length") == 2
    assert (
        fresh.run("document.querySelectorAll('.tree .turn').length") == 4 + 2 + 1
    )  # each turn once, where it was drawn
    rows = fresh.run("[...document.querySelectorAll('.scroll table tbody tr')].map((row) => row.textContent)")
    assert [row.endswith("yes") for row in rows] == [True, True]
    fresh.run("document.querySelectorAll('.tree .lane')[1].dispatchEvent(new MouseEvent('click'))")
    fresh.until("document.querySelector('.heading code').textContent === 'train-7-0-1'")
    assert fresh.run("document.querySelectorAll('.turn-card.trunk').length") == 2


def test_what_a_run_contains_is_shown_and_never_executed(fresh: Tab, page: str) -> None:
    fresh.open(page, "trajectories")
    fresh.key("/", *"key0008")
    fresh.key("Escape", "j")
    fresh.until(OPENED)
    assert EVIL in fresh.run("document.querySelector('.observation').textContent")
    reply = fresh.run("[...document.querySelectorAll('.reply .token')].map((node) => node.textContent).join('')")
    assert reply == EVIL + "\\x1b[0m"  # control characters can be seen
    for key in "1234c":
        fresh.key(key)
    assert fresh.run("window.hacked") is None
    assert fresh.run("document.querySelectorAll('main img, main script').length") == 0


def test_the_policy_stops_a_script_that_got_in_all_the_same(tab: Tab, page: str) -> None:
    tab.resize(1280, 800)
    tab.open(page, "trajectories")
    tab.run(
        "(() => { const script = document.createElement('script'); script.textContent = 'window.hacked = 3';"
        "document.body.append(script); })()"
    )
    tab.run("document.body.insertAdjacentHTML('beforeend', `<img src=x onerror='window.hacked = 4'>`)")
    tab.run("new Promise((done) => setTimeout(done, 200))")
    assert tab.run("window.hacked") is None
    assert any("Content Security Policy" in error for error in tab.errors)
    tab.errors.clear()


def test_several_runs(fresh: Tab, tmp_path: Path) -> None:
    first = make_run(tmp_path / "a", [[attempt(0, task(1), s, s == 0) for s in (0, 1)]])
    other = make_run(tmp_path / "b", [[attempt(0, task(2), s, s == 0) for s in (0, 1)]], panel="bbbb", seed=1)
    write_view([first, other], tmp_path / "view.html")
    fresh.open((tmp_path / "view.html").as_uri(), "evaluation")
    assert "different test panels" in fresh.run("document.getElementById('evaluation').textContent")
    fresh.key("b")
    fresh.run("document.getElementById('run').value = 1")
    fresh.run("document.getElementById('run').dispatchEvent(new Event('change'))")
    fresh.key("j")
    fresh.until(OPENED)
    assert fresh.run("document.querySelector('.heading code').textContent") == "train-2-0-0"


@pytest.mark.slow
def test_ten_thousand_trajectories_stay_light(fresh: Tab, tmp_path: Path) -> None:
    """What counts is how much is in the page: rows that are visible, blocks that were needed."""
    one = [attempt(0, task(n), s, s == 0) for n in range(25) for s in range(4)]
    played = [[episode(u, t.task, t.sample, t.turns) for t in one] for u in range(100)]
    write_view([make_run(tmp_path / "run", played, "rollout.group_size=4")], tmp_path / "view.html")
    fresh.open((tmp_path / "view.html").as_uri(), "evaluation")
    fresh.run(
        "window.inflated = 0, window.Inflate = DecompressionStream,"
        "window.DecompressionStream = function (kind) { window.inflated++; return new Inflate(kind); }, 0"
    )
    fresh.key("b")
    assert "10,000 of 10,000" in fresh.run("document.getElementById('count').textContent")
    for place in (0, 100_000, 300_000, 10**9):
        fresh.run(f"document.getElementById('list').scrollTop = {place}; new Promise(requestAnimationFrame)")
        fresh.run("new Promise(requestAnimationFrame)")
        assert 0 < fresh.run("document.querySelectorAll('.row').length") < 40
    assert fresh.run("document.querySelectorAll('#trajectories *').length") < 500
    assert fresh.run("window.inflated") == 0  # nothing is unpacked before it is looked at
    choose(fresh, "outcome", "success")
    assert "2,500 of 10,000" in fresh.run("document.getElementById('count').textContent")
    fresh.key(*"jjj")
    fresh.until(OPENED)
    assert fresh.run("window.inflated") == 1
