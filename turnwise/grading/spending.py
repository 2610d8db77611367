"""What a judge takes: verdicts, requests, tokens and their cost."""

from __future__ import annotations

from turnwise.agents.chat_client import ChatClient, Usage
from turnwise.grading.verdicts import Verdicts


class Spending:
    """Counts what a client was asked for, and which verdicts were given or found."""

    def __init__(self, verdicts: Verdicts, client: ChatClient) -> None:
        self._verdicts, self._client = verdicts, client
        self._told = (0, 0, Usage())

    def take(self) -> dict[str, float]:
        """The counts since the last call.

        The cost is in the currency of the prices, and left out without prices. Where answers came without a count of
        tokens, ``uncounted`` says how many; tokens and cost are then too low.
        """
        before, verdicts, used = self._told, self._verdicts, self._client.spent
        self._told = (verdicts.given, verdicts.found, used)
        given, found, spent = before
        usage = Usage(
            used.requests - spent.requests,
            used.retries - spent.retries,
            used.prompt_tokens - spent.prompt_tokens,
            used.completion_tokens - spent.completion_tokens,
            used.uncounted - spent.uncounted,
        )
        cost = usage.cost(self._client.config)
        told: dict[str, float] = {
            "given": verdicts.given - given,
            "found": verdicts.found - found,
            "requests": usage.requests,
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
        }
        if usage.uncounted:
            told["uncounted"] = usage.uncounted
        return told if cost is None else {**told, "cost": cost}
