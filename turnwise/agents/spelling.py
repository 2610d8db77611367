"""Encodes a conversation piece by piece, so that the pieces have the tokens that the whole text would have.

A tokenizer treats the text between two special tokens as a unit, here called a segment. Byte pairs merge only inside a
segment, and SentencePiece may put a space before it. So a segment is always encoded at once: in ``<|im_start|>user``,
line break, observation, ``<|im_end|>`` the segment is everything between the two special tokens, the template's "user"
included. Where a special token precedes a segment, a placeholder (the anchor) is encoded in its place.

Whether special tokens are recognised in text is state of a transformers tokenizer, which other code may change. Here it
is set once, on a copy of the tokenizer that nothing else uses, and never changed again. Several threads may encode at
the same time, text with special tokens (on a second copy) and text without.

A text that a template wrote whole, contents included, is encoded by ``mixed``. So that special tokens in the contents
stay text there, contents are *guarded* before: each special token in them is written with characters that nobody uses,
and becomes text again when the segment around it is encoded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

# Two code points that are no characters in Unicode, so that no environment writes them.
_ANCHOR, _NOT_AN_ANCHOR = "\U0010fffe\U0010ffff", "\ufffd\ufffd"

_MARKUP = re.compile(r"<.+>|\[.+\]", re.DOTALL)

# Code points that are no characters either. A guarded token is its number in decimal, in ten of them, between two more.
_DIGITS = "".join(chr(0xFDD0 + n) for n in range(10))
_OPEN, _CLOSE = "\ufdda", "\ufddb"
MARK = "\ufddc"
"""A character that no guarded text contains, for who looks for a place in what a template wrote."""
_GUARDED = re.compile(f"{_OPEN}([{_DIGITS}]+){_CLOSE}")
_TO_DIGITS = str.maketrans("0123456789", _DIGITS)
_FROM_DIGITS = str.maketrans(_DIGITS, "0123456789")
_OURS = re.compile(f"[{_DIGITS}{_OPEN}{_CLOSE}{MARK}]")


@dataclass(frozen=True, slots=True)
class Control:
    """A text of the template, split at its n special tokens.

    ``ids``: the n special tokens. ``texts``: the n + 1 plain texts before, between and after them. ``ends``: the place
    in the text, in characters, where each special token ends.
    """

    ids: tuple[int, ...]
    texts: tuple[str, ...]
    ends: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Opening:
    """What precedes a message: tokens, then a text that is encoded together with the message.

    ``behind`` says whether a special token precedes that text.
    """

    ids: tuple[int, ...]
    tail: str
    behind: bool


def encodable(text: str) -> str:
    """The text as UTF-8 can encode it: lone surrogates become U+FFFD."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace(_ANCHOR, _NOT_AN_ANCHOR)


