"""TRL's GRPOTrainer in a world of turnwise, through each of its two doors for multi-turn episodes (TRL 1.16).

``rollout_func``: TRL hands over prompts and takes back tokens. Played here as one would write it: all episodes of an
update together, one batched ``generate()`` a turn over the whole histories (with generate()'s own cache within the
reply), finished episodes dropped, token in, token out. TRL's documentation plays one episode at a time; this is the
faster reading.

``environment_factory``: TRL plays, and calls the environment's methods as tools. Two things adapt it to a model that
was cloned on plain actions: a response template that reads every reply as a call of ``act``, and a chat template that
shows a tool's answer as the next observation; tokens come out the same as in the other mode. The mode has no way for
an environment to end an episode: the model would have to stop calling tools. An answer that exceeds the token limit
does end it (TRL drops that answer), so that is what ``act`` gives at the end. More turns, the alternative, would cost
more. An empty reply is no call and ends the episode, which the other mode and ours send to the world.
"""

from __future__ import annotations

import os
import tempfile
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import numpy as np
import torch
import trl
import trl_tools
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PrinterCallback
from trl.models.utils import unwrap_model_for_generation

from turnwise.agents.actions import parse_action
from turnwise.agents.chat import ChatFormat
from turnwise.config.schema import RunConfig
from turnwise.envs.tasks import TextEnv, start
from turnwise.trajectory import Task

_OPENING = 64
"""Tokens of a typical opening observation: TRL limits what follows the prompt, turnwise the whole context."""

# TRL wants to see calls rendered; while playing it joins tokens, and no call is.
_TOOL_TEMPLATE = (
    "{% for m in messages %}{{ '<|' + ('user' if m['role'] == 'tool' else m['role']) + '|>' + m['content'] }}"
    "{% for c in m['tool_calls'] or [] %}{{ c['function']['name'] }} {{ c['function']['arguments'] | tojson }}"
    "{% endfor %}{{ '<|end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

_EVERY_REPLY_ACTS = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|assistant|>",
    "fields": {
        "tool_calls": {
            "close_pattern": r"<\|end\|>",
            "repeats": True,
            "content": "text",
            "transform": {"type": "function", "function": {"name": "act", "arguments": {"action": "{content}"}}},
        }
    },
}


class TimedTrainer(trl.GRPOTrainer):  # type: ignore[misc]
    """Counts what ``_generate`` costs and yields: in both modes all of the rollout but the environments' resets."""

    rollout_s, sampled_tokens = 0.0, 0

    def _generate(self, prompts: list[Any]) -> Any:
        began = time.process_time()
        found = super()._generate(prompts)
        self.rollout_s += time.process_time() - began
        self.sampled_tokens += sum(map(sum, found[2]))
        return found


def train(model: Path, tasks: list[list[Task]], config: RunConfig, mode: str, out: Path) -> dict[str, Any]:
    """Train on the tasks of each update as ``config`` says; the merged policy goes to ``out``.

    ``rollout_s`` and ``update_s`` (CPU seconds of the process), ``sampled_tokens``, and the ``success`` of each update.
    """
    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="sdpa")
    known, success = {task.key: task for update in tasks for task in update}, []
    plays: dict[str, Any]
    if mode == "rollout_func":
        plays = {"rollout_func": Rollouts(config, ChatFormat(tokenizer), known)}
        prompts: list[Any] = [task.key for update in tasks for task in update]
    else:
        if config.agent.context == "roles":  # a world of tools
            world, tokenizer.chat_template = trl_tools.worlds(config, known)
            tokenizer.response_template = trl_tools.RESPONSES
        else:
            world, tokenizer.chat_template = (lambda: World(config, known)), _TOOL_TEMPLATE
            tokenizer.response_template = _EVERY_REPLY_ACTS
        plays = {"environment_factory": world}
        prompts = [[{"role": "user", "content": ""}] for update in tasks for _ in update]

    def reward(completions: Any, reward: Any = None, environments: Any = None, **_: Any) -> list[float]:
        if environments is None:
            earned = reward
        else:
            earned = [world._earned(said) for world, said in zip(environments, completions, strict=True)]
        success.append(float(np.mean([value > 0 for value in earned])))
        return list(earned)

    keys = [task.key for update in tasks for task in update]
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = TimedTrainer(
            model=policy,
            reward_funcs=reward,
            args=arguments(config, len(tasks), scratch, mode),
            train_dataset=Dataset.from_dict({"prompt": prompts, "key": keys}),
            processing_class=tokenizer,
            peft_config=lora(config),
            **plays,
        )
        trainer.remove_callback(PrinterCallback)
        began = time.process_time()
        trainer.train()
        update_s = time.process_time() - began - trainer.rollout_s
    trainer.model.merge_and_unload().save_pretrained(out)
    AutoTokenizer.from_pretrained(model).save_pretrained(out)
    return {
        "rollout_s": trainer.rollout_s,
        "update_s": update_s,
        "sampled_tokens": trainer.sampled_tokens,
        "success": success,
    }


def lora(config: RunConfig) -> LoraConfig:
    assert config.lora is not None
    own = config.lora
    return LoraConfig(
        r=own.rank, lora_alpha=own.alpha, target_modules=own.target_modules, task_type="CAUSAL_LM", lora_dropout=0.0
    )


