"""Replies have the form that their request asks for, and the learner scores them under what the form left."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import gymnasium
import numpy as np
import pytest
import torch
from pydantic import BaseModel, Field
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from tests.agents.test_rendering import FAMILIES, GLM4, GLM_TOKENS, with_special
from tests.agents.test_templates import bytes_of, pieces
from tests.models import TEXTS, TINY
from tests.worlds import Echo
from turnwise.agents.acting import Acting
from turnwise.agents.chat import ChatFormat
from turnwise.agents.collector import Collector
from turnwise.agents.forms import Forms, stored_form
from turnwise.agents.jobs import Job
from turnwise.agents.prompts import AgentConfig
from turnwise.agents.seating import ModelAgent
from turnwise.agents.toolcalls import DIALECTS
from turnwise.agents.wishes import shortened
from turnwise.cloning.rows import episode_rows
from turnwise.cloning.settings import WarmstartConfig
from turnwise.config.files import load_config
from turnwise.envs.forms import Form, call_schema, closed
from turnwise.envs.said import Call, Said, heard
from turnwise.envs.tasks import panel
from turnwise.errors import AgentError
from turnwise.models import processing
from turnwise.models.engine import Engine, Reply, Sampling, SlotEngine
from turnwise.models.loading import save_model
from turnwise.models.policy import Policy
from turnwise.models.scratch import new_model, train_tokenizer
from turnwise.models.settings import LoRAConfig
from turnwise.replay.batch import layout
from turnwise.replay.store import TrajectoryReader, TrajectoryWriter
from turnwise.runs.directory import RunDirectory
from turnwise.runs.reproducing import reproduce
from turnwise.trajectory import RolloutFinished, Task, Trajectory, TurnFinished, group_by_task

pytest.importorskip("llguidance")

UNUSED = 40
"""Ids of the model that no token of its tokenizer has."""


class Place(BaseModel):
    city: str = Field(max_length=8)
    level: Literal["low", "high"]


class Answer(BaseModel):
    """An answer with a part of another model, which its schema refers to."""

    where: list[Place] = Field(max_length=2)
    count: int = Field(ge=0, le=99)
    sure: bool


def tool(name: str, schema: type[BaseModel]) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "description": "", "parameters": schema.model_json_schema()}}


TOOLS = [tool("put", Place), tool("tell", Answer)]
KINDS: dict[str, type[BaseModel]] = {"put": Place, "tell": Answer}


class Asking(Echo):
    """A world in roles, whose requests want a form of their replies."""

    def __init__(self, form: Form | None, tools: list[dict[str, Any]]) -> None:
        super().__init__()
        self.form, self.offered = form, tools

    def _asked(self, info: dict[str, Any]) -> dict[str, Any]:
        sampling = {} if self.form is None else {"sampling": {"form": self.form.plain()}}
        return {**info, "messages": [{"role": "user", "content": "Well?"}], "tools": self.offered, **sampling}

    def reset(self, **more: Any) -> Any:
        observation, info = super().reset(**more)
        return observation, self._asked(info)

    def step(self, action: str) -> Any:
        *rest, info = super().step(action)
        return (*rest, self._asked(info))


class Remembering(Asking):
    """The same with snapshots."""

    def snapshot(self) -> Any:
        return copy.deepcopy(self.__dict__)

    def restore(self, snapshot: Any) -> None:
        self.__dict__.update(copy.deepcopy(snapshot))


def made(
    family: str = "hermes", own: Any = None, size: Mapping[str, Any] = MappingProxyType({}), **settings: Any
) -> tuple[Any, ChatFormat, AgentConfig]:
    own = own or (with_special(GLM4, *GLM_TOKENS) if family == "glm4" else bytes_of(FAMILIES[family]))
    usual = {"context": "roles", "action_format": "calls", "max_reply_tokens": 400, "max_context_tokens": 4096}
    config = AgentConfig(**{**usual, **settings})
    usual_size = {"vocab_size": len(own), "max_length": 4096}
    model = new_model(TINY.model_copy(update=usual_size | dict(size)), own, seed=0)
    model.resize_token_embeddings(len(own) + UNUSED)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(4)
    ends = own.convert_tokens_to_ids(["<|user|>", "<|observation|>"]) if family == "glm4" else ()
    return model, ChatFormat.of(own, config, ends), config


def played(
    of: tuple[Any, ChatFormat, AgentConfig],
    form: Form | None,
    tools: Any = (),
    num: int = 4,
    temperature: float = 1.0,
    engine: Engine | None = None,
) -> list[Trajectory]:
    model, chat, config = of
    engine = engine or SlotEngine(model, num_slots=3, max_length=4096, end_ids=chat.end_ids)
    collector = Collector(lambda: Asking(form, list(tools)), ModelAgent(engine, chat, config))
    jobs = [Job(Task("Asking", "train", n, str(n)), 0, 0, n) for n in range(num)]
    found = collector.collect(jobs, Sampling(temperature, max_tokens=config.max_reply_tokens))
    errors = [each.end_reason for each in found if each.end == "error"]
    assert not errors, errors
    return found


def turns(found: list[Trajectory]) -> list[Any]:
    return [turn for each in found for turn in each.turns]


def check_schema(found: list[Trajectory], kind: type[BaseModel] = Answer) -> None:
    for turn in turns(found):
        assert turn.valid
        said = heard(turn.action)
        assert (said.calls, said.fault) == ((), None)
        kind.model_validate_json(said.content, strict=True)


@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_every_reply_fits_the_schema(temperature: float) -> None:
    found = played(made(), Form(Answer.model_json_schema()), temperature=temperature)
    check_schema(found)
    assert len({turn.reply for turn in turns(found)}) > 10 or temperature == 0
    assert any(len(heard(turn.action).content) > 60 for turn in turns(found)) or temperature == 0


def sentencepiece() -> Any:
    """As Llama's: spaces are part of pieces, and what no piece has is spelled in bytes, which are no special tokens."""
    own = pieces(FAMILIES["hermes"], "never")
    plain = json.loads(own.backend_tokenizer.to_str())
    plain["added_tokens"] = [token for token in plain["added_tokens"] if not token["content"].startswith("<0x")]
    made_of = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(plain)), bos_token="<s>", eos_token="</s>"
    )
    made_of.chat_template = own.chat_template
    return made_of