class Spelling:
    """Encodes segments, and splits the ``control`` texts of a template at their special tokens.

    Added tokens that look like markup (``<...>``, ``[...]``) and occur in a control text count as special, whatever the
    tokenizer's own flag says, so that text of an environment cannot contain them. ``mixes``: whether ``mixed`` will be
    used, which needs a second copy of the tokenizer. Raises ValueError for a tokenizer without a tokenizer.json.
    """

    def __init__(self, tokenizer: Any, control: Sequence[str], *, mixes: bool = False) -> None:
        from tokenizers import AddedToken, Tokenizer

        shared = getattr(tokenizer, "backend_tokenizer", None)
        if shared is None:
            raise ValueError(
                f"{type(tokenizer).__name__} is not a fast tokenizer: save the model with its tokenizer.json "
                "(AutoTokenizer.from_pretrained(...).save_pretrained(...) writes one where it can)"
            )
        self._shared = shared
        self._own = Tokenizer.from_str(shared.to_str())
        self._own.no_truncation()
        self._own.no_padding()
        added = self._own.get_added_tokens_decoder()
        used = [
            token.content
            for token in added.values()
            if not token.special and _MARKUP.fullmatch(token.content) and any(token.content in text for text in control)
        ]
        self._own.add_special_tokens([AddedToken(content, special=True, normalized=False) for content in used])
        special = {n: token.content for n, token in self._own.get_added_tokens_decoder().items() if token.special}
        self._special = special
        self._marked = Tokenizer.from_str(self._own.to_str()) if mixes else None
        self._control = {text: self._split(text, self._own) for text in control}
        self.used = frozenset(number for found in self._control.values() for number in found.ids)
        """The special tokens of the control texts. No segment contains one."""
        self._own.add_tokens([AddedToken(_ANCHOR, special=False, normalized=False)])
        self._own.encode_special_tokens = True  # the tokenizer is not changed after this

    def _split(self, text: str, marked: Any) -> Control:
        text, special = encodable(text), self._special
        found = marked.encode(text, add_special_tokens=False)
        places = [
            (start, end, number)
            for number, (start, end) in zip(found.ids, found.offsets, strict=True)
            # A byte token such as <0x3C> may be called special, but here it stands for a plain character.
            if number in special and special[number] in text[start:end]
        ]
        ends = [end for _, end, _ in places]
        texts = [text[a:b] for a, b in zip([0, *ends], [*(start for start, _, _ in places), len(text)], strict=True)]
        return Control(tuple(number for _, _, number in places), tuple(texts), tuple(ends))

    def control(self, text: str) -> Control:
        """The split of a control text. It must be one of those given to the constructor."""
        return self._control[text]

    def opening(self, text: str, skip: int = 0) -> Opening:
        """A control text that precedes a message, without its first ``skip`` special tokens."""
        found, ids = self._control[text], []
        for i in range(skip, len(found.ids)):
            ids += [*self.plain(found.texts[i], i > 0), found.ids[i]]
        return Opening(tuple(ids), found.texts[-1], bool(found.ids))

    def closing(self, text: str) -> tuple[str, tuple[int, ...]]:
        """A control text that follows a message: the text to encode with the message, and the tokens after that."""
        found, ids = self._control[text], []
        for number, between in zip(found.ids, found.texts[1:], strict=True):
            ids += [number, *self.plain(between, True)]
        return found.texts[0], tuple(ids)

    def plain(self, segment: str, behind: bool) -> tuple[int, ...]:
        """The tokens of a segment, none of them special.

        ``behind``: whether a special token precedes the segment. If not, the segment is the beginning of the text.
        """
        if not segment:
            return ()
        if not behind:
            return tuple(self._own.encode(encodable(segment), add_special_tokens=False).ids)
        return tuple(self._own.encode(_ANCHOR + encodable(segment), add_special_tokens=False).ids[1:])

    def guarded(self, text: str) -> str:
        """A content for ``mixed``: its special tokens are text there."""
        text = _OURS.sub(_NOT_AN_ANCHOR[0], encodable(text))
        if not self._special:
            return text
        return self._spelled_out.sub(lambda found: self._guards[found.group()], text)

    @cached_property
    def _guards(self) -> Mapping[str, str]:
        return {
            content: _OPEN + str(number).translate(_TO_DIGITS) + _CLOSE for number, content in self._special.items()
        }

    @cached_property
    def _spelled_out(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, sorted(self._guards, key=len, reverse=True))))

    def unguarded(self, text: str) -> str:
        """The text that a guarded one stands for."""
        return _GUARDED.sub(lambda found: self._special[int(found.group(1).translate(_FROM_DIGITS))], text)

    def mixed(self, text: str) -> tuple[int, ...]:
        """The tokens of a template's whole text, whose contents were guarded: its special tokens are the template's."""
        assert self._marked is not None, "made without mixes=True"
        found, ids = self._split(text, self._marked), list[int]()
        for place, segment in enumerate(found.texts):
            ids += [*found.ids[place - 1 : place], *self.plain(self.unguarded(segment), place > 0)]
        return tuple(ids)

    def whole(self, text: str) -> tuple[int, ...]:
        """The tokens of a text as the tokenizer gives them at once, special tokens included."""
        assert self._marked is not None, "made without mixes=True"
        return tuple(self._marked.encode(encodable(text), add_special_tokens=False).ids)

    def text(self, ids: Sequence[int]) -> str:
        """The text of these tokens, special tokens included."""
        return str(self._shared.decode(list(ids), skip_special_tokens=False))

    def text_after(self, stem: Sequence[int], ids: Sequence[int]) -> str:
        """The text that ``ids`` add after the tokens ``stem``."""
        before, whole = self.text(stem), self.text([*stem, *ids])
        # Where a character's bytes are split between both, the text of stem changes. Then ids are decoded alone.
        return whole[len(before) :] if whole.startswith(before) else self.text(ids)

    def text_of(self, segment: Sequence[int], behind: bool, stem: Sequence[int]) -> str:
        """The text of a segment: the inverse of ``plain``. ``stem`` is any tokens that may precede a segment.

        SentencePiece may have added a space, which decoding may or may not drop. Of the possible texts the one that
        gives the same tokens again is returned.
        """
        alone, after = self.text(segment), self.text_after(stem, segment)
        likely = dict.fromkeys((alone.removeprefix(" "), after.removeprefix(" "), alone, after))
        return next((text for text in likely if self.plain(text, behind) == tuple(segment)), alone)
