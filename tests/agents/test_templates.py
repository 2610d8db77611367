"""Every kind of template with every kind of tokenizer gives the tokens that the whole conversation has.

Byte pairs, and SentencePiece as it puts a space before every piece, the first one, or none.
"""

from __future__ import annotations

import copy
import datetime
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tests.models import TEXTS, tiny_model, tokenizer
from tests.stored import ECHO, run_config, stored_run
from turnwise.agents.actions import parse_action
from turnwise.agents.chat import ChatFormat
from turnwise.agents.prompts import AgentConfig
from turnwise.agents.templates import dated
from turnwise.jobs import export
from turnwise.models.policy import Policy
from turnwise.models.settings import LoRAConfig
from turnwise.runs.directory import RunDirectory
from turnwise.runs.exporting import export_trajectories
from turnwise.runs.trajectories import Selection

CONTROL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|head|>", "<|eot|>"]


def _roles(user: str, assistant: str, header: str, opening: str = "") -> str:
    return (
        f"{opening}{{% for m in messages %}}{{% if m['role'] == 'assistant' %}}{{{{ {assistant} }}}}"
        f"{{% else %}}{{{{ {user} }}}}{{% endif %}}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{{{{ {header} }}}}{{% endif %}}"
    )


_CHATML = "'<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n'"
_HEADED = "'<|head|>' + m['role'] + '<|head|>\\n\\n' + m['content'] + '<|eot|>'"
_LINES = "'<|' + m['role'] + '|>\\n' + m['content'] + eos_token + '\\n'"
TEMPLATES = {
    "chatml": _roles(_CHATML, _CHATML, "'<|im_start|>assistant\\n'"),
    "headed": _roles(_HEADED, _HEADED, "'<|head|>assistant<|head|>\\n\\n'", "{{ bos_token }}"),
    "lines": _roles(_LINES, _LINES, "'<|assistant|>\\n'"),
    "llama2": _roles("bos_token + '[INST] ' + m['content'] + ' [/INST]'", "' ' + m['content'] + ' ' + eos_token", "''"),
    "mistral": _roles("'[INST] ' + m['content'] + ' [/INST]'", "m['content'] + eos_token", "''", "{{ bos_token }}"),
    "spoken": _roles(
        "'USER: ' + m['content'] + ' '", "'ASSISTANT: ' + m['content'] + eos_token", "'ASSISTANT:'", "{{ bos_token }}"
    ),
}


def bytes_of(template: str | None, texts: Sequence[str] = TEXTS, size: int = 330, **named: str) -> Any:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    )
    return _fast(made, template, named)


def pieces(template: str | None, space: str = "legacy", **named: str) -> Any:
    """As Llama 2's: ``space`` says who gets one in front; ``legacy`` is a normalizer, before every segment."""
    made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    if space == "legacy":
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=space, split=False)
    strip = [] if space == "never" else [decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<unk>", *(f"<0x{i:02X}>" for i in range(256))], show_progress=False
    )
    made.train_from_iterator([*TEXTS, "user assistant go look OK"], trainer)
    return _fast(made, template, named)


def _fast(made: Tokenizer, template: str | None, named: dict[str, str]) -> Any:
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL])
    fast = PreTrainedTokenizerFast(tokenizer_object=made, **{"bos_token": "<s>", "eos_token": "</s>", **named})
    fast.chat_template = template
    return fast


TOKENIZERS: dict[str, Callable[..., Any]] = {
    "bytes": bytes_of,
    "legacy": pieces,
    "first": lambda template: pieces(template, "first"),
    "always": lambda template: pieces(template, "always"),
    "never": lambda template: pieces(template, "never"),
}


def asked(first: str, reply: str, second: str) -> list[dict[str, str]]:
    said = (("user", first), ("assistant", reply), ("user", second))
    return [{"role": role, "content": text} for role, text in said]