def test_replies_in_pieces_fit_too() -> None:
    check_schema(played(made(own=sentencepiece()), Form(Answer.model_json_schema()), num=3))


def test_a_fork_is_held_to_the_form_too() -> None:
    """From a snapshot, where nothing is shown again."""
    of, form = made(), Form(Place.model_json_schema())
    engine = SlotEngine(of[0], num_slots=2, max_length=4096, end_ids=of[1].end_ids)
    collector = Collector(lambda: Remembering(form, []), ModelAgent(engine, of[1], of[2]))
    rollouts = collector.rollouts(Sampling(max_tokens=400), 0)
    first = rollouts.start(Task("Asking", "train", 0, "0"), 0)
    found = list[Trajectory]()
    for event in rollouts.events():
        if isinstance(event, TurnFinished) and event.rollout == first and event.turn == 0:
            rollouts.fork(first, 1)
        if isinstance(event, RolloutFinished):
            found.append(event.trajectory)
    assert [each.fork is None for each in found].count(False) == 1
    check_schema(found, Place)


def test_learner_and_sampler_agree_on_what_the_form_left() -> None:
    of = made()
    policy = Policy(of[0], of[1].tokenizer, lora=LoRAConfig(rank=2, alpha=4))
    found = played((policy.sampler, *of[1:]), Form(Answer.model_json_schema()), TOOLS[:1])

    def deviation(trajectories: list[Trajectory]) -> float:
        batch = layout(group_by_task(trajectories))
        with torch.no_grad():
            scores = policy.score(batch).logprobs
        mask = batch.action_mask
        assert mask.any()
        return float((scores[mask] - batch.behaviour_logprobs[mask]).abs().max())

    assert deviation(found) < 1e-5
    counts = np.concatenate([turn.processing.counts for turn in turns(found)])
    assert (counts > 1).any(), "few ids were allowed"
    assert (counts < 0).any(), "nearly all were"
    free = [replace(e, turns=tuple(replace(turn, processing=None) for turn in e.turns)) for e in found]
    assert deviation(free) > 0.1


