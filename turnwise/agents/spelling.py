"""Text as tokens, in pieces that spell what the whole text would: one frozen tokenizer of our own.

A tokenizer treats the text between two special tokens by itself: SentencePiece puts a space before it or does not,
byte pairs merge inside it. So such a *segment* is encoded in one go, with the template's part of it, and behind an
anchor that stands for the special token before it.

transformers keeps as state of the shared tokenizer whether special tokens are recognised in text. Here that is set
once, on a copy that nothing else holds: threads may encode side by side.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# Two code points that Unicode reserves for no character: worlds do not write them.
_ANCHOR, _NOT_AN_ANCHOR = "\U0010fffe\U0010ffff", "\ufffd\ufffd"

_MARKUP = re.compile(r"<.+>|\[.+\]", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Control:
    """A template's text: special tokens, the plain text before, between and after them (one more), and where in the
    whole text each token ends, in characters.
    """

    ids: tuple[int, ...]
    texts: tuple[str, ...]
    ends: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Opening:
    """What comes before a message: tokens, then text that is encoded with it, ``behind`` a special token or not."""

    ids: tuple[int, ...]
    tail: str
    behind: bool


def encodable(text: str) -> str:
    """The same text where UTF-8 can hold it; halves of surrogate pairs become U+FFFD."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace(_ANCHOR, _NOT_AN_ANCHOR)


class Spelling:
    """What special tokens ``control`` texts hold, and the tokens of plain segments.

    Added tokens that look like markup and stand in a control text are special here, whatever the tokenizer says of
    them: a world's text must not spell them. Raises ValueError for a tokenizer without a tokenizer.json.
    """

    def __init__(self, tokenizer: Any, control: Sequence[str]) -> None:
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
        self._control = {text: self._split(text, special) for text in control}
        self.used = frozenset(number for found in self._control.values() for number in found.ids)
        """The special tokens of the control texts: no plain segment holds one."""
        self._own.add_tokens([AddedToken(_ANCHOR, special=False, normalized=False)])
        self._own.encode_special_tokens = True  # from here on nothing of it changes

    def _split(self, text: str, special: dict[int, str]) -> Control:
        text = encodable(text)
        found = self._own.encode(text, add_special_tokens=False)
        places = [
            (start, end, number)
            for number, (start, end) in zip(found.ids, found.offsets, strict=True)
            # A byte without a token of its own may be spelled by a token that is called special, such as <0x3C>.
            if number in special and special[number] in text[start:end]
        ]
        ends = [end for _, end, _ in places]
        texts = [text[a:b] for a, b in zip([0, *ends], [*(start for start, _, _ in places), len(text)], strict=True)]
        return Control(tuple(number for _, _, number in places), tuple(texts), tuple(ends))

    def control(self, text: str) -> Control:
        """A control text that was named when this was made."""
        return self._control[text]

    def opening(self, text: str, skip: int = 0) -> Opening:
        """A control text that stands before a message, without its first ``skip`` special tokens."""
        found, ids = self._control[text], []
        for i in range(skip, len(found.ids)):
            ids += [*self.plain(found.texts[i], i > 0), found.ids[i]]
        return Opening(tuple(ids), found.texts[-1], bool(found.ids))

    def closing(self, text: str) -> tuple[str, tuple[int, ...]]:
        """A control text that stands after a message: what is encoded with the message, and the tokens after that."""
        found, ids = self._control[text], []
        for number, between in zip(found.ids, found.texts[1:], strict=True):
            ids += [number, *self.plain(between, True)]
        return found.texts[0], tuple(ids)

    def plain(self, segment: str, behind: bool) -> tuple[int, ...]:
        """The tokens of a segment, none of them special; ``behind`` a special token, or at the very beginning."""
        if not segment:
            return ()
        if not behind:
            return tuple(self._own.encode(encodable(segment), add_special_tokens=False).ids)
        return tuple(self._own.encode(_ANCHOR + encodable(segment), add_special_tokens=False).ids[1:])

    def text(self, ids: Sequence[int]) -> str:
        """As the tokenizer decodes them, special tokens spelled out."""
        return str(self._shared.decode(list(ids), skip_special_tokens=False))

    def text_after(self, stem: Sequence[int], ids: Sequence[int]) -> str:
        """What ``ids`` add to the text of ``stem``."""
        before, whole = self.text(stem), self.text([*stem, *ids])
        # An unfinished character at the seam may swallow its neighbour: then the tokens speak for themselves.
        return whole[len(before) :] if whole.startswith(before) else self.text(ids)

    def text_of(self, segment: Sequence[int], behind: bool, stem: Sequence[int]) -> str:
        """The text that ``plain`` made a segment of; ``stem``: any tokens that may come before it.

        SentencePiece may have put a space before it, which decoders drop or do not: the text that gives the same
        tokens again is the right one.
        """
        alone, after = self.text(segment), self.text_after(stem, segment)
        likely = dict.fromkeys((alone.removeprefix(" "), after.removeprefix(" "), alone, after))
        return next((text for text in likely if self.plain(text, behind) == tuple(segment)), alone)