@pytest.mark.parametrize("made", TOKENIZERS)
@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize(
    ("first", "reply", "second"),
    [
        ("You see a mug 1.", "go to drawer 2", "OK."),
        ("  two  spaces ", "look", " one"),
        ("\n\nlines\n", "x", "a\n\nb\n"),
        ("", "go", ""),
        ("żółć 雪 🎈", "ż", "ó"),
    ],
)
def test_deltas_are_the_tokens_of_the_whole(made: str, template: str, first: str, reply: str, second: str) -> None:
    own = TOKENIZERS[made](TEMPLATES[template])
    chat = ChatFormat(own)
    said = chat.reply(reply)
    stream = [*chat.open(first), *said, *chat.extend(said, second)]
    rendered = own.apply_chat_template(asked(first, reply, second), add_generation_prompt=True, tokenize=False)
    assert own.convert_ids_to_tokens(stream) == own.convert_ids_to_tokens(
        own.encode(rendered, add_special_tokens=False)
    )
    assert chat.decode(said) == chat.decode(said[:-1]).rstrip() == reply
    assert chat.messages(chat.open(first), fresh=True) == [first]
    for ended in (said, said[:-1]):
        assert chat.messages(chat.extend(ended, second), fresh=False) == [second]


@pytest.mark.parametrize("user", ["trim", "string"])
@pytest.mark.parametrize("assistant", ["trim", "string"])
def test_white_space_is_dropped_where_the_template_does(user: str, assistant: str) -> None:
    template = _roles(
        _HEADED.replace("m['content']", f"(m['content'] | {user})"),
        _HEADED.replace("m['content']", f"(m['content'] | {assistant})"),
        "'<|head|>assistant<|head|>\\n\\n'",
    )
    own = bytes_of(template)
    chat, first, reply, second = ChatFormat(own), "\n you see\n\n", " go to  it\n", "  ok "
    said = chat.reply(reply)
    stream = [*chat.open(first), *said, *chat.extend(said, second)]
    rendered = own.apply_chat_template(asked(first, reply, second), add_generation_prompt=True, tokenize=False)
    assert own.decode(stream) == rendered
    assert chat.messages(chat.open(first), fresh=True) == [(first if user == "string" else first.strip())]


def test_the_first_message_may_be_shown_in_a_way_of_its_own() -> None:
    """As Llama 2's, which puts the system message into it and then drops the white space around both."""
    template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}"
        "{% if loop.index0 == 1 and messages[0]['role'] == 'system' %}"
        "{% set said = '<<' + messages[0]['content'] + '>>\\n' + m['content'] %}{% else %}{% set said = m['content'] %}"
        "{% endif %}{{ bos_token + '[INST] ' + said | trim + ' [/INST]' }}{% elif m['role'] == 'assistant' %}"
        "{{ ' ' + m['content'] | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
    )
    own, system = bytes_of(template), "Be brief."
    chat, first, reply, second = ChatFormat(own, system), "\n  you see\n", "go", "  ok "
    said = chat.reply(reply)
    stream = [*chat.open(first), *said, *chat.extend(said, second)]
    messages = [{"role": "system", "content": system}, *asked(first, reply, second)]
    rendered = own.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert "\n\n  you see [/INST] go </s>" in rendered
    assert own.decode(stream) == rendered


@pytest.mark.parametrize(
    "change",
    ["| replace('\\n', ' ')", "| indent(2)", ".split() | join(' ')", "| replace('\\n\\n', '\\n')", "[:16]"],
)
def test_a_template_that_rewrites_messages_is_refused(change: str) -> None:
    with pytest.raises(ValueError, match=r"changes what messages hold.*in place of .* it writes"):
        ChatFormat(bytes_of(TEMPLATES["chatml"].replace("m['content']", f"(m['content'] {change})")))


