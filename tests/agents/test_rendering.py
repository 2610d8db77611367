"""Conversations with tools have the tokens that the model's own template gives them, whatever their contents spell."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from tests.agents.test_templates import CONTROL, TOKENIZERS, bytes_of
from tests.models import TEXTS
from turnwise.agents.chat import ChatFormat
from turnwise.agents.prompts import AgentConfig
from turnwise.agents.rendering import Rendering, abilities_of
from turnwise.agents.templates import rendered
from turnwise.envs.said import Call, Said
from turnwise.models.scratch import train_tokenizer

# Each as a family of models has it: how tools are shown, how calls, how results.
_HERMES_CALL = (
    "<tool_call>\\n{\"name\": ' + c['function']['name'] | tojson + ', \"arguments\": ' "
    "+ c['function']['arguments'] | tojson + '}\\n</tool_call>"
)
HERMES = (
    "{% if tools %}<|im_start|>system\n{{ messages[0]['content'] + '\\n' if messages[0]['role'] == 'system' else '' }}"
    "<tools>{% for t in tools %}{{ '\\n' + t | tojson }}{% endfor %}\n</tools><|im_end|>\n{% endif %}"
    "{% for m in messages %}{% if m['role'] == 'tool' %}"
    "{% if loop.index0 == 0 or messages[loop.index0 - 1]['role'] != 'tool' %}<|im_start|>user{% endif %}"
    "{{ '\\n<tool_response>\\n' + m['content'] + '\\n</tool_response>' }}"
    "{% if loop.last or messages[loop.index0 + 1]['role'] != 'tool' %}<|im_end|>\n{% endif %}"
    "{% elif m['role'] != 'system' or not tools %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
    "{% if m['reasoning_content'] and loop.last %}{{ '<think>\\n' + m['reasoning_content'] + '\\n</think>\\n\\n' }}"
    "{% endif %}{{ m['content'] }}"
    "{% for c in m['tool_calls'] or [] %}{{ '\\n' if m['content'] or not loop.first else '' }}"
    "{{ '" + _HERMES_CALL + "' }}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% if tools %}{{ '<|head|>system<|head|>\\n\\n' }}{% for t in tools %}{{ t | tojson(indent=4) }}"
    "{% endfor %}<|eot|>{% endif %}{% for m in messages %}"
    "{% if m['tool_calls'] and m['tool_calls'] | length > 1 %}{{ raise_exception('one call at once') }}{% endif %}"
    "{{ '<|head|>' + ('ipython' if m['role'] == 'tool' else m['role']) + '<|head|>\\n\\n' }}"
    "{% if m['tool_calls'] %}{% set f = m['tool_calls'][0]['function'] %}"
    "{{ '{\"name\": \"' + f['name'] + '\", \"parameters\": ' + f['arguments'] | tojson + '}' }}"
    "{% elif m['role'] == 'tool' %}{{ m['content'] | tojson }}{% else %}{{ m['content'] }}{% endif %}<|eot|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|head|>assistant<|head|>\\n\\n' }}{% endif %}"
)
XML = HERMES.replace(
    _HERMES_CALL,
    "<tool_call>\\n<function=' + c['function']['name'] + '>\\n' }}"
    "{% for k, v in c['function']['arguments'].items() %}"
    "{{ '<parameter=' + k + '>\\n' + (v if v is string else v | tojson) + '\\n</parameter>\\n' }}{% endfor %}"
    "{{ '</function>\\n</tool_call>",
)
JSON_TEXT = HERMES.replace("c['function']['arguments'] | tojson", "(c['function']['arguments'] + '')")
LFM2 = (
    "{% set begun = messages[0]['role'] == 'system' %}{% if begun or tools %}<|im_start|>system\n"
    "{{ messages[0]['content'] if begun else '' }}{% if tools %}{{ '\n' if begun else '' }}List of tools: ["
    "{% for t in tools %}{{ t | tojson }}{{ '' if loop.last else ', ' }}{% endfor %}]{% endif %}<|im_end|>\n{% endif %}"
    "{% for m in (messages[1:] if begun else messages) %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}"
    "{% for c in m['tool_calls'] or [] %}{{ '<|tool_call_start|>[' if loop.first else ', ' }}"
    "{{ c['function']['name'] + '(' }}{% for k, v in c['function']['arguments'].items() %}{{ k + '=' }}"
    '{{ "\'" + v + "\'" if v is string else (v | tojson if v is mapping else v | string) }}'
    "{{ '' if loop.last else ', ' }}{% endfor %}){{ ']<|tool_call_end|>' if loop.last else '' }}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# It writes nothing after a reply: the token that begins the next message ends it.
GLM4 = (
    "{% if tools %}<|system|>\n<tools>{% for t in tools %}{{ '\n' + t | tojson }}{% endfor %}\n</tools>{% endif %}"
    "{% for m in messages %}{% if m['role'] == 'tool' %}"
    "{{ '<|observation|>' if messages[loop.index0 - 1]['role'] != 'tool' else '' }}"
    "{{ '\n<tool_response>\n' + m['content'] + '\n</tool_response>' }}"
    "{% else %}{{ '<|' + m['role'] + '|>' }}"
    "{{ '\n<think></think>' if m['role'] == 'assistant' else '' }}{{ '\n' + m['content'] if m['content'] else '' }}"
    "{% for c in m['tool_calls'] or [] %}{{ '\n<tool_call>' + c['function']['name'] + '\n' }}"
    "{% for k, v in c['function']['arguments'].items() %}{{ '<arg_key>' + k + '</arg_key>\n<arg_value>' }}"
    "{{ (v if v is string else v | tojson) + '</arg_value>\n' }}{% endfor %}</tool_call>{% endfor %}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
FAMILIES = {"hermes": HERMES, "llama3": LLAMA, "qwen_xml": XML, "lfm2": LFM2}

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "find",
            "description": "Find things.",
            "parameters": {"type": "object", "properties": {"query": {"type": "string"}, "limit": {"type": "integer"}}},
        },
    }
]


def rendering(own: Any, **more: Any) -> Rendering:
    return Rendering(own, ChatFormat(own).end_ids, **more)


def result(text: str, number: int = 0) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": f"call{number:05d}", "name": "find", "content": text}


def called(*queries: str, content: str = "") -> dict[str, Any]:
    calls = [
        {"id": f"call{n:05d}", "name": "find", "arguments": {"query": query, "limit": 2}}
        for n, query in enumerate(queries)
    ]
    return {"role": "assistant", "content": content, "tool_calls": calls}


def in_openai_form(message: dict[str, Any]) -> dict[str, Any]:
    calls = [{"type": "function", "function": call} for call in message.get("tool_calls", ())]
    return {**message, "tool_calls": calls} if calls else message


def whole(own: Any, messages: list[dict[str, Any]]) -> list[int]:
    text = own.apply_chat_template(
        [in_openai_form(message) for message in messages], tools=TOOLS, add_generation_prompt=True, tokenize=False
    )
    return own.encode(text, add_special_tokens=False)  # type: ignore[no-any-return]


@pytest.mark.parametrize("made", TOKENIZERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_pieces_are_the_tokens_of_the_whole(made: str, family: str) -> None:
    own = TOKENIZERS[made](FAMILIES[family])
    chat = ChatFormat.of(own, AgentConfig(context="roles", action_format="calls"))
    assert chat.rendering is not None
    begun = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "a mug, please "}]
    calls = called("mug") if family == "llama3" else called("mug", "cup")
    reply = chat.reply(
        chat.dialect.write(Said("", tuple(Call(c["name"], c["arguments"]) for c in calls["tool_calls"])))
    )
    results = [result("a mug\nof 'tin'"), *([] if family == "llama3" else [result("", 1)])]
    said = chat.dialect.read(chat.decode(reply), TOOLS)
    assert [(call.name, call.arguments) for call in said.calls] == [
        (call["name"], call["arguments"]) for call in calls["tool_calls"]
    ]
    later = [*results, {"role": "user", "content": "and a cup"}]
    stream = [*chat.rendering.render(begun, TOOLS), *reply, *chat.rendering.after(reply, said, later, TOOLS)]
    assert own.convert_ids_to_tokens(stream) == own.convert_ids_to_tokens(whole(own, [*begun, calls, *later]))
    cut = chat.rendering.after(reply[:-1], said, later, TOOLS)
    assert [*reply[:-1], *cut] == stream[len(stream) - len(cut) - len(reply) + 1 :]


SPELLED = " ".join([*CONTROL, "<tool_call>", "</tool_response>"])


@pytest.mark.parametrize("made", TOKENIZERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_world_spells_is_no_control_token(made: str, family: str) -> None:
    """In contents, in results, in names and arguments of calls, and in the schemas of tools."""
    own = TOKENIZERS[made](FAMILIES[family])
    own.add_tokens(["<tool_call>", "</tool_response>"])
    shown, tagged = rendering(own), family in ("hermes", "qwen_xml")  # whose templates write these tags
    control = {own.convert_tokens_to_ids(token) for token in (SPELLED.split() if tagged else CONTROL)}

    def prompts(text: str) -> list[list[int]]:
        about = {"name": text, "description": text, "parameters": {"type": "object", "properties": {text: {}}}}
        calls = [{"id": "call00000", "name": text, "arguments": {text: [text]}}]
        said = Said(text, (Call(text, {text: text}),))
        talk = [
            {"role": "system", "content": text},
            {"role": "user", "content": text},
            {"role": "assistant", "content": text, "tool_calls": calls, "reasoning": text},
            {**result(text), "name": text},
        ]
        tools = [{"type": "function", "function": about}]
        return [shown.render(talk, tools).tolist(), shown.after(np.zeros(0, np.int32), said, talk[3:], tools).tolist()]

    for spelled, plain in zip(prompts(SPELLED), prompts("word"), strict=True):
        assert [i for i in spelled if i in control] == [i for i in plain if i in control]
        if tagged and made == "bytes":
            assert SPELLED in own.decode(spelled)


def test_threads_do_not_disturb_each_other() -> None:
    """Whether control tokens are recognised is state of a tokenizer, which no thread changes."""
    own = bytes_of(HERMES)
    shown = rendering(own)
    talk = [{"role": "user", "content": "<|im_start|> " * 3}]
    expected, wrong = shown.render(talk, TOOLS).tolist(), list[int]()

    def encode(other: bool) -> None:
        for _ in range(200):
            if other:
                own.encode("<|im_start|>", split_special_tokens=True)
                own.encode("<|im_start|>", split_special_tokens=False)
            elif shown.render(talk, TOOLS).tolist() != expected:
                wrong.append(1)

    threads = [threading.Thread(target=encode, args=(n % 2 == 0,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_template_can_do(family: str) -> None:
    found = rendering(bytes_of(FAMILIES[family])).abilities
    llama = family == "llama3"
    assert found.shows_tools
    assert found.keeps_results
    assert (found.dialect, found.parallel, found.verbatim, found.keeps_content) == (
        family,
        not llama,
        not llama,
        not llama,
    )
    assert found.keeps_thoughts == (None if family in ("llama3", "lfm2") else False)


def test_arguments_may_have_to_be_text() -> None:
    shown = rendering(bytes_of(JSON_TEXT))
    assert shown.json_arguments
    assert '{"query": "mug", "limit": 2}' in shown.text([{"role": "user", "content": "x"}, called("mug")], TOOLS)


PLAIN = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "told"),
    [
        (PLAIN, "shows the model no tools"),
        (HERMES.replace("'\\n<tool_response>\\n' + m['content']", "''"), "loses the results of calls"),
        (HERMES.replace("m['content'] + '\\n</tool", "m['content'][:5] + '\\n</tool"), "loses the results of calls"),
        (HERMES.replace("<tool_call>", "<call>"), "in a form that turnwise does not know"),
    ],
)
def test_templates_that_lose_something_are_refused(template: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        rendering(bytes_of(template))


def test_tools_can_be_text_where_a_template_hides_them() -> None:
    own = bytes_of(PLAIN)
    shown = rendering(own, tools_in="system")
    begun = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "a mug"}]
    text = own.decode(shown.render(begun, TOOLS))
    assert text.startswith("<|im_start|>system\nBe brief.\n\nYou can call these functions.")
    assert '"name": "find"' in text
    said = Said("", (Call("find", {"query": "a"}), Call("find", {"query": "b"})))
    assert shown.dialect.read(shown.dialect.write(said)) == said
    added = own.decode(shown.after(np.zeros(0, np.int32), said, [result("one"), result("two", 1)], TOOLS))
    assert added == (
        "<|im_end|>\n<|im_start|>user\n<tool_response>\none\n</tool_response>\n<tool_response>\ntwo\n</tool_response>"
        "<|im_end|>\n<|im_start|>assistant\n"
    )
    again = own.decode(shown.render([*begun, called("mug", content="So."), result("one")], TOOLS))
    assert 'assistant\nSo.\n<tool_call>\n{"name": "find", "arguments": {"query": "mug", "limit": 2}}' in again
    with pytest.raises(ValueError, match="this model's template shows them"):
        rendering(bytes_of(HERMES), tools_in="system")


def test_new_small_models_can_have_tools() -> None:
    own = train_tokenizer(TEXTS, 400, tools=True)
    chat = ChatFormat.of(own, AgentConfig(context="roles", action_format="calls"))
    assert chat.rendering is not None
    assert chat.rendering.abilities.parallel
    talk = [{"role": "user", "content": "a mug"}, called("mug", "cup", content="So."), result("one"), result("2", 1)]
    assert own.decode(chat.rendering.render(talk, TOOLS)) == (
        "<|system|>find(query, limit): Find things.<|end|><|user|>a mug<|end|><|assistant|>So.\n<tool_call>\n"
        '{"name": "find", "arguments": {"query": "mug", "limit": 2}}\n</tool_call>\n<tool_call>\n'
        '{"name": "find", "arguments": {"query": "cup", "limit": 2}}\n</tool_call><|end|><|tool|>one<|end|>'
        "<|tool|>2<|end|><|assistant|>"
    )
    plain = train_tokenizer(TEXTS, 400)
    with pytest.raises(ValueError, match=r"model\.tools=true"):
        rendering(plain)


def test_abilities_never_fail() -> None:
    shown = rendering(bytes_of(HERMES))

    def broken(*_: Any, **__: Any) -> str:
        raise ValueError("no such role")

    shown._show = broken  # type: ignore[assignment]
    found = abilities_of(shown)
    assert (found.shows_tools, found.keeps_results) == (False, False)
    assert found.fault == "no such role"
    assert rendered.__doc__


def with_special(template: str, *tokens: str) -> Any:
    own = bytes_of(template)
    own.add_special_tokens({"additional_special_tokens": list(tokens)})
    return own


def test_tags_that_are_special_tokens_are_so_in_demonstrations() -> None:
    """The template writes them as tokens, and so does a reply that is cloned."""
    own = with_special(LFM2, "<|tool_call_start|>", "<|tool_call_end|>")
    chat = ChatFormat.of(own, AgentConfig(context="roles", action_format="calls"))
    assert chat.rendering is not None
    assert chat.rendering.abilities.dialect == "lfm2"
    calls = called("mug", "cup", content="I look.")
    said = Said("I look.", tuple(Call(c["name"], c["arguments"]) for c in calls["tool_calls"]))
    reply = chat.reply(chat.dialect.write(said))
    assert set(own.convert_tokens_to_ids(["<|tool_call_start|>", "<|tool_call_end|>"])) <= set(reply.tolist())
    assert chat.dialect.read(chat.decode(reply), TOOLS) == said
    begun, later = [{"role": "user", "content": "a mug"}], [result("one"), result("two", 1)]
    stream = [*chat.rendering.render(begun, TOOLS), *reply, *chat.rendering.after(reply, said, later, TOOLS)]
    assert stream == whole(own, [*begun, calls, *later])


GLM_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")


def test_a_reply_may_end_with_the_next_messages_first_token() -> None:
    """Where generation ends with it. What follows a reply is then without it, whichever of them was sampled."""
    own = with_special(GLM4, *GLM_TOKENS)
    with pytest.raises(ValueError, match="does not end an assistant's message"):
        ChatFormat(own)
    user, observed = own.convert_tokens_to_ids(["<|user|>", "<|observation|>"])
    chat = ChatFormat.of(own, AgentConfig(context="roles", action_format="calls"), [user, observed])
    assert chat.rendering is not None
    assert (chat.end_id, chat.rendering.abilities.dialect, chat.rendering.abilities.parallel) == (user, "glm4", True)
    calls = called("mug", "cup")
    said = Said("", tuple(Call(c["name"], c["arguments"]) for c in calls["tool_calls"]))
    text = "\n<think></think>\n" + chat.dialect.write(said)
    begun, results = [{"role": "user", "content": "a mug"}], [result("one"), result("two", 1)]
    expected = whole(own, [*begun, calls, *results])
    for end in (observed, None):
        reply = np.array([*chat.within(text), *([] if end is None else [end])], np.int32)
        assert chat.dialect.read(chat.decode(reply).partition("</think>")[2], TOOLS) == said
        after = chat.rendering.after(reply, said, results, TOOLS)
        assert [*chat.rendering.render(begun, TOOLS), *reply, *after] == expected
    assert [int(chat.reply(each)[-1]) for each in ("Here.", chat.dialect.write(said))] == [user, observed]
    answered = [*begun, {"role": "assistant", "content": "Here."}, {"role": "user", "content": "And a cup?"}]
    reply = np.array([*chat.within("\n<think></think>\nHere."), user], np.int32)
    after = chat.rendering.after(reply, Said("Here."), answered[-1:], TOOLS)
    assert [*chat.rendering.render(begun, TOOLS), *reply, *after] == whole(own, answered)