def arguments(config: RunConfig, updates: int, folder: str, mode: str) -> Any:
    """TRL's names for a configuration of GRPO; what costs time and turnwise does not do is off."""
    optimizer, rollout, agent = config.optimizer, config.rollout, config.agent
    algorithm: Any = config.algorithm
    limit = agent.max_context_tokens - agent.max_reply_tokens
    return trl.GRPOConfig(
        output_dir=folder,
        max_steps=updates * optimizer.num_minibatches,
        num_generations=rollout.group_size,
        per_device_train_batch_size=rollout.num_tasks * rollout.group_size // optimizer.num_minibatches,
        steps_per_generation=optimizer.num_minibatches,
        num_iterations=optimizer.epochs,
        learning_rate=optimizer.lr,
        lr_scheduler_type="constant",
        adam_beta1=optimizer.betas[0],
        adam_beta2=optimizer.betas[1],
        weight_decay=optimizer.weight_decay,
        max_grad_norm=optimizer.grad_clip,
        beta=algorithm.kl_coef,
        epsilon=algorithm.clip_low,
        delta=algorithm.dual_clip,
        loss_type="bnpo",  # the mean over the minibatch's tokens
        scale_rewards="group",
        temperature=rollout.temperature,
        max_completion_length=limit - _OPENING if mode == "environment_factory" else limit,
        generation_kwargs={"max_new_tokens": agent.max_reply_tokens},
        max_tool_calling_iterations=_most_calls(config),
        seed=config.seed,
        shuffle_dataset=False,
        use_cpu=config.device == "cpu",
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )


def _most_calls(config: RunConfig) -> int | None:
    """Replies with calls in an episode: a world of tools ends it after so many. None: no limit."""
    if config.agent.context != "roles":
        return None
    env: Any = config.env.make()
    return int(env.unwrapped.step_limit) - 1


@dataclass(slots=True)
class _Episode:
    env: TextEnv
    ids: list[int]  # prompt, then replies and observations
    opening: int  # tokens of the prompt
    mask: list[int] = field(default_factory=list)  # of what follows the prompt: 1 on sampled tokens
    reward: float = 0.0
    over: bool = False


class Rollouts:
    """A ``rollout_func``: every prompt is the key of a task; TRL repeats it for each attempt."""

    def __init__(self, config: RunConfig, chat: ChatFormat, tasks: dict[str, Task]) -> None:
        self.config, self.chat, self.tasks = config, chat, tasks
        self.limit = config.agent.max_context_tokens - config.agent.max_reply_tokens
        self.envs: list[TextEnv] = []

    def __call__(self, prompts: list[str], trainer: Any) -> dict[str, Any]:
        while len(self.envs) < len(prompts):
            self.envs.append(self.config.env.make())
        episodes = [self.open(env, key) for env, key in zip(self.envs, prompts, strict=False)]
        with (
            unwrap_model_for_generation(
                trainer.model_wrapped, trainer.accelerator, generation_kwargs=trainer.generation_kwargs
            ) as model,
            torch.no_grad(),
        ):
            while playing := [e for e in episodes if not e.over and len(e.ids) <= self.limit]:
                replies = generate(model, [e.ids for e in playing], trainer.generation_config, self.chat)
                for episode, reply in zip(playing, replies, strict=True):
                    self.act(episode, reply)
        return {
            "prompt_ids": [e.ids[: e.opening] for e in episodes],
            "completion_ids": [e.ids[e.opening :] for e in episodes],
            "logprobs": None,  # TRL uses them with vLLM only
            "env_mask": [e.mask for e in episodes],
            "reward": [e.reward for e in episodes],
        }

    def open(self, env: TextEnv, key: str) -> _Episode:
        observation, _ = start(env, self.tasks[key], self.config.seed)
        ids = self.chat.open(observation).tolist()
        return _Episode(env, ids, len(ids))

    def act(self, episode: _Episode, reply: list[int]) -> None:
        text = self.chat.decode(np.asarray(reply))
        action = parse_action(text, self.config.agent.action_format)
        observation, reward, terminated, truncated, _ = episode.env.step(action.text)
        episode.reward += float(reward)
        episode.over = terminated or truncated
        episode.ids += reply
        episode.mask += [1] * len(reply)
        shown = [] if episode.over else self.chat.extend(np.asarray(reply), observation).tolist()
        if len(episode.ids) + len(shown) > self.limit:
            episode.over = True
        elif shown:
            episode.ids += shown
            episode.mask += [0] * len(shown)


def generate(model: Any, histories: list[list[int]], settings: GenerationConfig, chat: ChatFormat) -> list[list[int]]:
    """One reply to each history: left-padded, one ``generate()`` for all, cut after the end token."""
    pad, width = int(chat.tokenizer.pad_token_id), max(map(len, histories))
    ids = torch.full((len(histories), width), pad)
    mask = torch.zeros_like(ids)
    for row, history in enumerate(histories):
        ids[row, width - len(history) :] = torch.tensor(history)
        mask[row, width - len(history) :] = 1
    found = model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)[:, width:].tolist()
    ends = [next((i for i, token in enumerate(reply) if token in chat.end_ids), len(reply)) for reply in found]
    return [reply[: end + 1] for reply, end in zip(found, ends, strict=True)]


class World:
    """An environment for ``environment_factory``; TRL gives ``reset`` the columns of the dataset's row."""

    def __init__(self, config: RunConfig, tasks: dict[str, Task]) -> None:
        self._config, self._tasks, self._env = config, tasks, config.env.make()
        self._limit = config.agent.max_context_tokens
        self.reward = 0.0

    def reset(self, key: str, **_: Any) -> str:
        self.reward = 0.0
        return start(self._env, self._tasks[key], self._config.seed)[0]

    def act(self, action: str) -> str:
        """Do something in the world.

        Args:
            action: What to do, such as ``go to drawer 1``.

        Returns:
            What is seen afterwards.
        """
        text = parse_action(action, self._config.agent.action_format).text
        observation, reward, terminated, truncated, _ = self._env.step(text)
        self.reward += float(reward)
        return "the end " * self._limit if terminated or truncated else observation

    def _earned(self, completion: Any) -> float:
        return self.reward