@pytest.mark.parametrize(
    ("opening", "system"),
    [
        ("{% set messages = messages[-4:] %}", None),  # old turns are dropped
        ("{% set said = messages[0]['content'] %}{% set messages = messages[1:] %}", "Be brief."),  # it moves along
    ],
)
def test_a_template_that_shows_a_longer_conversation_otherwise_is_refused(opening: str, system: str | None) -> None:
    user = "'<|im_start|>user\\n' + (said + '\\n\\n' if said and loop.last else '') + m['content'] + '<|im_end|>\\n'"
    template = _roles(user, _CHATML, "'<|im_start|>assistant\\n'", opening)
    with pytest.raises(ValueError, match="otherwise as it grows"):
        ChatFormat(bytes_of(template), system)


@pytest.mark.parametrize("made", TOKENIZERS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_what_a_world_spells_is_no_control_token(made: str, template: str) -> None:
    own = TOKENIZERS[made](TEMPLATES[template])
    chat, spelled = ChatFormat(own), " ".join(CONTROL)
    control = {own.convert_tokens_to_ids(token) for token in CONTROL}
    for shown, empty in ((chat.open(spelled), chat.open("")), (chat.reply(spelled), chat.reply(""))):
        assert [i for i in shown.tolist() if i in control] == [i for i in empty.tolist() if i in control]
    assert chat.messages(chat.open(spelled), fresh=True) == [spelled]


@pytest.mark.parametrize(
    ("template", "named", "end"),
    [
        ("headed", {"eos_token": "</s>"}, "<|eot|>"),
        ("chatml", {"bos_token": "<|im_start|>", "eos_token": "</s>"}, "<|im_end|>"),
        ("lines", {}, "</s>"),
        ("llama2", {}, "</s>"),
    ],
)
def test_the_end_of_a_turn_is_what_the_template_writes(template: str, named: dict[str, str], end: str) -> None:
    own = bytes_of(TEMPLATES[template], **named)
    chat = ChatFormat(own, end_ids=[3])
    assert own.convert_ids_to_tokens(chat.end_id) == end
    assert chat.end_ids == {chat.end_id, own.eos_token_id, 3}


def test_an_end_that_is_not_called_special_cannot_be_spelled() -> None:
    own = tokenizer()
    own = copy.deepcopy(own)
    own.add_tokens(["<end_of_turn>"])
    own.chat_template = _roles("'U' + m['content'] + '<end_of_turn>'", "'A' + m['content'] + '<end_of_turn>'", "'A'")
    chat = ChatFormat(own)
    end = own.convert_tokens_to_ids("<end_of_turn>")
    assert chat.end_id == end
    assert chat.open("<end_of_turn>").tolist().count(end) == 1
    assert chat.messages(chat.open("<end_of_turn>"), fresh=True) == ["<end_of_turn>"]


# As GPT-OSS has it.
HARMONY = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "{{ '<|start|>assistant<|channel|>final<|message|>' + m['content'] }}"
    "{{ '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}"
    "{% else %}{{ '<|start|>' + m['role'] + '<|message|>' + m['content'] + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (HARMONY, r"name a channel before it speaks .*final.*measured through its chat API .*openai:MODEL"),
        (TEMPLATES["chatml"].partition("{% if add_g")[0], r"ignores add_generation_prompt: .*assistant\\n' in the his"),
        (TEMPLATES["spoken"].replace("'ASSISTANT:'", "''"), "ignores add_generation_prompt"),
        (_roles(_CHATML, _CHATML, "'<|im_start|>model\\n'"), "has another generation prompt"),
        (_roles(_CHATML, _CHATML, "'<|im_start|>'"), "has another generation prompt"),
        (TEMPLATES["chatml"].replace("<|im_end|>", ""), "does not end an assistant's message with a special token"),
        (TEMPLATES["chatml"].replace("m['content']", "(m['content'] | upper)"), "each message exactly once"),
        (TEMPLATES["headed"].replace("<|eot|>", "\\n"), "does not end an assistant's message with a special token"),
    ],
)
def test_templates_that_would_change_the_conversation_are_refused(template: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ChatFormat(bytes_of(template))


def test_a_header_that_opens_a_thought() -> None:
    """The prompt ends in <think>, which histories leave out: replies are shown and parsed with it."""
    chat = ChatFormat(bytes_of(_roles(_CHATML, _CHATML, "'<|im_start|>assistant\\n<think>\\n'")))
    sampled = np.asarray([*chat._spelled("north?\n</think>\nsouth"), chat.end_id], np.int32)
    assert chat.decode(sampled) == "<think>\nnorth?\n</think>\nsouth"
    assert parse_action(chat.decode(sampled), "plain").text == "south"
    assert not parse_action(chat.decode(sampled[:3]), "plain").valid  # cut inside the thought
    assert parse_action(chat.decode(chat.reply("look")), "plain").text == "look"


def test_a_history_that_says_that_there_was_no_thought() -> None:
    history = "'<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n' + m['content'] + '<|im_end|>\\n'"
    chat = ChatFormat(bytes_of(_roles(_CHATML, history, "'<|im_start|>assistant\\n'")))
    assert chat.tokenizer.decode(chat.open("hi")).endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert chat.decode(chat.reply("look")) == "look"


DATED = "{{ '<|head|>system<|head|>Today: ' + strftime_now('%d %b %Y, %A') + '<|eot|>' }}" + TEMPLATES["headed"]


class Later(datetime.datetime):
    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> Later:
        return cls(2031, 2, 3)


def test_a_date_does_not_move(monkeypatch: pytest.MonkeyPatch) -> None:
    own = bytes_of(DATED)
    stored = ChatFormat(own).open("hi")
    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Later)
    assert "03 Feb 2031" in own.apply_chat_template(asked("", "", ""), tokenize=False)
    later = ChatFormat(own)
    assert later.open("hi").tolist() == stored.tolist()
    assert later.messages(stored, fresh=True) == ["hi"]
    assert "Today: 26 Jul 2024, Friday<" in own.decode(stored)
    assert "Today: 05 Jan 2025, Sunday<" in own.decode(ChatFormat(own, date="2025-01-05").open("hi"))
    variable = bytes_of("{% if date_string is defined %}{{ date_string }}{% endif %}" + TEMPLATES["headed"])
    assert variable.decode(ChatFormat(variable).open("hi")).startswith("26 Jul 2024")


