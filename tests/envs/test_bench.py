"""Racing the official engine: what can be raced is raced on the same games, and what cannot says why."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from turnwise.envs.bench import OFFICIAL, bench_against_official


@pytest.mark.skipif(find_spec("alfworld") is None, reason='needs the official engine: pip install -e ".[official]"')
def test_the_race_is_of_equals() -> None:
    race = bench_against_official("turnwise/Household-v0", num_games=2)
    assert race.same, "observations, admissible lists and outcomes are the official ones"
    assert race.num_steps == 2 * 16
    assert race.ratio == pytest.approx(race.steps_per_s / race.official_steps_per_s)
    assert race.ratio > 50
    assert race.load_ms < race.official_load_ms
    assert race.official.startswith("alfworld 0.")


@pytest.mark.parametrize(
    ("env_id", "reason"),
    [
        ("turnwise/ScienceWorld-v0", "runs the official simulator"),
        ("turnwise/TextWorld-v0", "runs the official engine"),
        ("turnwise/WebShop-v0", "no package registry"),
        ("turnwise/Houshold-v0", "Did you mean 'turnwise/Household-v0'"),
    ],
)
def test_what_cannot_be_raced_says_why(env_id: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        bench_against_official(env_id)


@pytest.mark.skipif(find_spec("alfworld") is not None, reason="the official engine is installed")
def test_without_the_official_engine_the_error_says_what_to_install() -> None:
    raced = [env_id for env_id, reason in OFFICIAL.items() if not reason]
    for env_id in raced:
        with pytest.raises(ValueError, match=r'pip install -e "\.\[official\]"'):
            bench_against_official(env_id)