def test_equal_sets_are_kept_once_where_there_are_many(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """They are the same when they are read back, cut or laid out."""
    of, form = made(), Form(Place.model_json_schema())
    usual = played(of, form, num=2)
    monkeypatch.setattr(processing, "MANY", 0)
    found = played(of, form, num=2)
    writer = TrajectoryWriter(tmp_path / "file")
    writer.append(0, found)
    for each, other, again in zip(usual, found, TrajectoryReader(tmp_path / "file"), strict=True):
        for turn, other_turn, read in zip(each.turns, other.turns, again.turns, strict=True):
            sets = [ids.tolist() for ids in turn.processing.sets()]
            assert len(other_turn.processing.ids) < len(turn.processing.ids)
            for made_ in (other_turn, read):
                assert [ids.tolist() for ids in made_.processing.sets()] == sets
            reply = Reply(0, other_turn.action_ids, other_turn.logprobs, other_turn.entropies, True)
            cut = shortened(replace(reply, processing=other_turn.processing), 5).processing
            assert cut is not None
            assert [ids.tolist() for ids in cut.sets()] == sets[:5]
    batches = [layout(group_by_task(each)) for each in (usual, found)]
    assert all(b.sets is not None for b in batches)
    assert torch.equal(batches[0].sets.ids, batches[1].sets.ids)  # type: ignore[union-attr]
    assert torch.equal(batches[0].allowed, batches[1].allowed)  # type: ignore[arg-type]


def test_ids_that_no_token_has_are_never_drawn() -> None:
    of = made()
    for turn in turns(played(of, Form({"type": "string", "maxLength": 30}))):
        assert turn.action_ids.max() < len(of[1].tokenizer)
        unused = set(range(len(of[1].tokenizer), len(of[1].tokenizer) + UNUSED))
        assert (turn.processing.counts < 0).any()
        for count, ids in zip(turn.processing.counts, turn.processing.sets(), strict=True):
            assert unused & set(ids.tolist()) == (unused if count < 0 else set())


@pytest.mark.parametrize("family", [*FAMILIES, "glm4"])
@pytest.mark.parametrize("one_call", [True, False])
def test_calls_can_be_required(family: str, one_call: bool) -> None:
    found = played(made(family), Form(None, ("put", "tell"), one_call), TOOLS, num=8)
    numbers, names = set(), set()
    for turn in turns(found):
        said = heard(turn.action)
        if len(turn.action_ids) == 400:  # cut in the middle of one more
            continue
        assert turn.valid
        assert said.content == ""
        assert said.calls
        numbers.add(len(said.calls))
        for call in said.calls:
            names.add(call.name)
            KINDS[call.name].model_validate_json(json.dumps(dict(call.arguments)), strict=True)
    assert names <= {"put", "tell"}
    assert (max(numbers) > 1) == (family != "llama3" and not one_call)


def test_a_named_function_is_called_once() -> None:
    found = played(made(), Form(None, ("put",), True), TOOLS)
    assert {tuple(call.name for call in heard(turn.action).calls) for turn in turns(found)} == {("put",)}


def test_beside_tools_a_reply_fits_the_schema_or_calls() -> None:
    found = played(made(), Form(Answer.model_json_schema(), ("put", "tell")), TOOLS, num=12)
    called = [turn for turn in turns(found) if heard(turn.action).calls]
    assert 0 < len(called) < len(turns(found))
    for turn in turns(found):
        said = heard(turn.action)
        if len(turn.action_ids) == 400:
            continue
        assert turn.valid
        assert bool(said.calls) != bool(said.content)
        if said.content:
            Answer.model_validate_json(said.content, strict=True)


def test_tags_in_texts_are_text() -> None:
    tags = "<think></think><tool_call>{}</tool_call><think>"
    (first, *_) = turns(played(made(), Form({"const": {"a": tags}}), TOOLS, num=1))
    assert json.loads(heard(first.action).content) == {"a": tags}
    assert heard(first.action).calls == ()


def offering(**parameters: Any) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": "put", "description": "", "parameters": parameters}}]


@pytest.mark.parametrize("family", ["qwen_xml", "lfm2", "glm4"])
def test_arguments_may_be_missing_where_the_schema_says_so(family: str) -> None:
    kinds = {"a": {"type": "integer"}, "b": {"type": "string", "maxLength": 3}, "c": {"type": "boolean"}}
    tools = offering(type="object", properties={**kinds, "d": {"type": "null"}}, required=["c"])
    found = turns(played(made(family), Form(None, ("put",), True), tools, num=8))
    given = [heard(turn.action).calls[0].arguments for turn in found if len(turn.action_ids) < 400]
    assert all(list(each) == [key for key in "abcd" if key in each] for each in given)
    assert all(isinstance(each["c"], bool) and each.get("d") is None for each in given)
    assert {frozenset(each) for each in given} > {frozenset("c")}, "some have more"
    assert all(isinstance(each.get("a", 0), int) and len(each.get("b", "")) <= 3 for each in given)
    (none,) = turns(played(made(family), Form(None, ("put",), True), offering(), num=1))[:1]
    assert heard(none.action).calls[0].arguments == {}


def test_texts_between_tags_hold_no_tag_and_any_other_sign() -> None:
    """Which is what the reader takes for the value."""
    of = made("qwen_xml")
    forms = Forms(of[1])
    tools = offering(type="object", properties={"a": {"type": "string"}}, required=["a"])
    for text in ("", "\n", 'say "<x>" & \\n\n', "</param", "ż🎈"):
        reply = of[1].dialect.write(Said("", (Call("put", {"a": text}),)))
        held = forms.processor(Form(None, ("put",), True), tools)
        for token in of[1].reply(reply).tolist():
            assert token in ids_left(held.before(None), len(of[1].tokenizer)), (text, token)
            held.after(token, 0.0, 0.0)
        assert not held.fault
        assert of[1].dialect.read(reply, tools).calls[0].arguments == {"a": text}
    for text in ("</parameter>x", "<tool_call>", "</tool_call>"):
        held, allowed = forms.processor(Form(None, ("put",), True), tools), list[bool]()
        for token in of[1].reply(of[1].dialect.write(Said("", (Call("put", {"a": text}),)))).tolist():
            allowed.append(token in ids_left(held.before(None), len(of[1].tokenizer)))
            held.after(token, 0.0, 0.0)
        assert not all(allowed), text


@cache
def with_words(family: str) -> ChatFormat:
    """Its tokenizer has thousands of words, all of which a grammar looks at before each token."""
    pages = [page.read_text() for page in sorted((Path(__file__).parents[2] / "docs").glob("*.md"))]
    own = bytes_of(GLM4 if family == "glm4" else FAMILIES[family], pages, 4000)
    if family == "glm4":
        own.add_special_tokens({"additional_special_tokens": list(GLM_TOKENS)})
    return made(family, own)[1]


@pytest.mark.parametrize("family", ["qwen_xml", "glm4"])
@pytest.mark.parametrize("most", [200, 1000])
def test_texts_between_tags_may_be_long(family: str, most: int) -> None:
    """A short one may end, and none is longer than its schema says."""
    chat = with_words(family)
    forms, form, num_ids = Forms(chat), Form(None, ("put",), True), len(chat.tokenizer)
    tools = offering(type="object", properties={"a": {"type": "string", "maxLength": most}}, required=["a"])
    for text, fits in (("mug", True), ("mug " * (most // 4), True), ("mug " * (most // 4) + "x", False)):
        held, allowed = forms.processor(form, tools), list[bool]()
        for token in chat.reply(chat.dialect.write(Said("", (Call("put", {"a": text}),)))).tolist():
            allowed.append(token in ids_left(held.before(None), num_ids))
            held.after(token, 0.0, 0.0)
            if not allowed[-1]:
                break
        assert all(allowed) == fits, (text[:8], held.fault)
        assert not (fits and held.fault)


def test_set_phrases_of_a_tokenizer_can_be_drawn() -> None:
    """A token may begin in what must come and end behind a choice: here of the tool."""
    calls = [Call(name, {"a": word * 3}) for name in ("put", "get") for word in "xyzuvw"]
    replies = [DIALECTS["hermes"].write(Said("", (call,))) for call in calls]
    own = train_tokenizer([*TEXTS, *20 * replies], 400, 20, tools=True)
    chat = ChatFormat.of(own, AgentConfig(context="roles", action_format="calls"))
    (put,) = offering(type="object", properties={"a": {"type": "string"}}, required=["a"])
    get = {**put, "function": {**put["function"], "name": "get"}}
    phrases = {n for n, t in own.backend_tokenizer.get_added_tokens_decoder().items() if "put" in t.content}
    assert phrases & set(chat.reply(replies[0]).tolist())
    for reply in replies:
        held = Forms(chat).processor(Form(None, ("put", "get")), [put, get])
        for token in chat.reply(reply).tolist():
            assert token in ids_left(held.before(None), len(own)), own.decode([token])
            held.after(token, 0.0, 0.0)
        assert not held.fault


def ids_left(step: Any, num_ids: int) -> set[int]:
    return set(step.allowed.tolist()) if step.allowed is not None else set(range(num_ids)) - set(step.excluded.tolist())


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({"properties": {"a": {"type": "string", "pattern": "x"}}}, "the text 'a' has pattern"),
        ({"properties": {"a": {"enum": ["<tool_call>"], "type": "string"}}}, "'a' has a tag of the dialect in it"),
        ({"properties": {"a": {"type": "string", "maxLength": 2001}}}, "maxLength=2001, and lengths up to 2000"),
        ({"properties": {"a": {"type": "string", "minLength": 2001}}}, "minLength=2001, and lengths up to 2000"),
        ({"properties": {"a b>": {}}}, "the name 'a b>' is not of letters"),
        ({"anyOf": [{}, {}]}, "its parameters have anyOf"),
    ],
)
def test_what_cannot_be_spelled_between_tags_is_refused(parameters: dict[str, Any], told: str) -> None:
    tools = offering(**parameters)
    with pytest.raises(ValueError, match=f"a call of put cannot be forced in the dialect qwen_xml .*{told}"):
        Forms(made("qwen_xml")[1]).follows(Form(None, ("put",), True), tools)
    assert not Forms(made("qwen_xml")[1]).follows(Form(None, ("put",), must=False), tools)


def test_special_tokens_of_a_dialect_are_themselves() -> None:
    own = bytes_of(FAMILIES["hermes"])
    own.add_special_tokens({"additional_special_tokens": ["<tool_call>", "</tool_call>"]})
    found = played(made(own=own), Form(None, ("put",), True), TOOLS[:1])
    begin, end = own.convert_tokens_to_ids(["<tool_call>", "</tool_call>"])
    for turn in turns(found):
        assert turn.action_ids[0] == begin
        assert turn.action_ids[-2] == end
        assert heard(turn.action).calls[0].name == "put"


OPENED = FAMILIES["hermes"].replace("<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>\n{% endif %}")


@pytest.mark.parametrize("tokens", [0, 7])
def test_a_thought_that_the_header_opens_comes_first(tokens: int) -> None:
    of = made(own=bytes_of(OPENED), thought_tokens=tokens)
    assert of[1].opens_thought
    found = played(of, Form(Place.model_json_schema()))
    check_schema(found, Place)
    for turn in turns(found):
        assert turn.reply.startswith("<think>")
        assert (turn.processing.counts[:tokens] < 0).all(), "only the ends are left out of a thought"
        assert turn.processing.forced[tokens : tokens + 2].all()


def test_a_thought_without_end_is_told_of() -> None:
    of = made(own=bytes_of(OPENED), max_reply_tokens=20)
    for turn in turns(played(of, Form(Place.model_json_schema()), num=2)):
        assert not turn.valid
        assert heard(turn.action).fault == "the reply ended inside a thought"


def test_a_reply_that_is_cut_is_no_whole_json() -> None:
    of = made(max_reply_tokens=9)
    for turn in turns(played(of, Form(Answer.model_json_schema()), num=2)):
        assert not turn.valid
        assert heard(turn.action).fault == "the reply is no whole JSON"
        assert heard(turn.action).content.startswith("{")


class Own:
    """A dialect of the user's, which does not say how calls are spelled."""

    read, write = DIALECTS["hermes"].read, DIALECTS["hermes"].write


def test_dialects_that_cannot_be_forced() -> None:
    must, may = Form(None, ("put",), True), Form(None, ("put", "tell"), must=False)
    own = "tests.agents.test_forms:Own"
    with pytest.raises(AssertionError, match="cannot be forced"):
        played(made(tool_calls=own), must, TOOLS, num=1)
    with pytest.raises(AssertionError, match="not both"):
        played(made("llama3"), Form({"type": "object"}, ("put",)), TOOLS, num=1)
    of = made(tool_calls=own, max_reply_tokens=9)
    engine = SlotEngine(of[0], num_slots=1, max_length=4096, end_ids=of[1].end_ids)
    collector = Collector(lambda: Asking(may, TOOLS), ModelAgent(engine, of[1], of[2]))
    (found,) = collector.collect([Job(Task("Asking", "train", 0, "0"), 0, 0, 0)], Sampling(max_tokens=9))
    assert all(turn.processing is None for turn in found.turns)
    assert collector.numbers() == {"gateway/ignored_sampling": len(found.turns)}


def test_an_engine_without_processors_keeps_no_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """A form that must be kept ends all at the first request; calls that may be left free are, and are counted."""
    of = made(max_reply_tokens=9)
    engine = SlotEngine(of[0], num_slots=1, max_length=4096, end_ids=of[1].end_ids)
    monkeypatch.setattr(engine, "processes", False)
    for form in (Form({"type": "object"}), Form(None, ("put",), True)):
        with pytest.raises(AgentError, match=r"a vLLM server cannot keep: leave rollout\.vllm\.url out"):
            played(of, form, TOOLS, num=1, engine=engine)
    engine = SlotEngine(of[0], num_slots=1, max_length=4096, end_ids=of[1].end_ids)
    monkeypatch.setattr(engine, "processes", False)
    may = Form(None, ("put", "tell"), must=False)
    collector = Collector(lambda: Asking(may, TOOLS), ModelAgent(engine, of[1], of[2]))
    (found,) = collector.collect([Job(Task("Asking", "train", 0, "0"), 0, 0, 0)], Sampling(max_tokens=9))
    assert all(turn.processing is None for turn in found.turns)
    assert collector.numbers() == {"gateway/ignored_sampling": len(found.turns)}


def test_a_reply_that_was_not_held_is_read_freely() -> None:
    """Whoever stored it could not force calls: the same request says so today."""
    (turn,) = turns(played(made(max_reply_tokens=9), None, TOOLS, num=1))[:1]
    request = {"sampling": {"form": Form(None, ("put",), must=False).plain()}}
    assert turn.processing is None
    assert stored_form(turn, request, DIALECTS["hermes"]) is None
    (held,) = turns(played(made(), Form(None, ("put",), True), TOOLS, num=1))[:1]
    assert stored_form(held, request, DIALECTS["hermes"]) == Form(None, ("put",), must=False)
    assert stored_form(held, request, Own()) is None


def test_a_form_is_plain_data() -> None:
    for form in (Form({"type": "object"}), Form(None, ("a", "b"), True), Form({}, ("a",), must=False)):
        assert Form.of({"form": json.loads(json.dumps(form.plain()))}) == form
    assert Form.of({}) is None


def test_arguments_that_refer_to_shared_parts_find_them() -> None:
    found = call_schema({"name": "tell", "parameters": Answer.model_json_schema()}, "arguments")
    assert "Place" in found["$defs"]
    assert "$defs" not in found["properties"]["arguments"]
    assert call_schema({"name": "go"}, "arguments")["properties"]["arguments"] == {"type": "object", "properties": {}}


def test_objects_have_the_properties_that_they_declare() -> None:
    named = {"type": "object", "properties": {"properties": {"type": "string"}}}
    shut = {**named, "additionalProperties": False}
    assert closed(named) == shut
    assert closed({"anyOf": [named, {"items": named}], "$defs": {"x": named}}) == {
        "anyOf": [shut, {"items": shut}],
        "$defs": {"x": shut},
    }
    for kept in ({"type": "object"}, {**named, "additionalProperties": {"type": "null"}}, {"allOf": [named, named]}):
        assert closed(kept) == kept


SELF = {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/a"}, "$defs": {"a": {"$ref": "#/$defs/a"}}}


@pytest.mark.parametrize("header", [FAMILIES["hermes"], OPENED])
def test_a_grammar_that_allows_nothing_fails_the_episode_and_not_the_policy(header: str) -> None:
    """A world of the user's may give such a schema; after the bracket nothing can come."""
    of = made(own=bytes_of(header), thought_tokens=0 if header == OPENED else None)
    assert of[1].opens_thought == (header == OPENED)
    engine = SlotEngine(of[0], num_slots=1, max_length=4096, end_ids=of[1].end_ids)
    agent = ModelAgent(engine, of[1], of[2])
    collector = Collector(lambda: Asking(Form(SELF), []), agent)
    (found,) = collector.collect([Job(Task("Asking", "train", 0, "0"), 0, 0, 0)], Sampling(max_tokens=400))
    assert (found.end, found.turns) == ("error", ())
    assert found.end_reason.startswith("ValueError: the reply cannot be held to its form: ")
    acting = Acting(agent)
    acting.reset()
    with pytest.raises(ValueError, match="cannot be held to its form"):
        acting.act("", {"messages": [{"role": "user", "content": "Well?"}], "sampling": {"form": {"schema": SELF}}})


NOTES = {"properties": {name: {"const": "<think>"} for name in "abc"}, "required": ["a", "b", "c"]}


class Held(Asking):
    """Wants a call whose texts spell a tag."""

    def __init__(self) -> None:
        note = {"type": "function", "function": {"name": "note", "description": "", "parameters": NOTES}}
        super().__init__(Form(None, ("note",), one_call=True), [note])


gymnasium.register("tests/Held-v0", Held)


def test_stored_replies_are_read_in_their_form(tmp_path: Path) -> None:
    """Played again they are the same, and cloned they are not written anew."""
    named = "tests.agents.test_forms:tests/Held-v0"
    config = load_config(None, ["agent.context=roles", "agent.action_format=calls"], env=named)
    model, chat, settings = made()
    engine = SlotEngine(model, num_slots=1, max_length=4096, end_ids=chat.end_ids)
    job = Job(panel(config.env.make(), "train")[0], 0, 0, 0)
    (played_,) = Collector(config.env.make, ModelAgent(engine, chat, settings)).collect([job], Sampling(max_tokens=400))
    assert [turn.valid for turn in played_.turns] == [True] * 3
    run = RunDirectory.create(tmp_path / "run", config, {})
    save_model(model, chat.tokenizer, run.model_path)
    TrajectoryWriter(run.trajectories_path).append(0, [played_])
    found = reproduce(run.path, played_.episode)
    assert (found.difference, found.num_turns) == (None, 3)
    rows = episode_rows(played_, chat, settings, "", WarmstartConfig(), as_is=False)
    for row, turn in zip(rows, played_.turns, strict=True):
        assert turn.reply in chat.decode(row.ids)
    spaced = [chat.dialect.write(heard(turn.action)) for turn in played_.turns]
    assert spaced != [turn.reply for turn in played_.turns], "written anew they have other spaces"