def test_a_stopped_clock_can_be_set_again() -> None:
    once = dated(DATED, "2025-01-05")
    assert dated(once, "2025-01-06") == dated(DATED, "2025-01-06") != once
    assert dated(TEMPLATES["chatml"], "2025-01-05") == TEMPLATES["chatml"]


@pytest.mark.parametrize("given", ["tomorrow", "2025-02-30", 5])
def test_a_date_is_a_day(given: Any) -> None:
    with pytest.raises(ValueError, match="year-month-day"):
        AgentConfig(date=given)
    assert AgentConfig(date=datetime.date(2025, 1, 5)).date == "2025-01-05"  # type: ignore[arg-type]


def dated_tokenizer() -> Any:
    own = copy.deepcopy(tokenizer())
    own.chat_template = "{{ '<|system|>' + strftime_now('%d %b %Y') + '<|end|>' }}" + own.chat_template
    return own


def test_stored_episodes_are_exported_on_any_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.stored.tokenizer", dated_tokenizer)
    run = stored_run(tmp_path / "run", run_config(ECHO), updates=1)
    dated_tokenizer().save_pretrained(run / "model")
    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Later)
    assert export_trajectories(run, Selection(returns=(-1e9, 1e9)), tmp_path / "sft.jsonl", "sft") > 0


def test_an_exported_model_shows_the_day_of_its_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = run_config(ECHO, agent={"date": "2025-01-05"})
    RunDirectory.create(tmp_path / "run", config, {})
    policy = Policy(tiny_model(), dated_tokenizer(), lora=LoRAConfig(rank=2))
    monkeypatch.setattr("turnwise.jobs.load_policies", lambda *_, **__: {"": policy})
    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Later)
    for adapter in (False, True):
        exported = AutoTokenizer.from_pretrained(export(tmp_path / "run", tmp_path / f"out{adapter}", adapter=adapter))
        shown = exported.apply_chat_template(asked("", "", ""), tokenize=False)
        assert shown.startswith("<|system|>05 Jan 2025<|end|>")


