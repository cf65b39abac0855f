"""Conversion between text and token ids: prompts, chat templates, streaming, stop strings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, TypeVar

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from edgespec.chat_template import ToolStyle, render_chat, tool_style
from edgespec.errors import BundleError, UsageError
from edgespec.manifest import Bundle
from edgespec.plain_text import plain
from edgespec.token_bytes import TokenBytes

TOKENIZER = "tokenizer/tokenizer.json"
CHAT_TEMPLATE = "tokenizer/chat_template.jinja"
CONTEXT_TOKENS = 8
"""Tokens of the prompt that streamed decoding takes into account."""
LONGEST_ERROR = 200
"""Characters of what the tokenizers library says."""
T = TypeVar("T")


class Codec:
    """A bundle's tokenizer and chat template."""

    def __init__(self, bundle: Bundle) -> None:
        """Checks and reads the tokenizer's files. Raises `BundleError`."""
        bundle.check("tokenizer")
        if TOKENIZER not in bundle.manifest.files:
            raise BundleError(f"{bundle.folder} has no tokenizer; export the bundle again")
        self._text = bundle.manifest.text
        self._template_file = bundle.path(CHAT_TEMPLATE)
        self._file = str(bundle.path(TOKENIZER))
        self.tokenizer: Tokenizer = self.call(Tokenizer.from_file, self._file)
        self.token_bytes = TokenBytes(self.tokenizer)
        """The bytes of a token."""
        self._template: str | None = None
        if CHAT_TEMPLATE in bundle.manifest.files:  # a file without a checksum is not read
            self._template = self._template_file.read_text(encoding="utf-8")

    def encode(self, text: str, *, chat: bool = False, most_tokens: int | None = None) -> list[int]:
        """Token ids of a prompt. Special tokens are added to plain text; a rendered chat has them.

        Other threads run meanwhile. With `most_tokens`, a text that has more characters than so
        many of the longest tokens is refused unread.

        Raises `UsageError` for that, and if the text does not come from UTF-8, and `BundleError` if
        the tokenizer fails.
        """
        if most_tokens is not None and len(text) > most_tokens * self.longest_token_characters:
            most = most_tokens * self.longest_token_characters
            raise UsageError(
                f"the prompt has {len(text)} characters, and a context of {most_tokens} tokens has "
                f"at most {most}; shorten the prompt"
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError(f"the prompt is not UTF-8 text (character {error.start})") from error
        # Unlike `encode`, this gives the interpreter free.
        (encoded,) = self.call(
            self.tokenizer.encode_batch_fast, [text], add_special_tokens=not chat
        )
        return list(encoded.ids)

    @cached_property
    def longest_token_characters(self) -> int:
        """Characters of the vocabulary's longest token; no text has more for each of its tokens."""
        return max(map(len, self.tokenizer.get_vocab()), default=1)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.call(self.tokenizer.decode, list(ids), skip_special_tokens=True))

    def call(self, function: Callable[..., T], *arguments: object, **options: object) -> T:
        """The result of a function of the tokenizers library.

        Raises `BundleError` where the library fails, as with a regular expression that takes too
        many steps. It then raises `Exception` itself or a panic, which is no `Exception`.
        """
        try:
            return function(*arguments, **options)
        except BaseException as error:
            if type(error) is not Exception and type(error).__name__ != "PanicException":
                raise
            reason = plain(str(error), LONGEST_ERROR)
            raise BundleError(
                f"{self._file} cannot be used ({reason}); export the bundle again"
            ) from error

    @property
    def tool_style(self) -> ToolStyle:
        """How the chat template lets the model call tools."""
        return "" if self._template is None else tool_style(self._template)

    def render(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()
    ) -> str:
        """The chat of `messages` (role, content) as text that ends where the answer begins.

        Raises `UsageError` if the bundle has no chat template, and `BundleError` if it fails.
        """
        if self._template is None:
            raise UsageError("the bundle has no chat template; run without --chat")
        return render_chat(
            self._template,
            messages,
            bos=self._text.bos,
            eos=self._text.eos,
            name=str(self._template_file),
            tools=tools,
        )


class TextStream:
    """Decoder of committed ids, one by one, that also finds stop strings.

    Text that may begin a stop string is held back until the next tokens decide. Bytes of an
    incomplete character are held back until it is complete. A stop string is found at the token
    that completes it, independent of the rounds in which tokens arrive.
    """

    def __init__(self, codec: Codec, prompt: Sequence[int], stops: Sequence[str] = ()) -> None:
        """`prompt` holds the ids before the answer; decoding depends on the last few of them."""
        self._codec = codec
        self._stops = [stop for stop in stops if stop]
        self._decoder = DecodeStream(ids=list(prompt[-CONTEXT_TOKENS:]), skip_special_tokens=True)
        self._held = ""
        self.stopped = False

    def fork(self, prompt: Sequence[int], tokens: Sequence[int]) -> TextStream:
        """Another stream with the same stop strings that has taken `tokens` after `prompt`."""
        other = TextStream(self._codec, prompt, self._stops)
        for token in tokens:
            other.push(token)
        return other

    def push(self, token: int) -> str:
        """Adds a token, and returns the new final text. Sets `stopped` at a stop string.

        Raises `BundleError` if the tokenizer fails.
        """
        new = self._codec.call(self._decoder.step, self._codec.tokenizer, token)
        if new is None:
            return ""
        self._held += new
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            text, self._held = self._held[: min(found)], ""
            return text
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        text, self._held = self._held[:cut], self._held[cut:]
        return text

    def flush(self) -> str:
        """Returns the text held back so far, for use after the last token."""
        text, self._held = self._held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest proper prefix of `stop` that `text` ends with."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
