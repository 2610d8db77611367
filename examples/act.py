"""A trained agent in a loop of your own.

python examples/act.py runs/RUN [ENV_ID]
"""

import sys

import gymnasium

import turnwise


def main(run: str, env_id: str = "turnwise/Household-v0", seed: int = 0) -> bool:
    env = gymnasium.make(env_id)
    agent = turnwise.Agent.load(run)
    observation, info = env.reset(seed=seed)
    agent.reset(seed=seed)
    ended = False
    while not ended:
        action = agent.act(observation, info)
        print(f"{observation}\n> {action}")
        observation, _, terminated, truncated, info = env.step(action)
        ended = terminated or truncated
    print(observation)
    return bool(info.get("success"))


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("Say which run: python examples/act.py runs/RUN [ENV_ID]")
    main(*sys.argv[1:])