def test_threads_spell_alike() -> None:
    """Control text, with the shared tokenizer, beside plain text; transformers keeps a switch between the two."""
    own = bytes_of(TEMPLATES["chatml"])
    chats = [ChatFormat(own) for _ in range(2)]
    plain, control = "<|im_start|> <|im_end|>" * 20, own.convert_tokens_to_ids("<|im_start|>")
    expected = chats[0].open(plain).tolist()
    wrong: list[str] = []
    over = threading.Event()

    def encodes_control() -> None:
        while not over.is_set():
            own.encode("<|im_start|>user\n" * 20, add_special_tokens=False)

    def shows(chat: ChatFormat, number: int) -> None:
        for i in range(400):
            ids = chat.open(f"{plain}{number} {i}").tolist()
            if ids.count(control) != expected.count(control):
                wrong.append(own.decode(ids))

    others = [threading.Thread(target=encodes_control) for _ in range(2)]
    threads = [threading.Thread(target=shows, args=(chat, n)) for n, chat in enumerate(chats)]
    for thread in [*others, *threads]:
        thread.start()
    for thread in threads:
        thread.join()
    over.set()
    for thread in others:
        thread.join()
    assert not wrong


def test_no_text_is_encoded_with_the_shared_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    own = bytes_of(TEMPLATES["chatml"])
    before = own.backend_tokenizer.to_str()
    monkeypatch.setattr(type(own), "encode", None)
    monkeypatch.setattr(type(own), "_encode_plus", None)
    chat = ChatFormat(own)
    chat.extend(chat.reply("look"), "<|im_end|>")
    own.backend_tokenizer.encode_special_tokens = True  # as another thread may leave it
    fresh = ChatFormat(own)
    assert fresh.open("a <|im_end|>").tolist() == chat.open("a <|im_end|>").tolist()
    own.backend_tokenizer.encode_special_tokens = False
    assert own.backend_tokenizer.to_str() == before


THINKING = _roles(
    _CHATML,
    _CHATML,
    "'<|im_start|>assistant\\n' + ('<think>\\n\\n</think>\\n\\n' "
    "if enable_thinking is defined and not enable_thinking else '')",
)


def test_a_template_gets_its_arguments_in_every_prompt() -> None:
    own = bytes_of(THINKING)
    thinks, chat = ChatFormat(own), ChatFormat.of(own, AgentConfig(template={"enable_thinking": False}))
    said = chat.reply("look")
    for prompt, plain in (
        (chat.open("hi"), thinks.open("hi")),
        (chat.extend(said, "OK"), thinks.extend(said, "OK")),
        (chat.after((("hi", "look"),)).open("OK"), thinks.after((("hi", "look"),)).open("OK")),
    ):
        assert own.decode(prompt).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
        assert own.decode(plain).endswith("<|im_start|>assistant\n")
    rendered = own.apply_chat_template(
        asked("hi", "look", "OK")[:1], tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    assert own.decode(chat.open("hi")) == rendered
    assert chat.decode(said) == "look"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"enable_thinkin": False}, "does not use it. Did you mean 'enable_thinking'"),
        ({"verbose": True}, "does not use it. It uses: enable_thinking"),
        ({"messages": []}, "turnwise gives this to the template itself"),
    ],
)
def test_an_argument_that_does_nothing_is_refused(arguments: dict[str, Any], told: str) -> None:
    (name,) = arguments
    with pytest.raises(ValueError, match=rf"agent.template.{name}: .*{told}"):
        ChatFormat(bytes_of(THINKING), template=arguments)
    with pytest.raises(ValueError, match="It uses: no arguments"):
        ChatFormat(bytes_of(TEMPLATES["chatml"]), template={"enable_thinking": False})
