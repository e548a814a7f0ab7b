"""Byte-level BPE with the released pre-tokenizer rules and special tokens.

    tokenizer = Tokenizer.train(texts, vocab_size=4096)       or Tokenizer.from_file("tokenizer.json")
    tokenizer.decode(tokenizer.encode("café")) == "café"      any text comes back, byte by byte
    stream = tokenizer.stream(); stream.push(id)              text as it becomes whole characters

Text never turns into an added token by accident: `encode` reads `<｜User｜>` as characters unless told otherwise,
whether the file calls the token special or not. Which tokens begin, end and pad stands in the files beside.

Source: arXiv:2412.19437, section 4.1; tokenizer.json of the released checkpoint.
"""

import codecs
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from deepseek_v3.data.side_files import SideFiles, TokenizerError, read_side_files

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
FIM_HOLE, FIM_BEGIN, FIM_END = "<｜fim▁hole｜>", "<｜fim▁begin｜>", "<｜fim▁end｜>"
USER, ASSISTANT, THINK, THINK_END = "<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"
SPECIAL_TOKENS = (BOS, EOS, PAD, FIM_HOLE, FIM_BEGIN, FIM_END, USER, ASSISTANT, THINK, THINK_END)
SMALLEST_VOCAB = 256 + len(SPECIAL_TOKENS)

# Numbers in threes; runs of Chinese and Japanese; then punctuation with a word, words with the space before them,
# punctuation with the line ends after it (the combined tokens of section 4.1), line ends, spaces.
RELEASED_SPLITS = (
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"
    r" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
PROBES = (
    "Word",
    " two  spaces ",
    "\tcaf\u00e9 e\u0301\n\n",
    "\ufb01 \uff21 \u4e00",
    "\r\n12 !",
    *map(chr, range(1, 128)),
)


class Tokenizer:
    """Text to token ids and back; a thin layer over the `tokenizers` library that knows the released special tokens."""

    def __init__(
        self, backend: tokenizers.Tokenizer, *, raw: bytes | None = None, side: SideFiles | None = None
    ) -> None:
        """Wrap a backend.

        Truncation and padding are switched off, and `notes` says so: they would cut or fill documents.

        Args:
            raw: its tokenizer.json, if it was read from one; saved as it is.
            side: the files that lay beside.
        Raises:
            TokenizerError: it is not byte-level, or changes text, which then would not come back.
        """
        description = json.loads(backend.to_str())
        switched = [name for name in ("truncation", "padding") if description.get(name)]
        self.notes = tuple(
            f"the tokenizer's {name} was switched off: documents are read as they are" for name in switched
        )
        backend.no_truncation()
        backend.no_padding()
        if "ByteLevel" not in json.dumps(description.get("decoder")):
            raise TokenizerError("the tokenizer is not byte-level BPE; give a tokenizer.json of the DeepSeek-V3 kind")
        self._backend = backend
        self._raw, self.side = raw, side or SideFiles()
        added = description.get("added_tokens", [])
        self._special = {token["id"]: token["content"] for token in added if token.get("special")}
        self._added = {token["id"]: token["content"] for token in added}
        self.added_tokens = {name: token for token, name in self._added.items()}
        self._plain = _without_added_tokens(description)
        self._bytes: list[bytes] | None = None
        self._refuse_lossy()

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Learn the merges from texts.

        Args:
            texts: read once.
            vocab_size: special tokens (ids 0 to 9) and the 256 bytes included.
        Raises:
            TokenizerError: no room for the bytes.
        """
        if vocab_size < SMALLEST_VOCAB:
            raise TokenizerError(
                f"vocab_size={vocab_size} must be at least {SMALLEST_VOCAB}: 256 bytes and the special tokens"
            )
        backend = tokenizers.Tokenizer(models.BPE())
        splits = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in RELEASED_SPLITS]
        backend.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
            [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
        backend.decoder = decoders.ByteLevel()  # type: ignore[assignment]
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        backend.train_from_iterator(texts, trainer)
        return cls(backend)

    @classmethod
    def from_file(cls, path: str | Path) -> "Tokenizer":
        """Read a tokenizer.json, or the one in a folder.

        Raises:
            TokenizerError: missing or not a tokenizer.
        """
        path = Path(path)
        path = path / "tokenizer.json" if path.is_dir() else path
        if not path.is_file():
            raise TokenizerError(f"there is no {path}; give a tokenizer.json or a folder that holds one")
        raw = path.read_bytes()
        try:
            backend = tokenizers.Tokenizer.from_buffer(raw)
        except Exception as error:  # the library raises a bare Exception
            raise TokenizerError(f"{path} is not a tokenizer.json ({str(error)[:80]})") from None
        return cls(backend, raw=raw, side=read_side_files(path.parent))

    def to_json(self) -> str:
        """Return what tokenizer.json holds."""
        return self._backend.to_str(pretty=True)

    def files(self) -> dict[str, bytes]:
        """Return tokenizer.json and the files beside it as they were read; a new one gets what `transformers` reads."""
        own = self.to_json().encode() if self._raw is None else self._raw
        return {"tokenizer.json": own, **(self.side.carried or self._new_settings())}

    def save(self, folder: str | Path) -> None:
        """Write the files into a folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files().items():
            (folder / name).write_bytes(content)

    def _new_settings(self) -> dict[str, bytes]:
        settings = {
            "add_bos_token": False,
            "clean_up_tokenization_spaces": False,
            "tokenizer_class": "PreTrainedTokenizerFast",
        }
        for role, name in (("bos", BOS), ("eos", EOS), ("pad", PAD)):
            if self.token_id(name) is not None:
                settings[f"{role}_token"] = name
        text = json.dumps(dict(sorted(settings.items())), indent=2, ensure_ascii=False) + "\n"
        return {"tokenizer_config.json": text.encode()}

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Return the ids of a text; added tokens written in it count as such only with `special=True`."""
        return (self._backend if special else self._plain).encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Return the text of ids; bytes that form no character become U+FFFD."""
        kept = (i for i in ids if not (skip_special and int(i) in self._special))
        return b"".join(self.token_bytes(int(i)) for i in kept).decode("utf-8", errors="replace")

    def stream(self) -> "StreamDecoder":
        """Return a decoder for ids that arrive one by one."""
        return StreamDecoder(self)

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes that a token stands for; of a special token, its name."""
        if self._bytes is None:
            self._bytes = self._all_bytes()
        return self._bytes[token] if 0 <= token < len(self._bytes) else b""

    def byte_lengths(self, vocab_size: int | None = None) -> list[int]:
        """Return how many bytes of text each token stands for: 0 for special tokens and for spare ids."""
        sizes = [0 if t in self._special else len(self.token_bytes(t)) for t in range(self.vocab_size)]
        return (sizes + [0] * max(0, (vocab_size or 0) - len(sizes)))[: vocab_size or None]

    def token_id(self, name: str) -> int | None:
        """Return the id of a token by its name, or None."""
        return self._backend.token_to_id(name)

    def is_special(self, token: int) -> bool:
        """Whether a token is a control token rather than text."""
        return int(token) in self._special

    @property
    def vocab_size(self) -> int:
        """One more than the largest id, added tokens included."""
        return max(self._backend.get_vocab(with_added_tokens=True).values()) + 1

    @cached_property
    def bos_id(self) -> int:
        """The token that opens a document."""
        return self._find("bos", BOS)

    @cached_property
    def eos_id(self) -> int:
        """The token that closes a document; never the padding (the model would not learn to stop)."""
        return self._find("eos", EOS)

    @cached_property
    def pad_id(self) -> int:
        """The token that fills a batch, where nothing is learned or scored; without one of its own, the closing one."""
        try:
            return self._find("pad", PAD)
        except TokenizerError:
            return self.eos_id

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Every token that any of the files says ends a text, the closing one first."""
        named = [self.token_id(name) for name in self.side.names("eos")]
        found = dict.fromkeys([self.eos_id, *named, *self.side.ids("eos")])
        return tuple(token for token in found if token is not None)

    @property
    def fim_ids(self) -> tuple[int, int, int]:
        """Ids of fill-in-the-middle: begin, hole, end."""
        return self._required(FIM_BEGIN), self._required(FIM_HOLE), self._required(FIM_END)

    @property
    def has_fim(self) -> bool:
        """Whether there are tokens for fill-in-the-middle."""
        return all(self.token_id(name) is not None for name in (FIM_BEGIN, FIM_HOLE, FIM_END))

    def _refuse_lossy(self) -> None:
        """Raise if a text comes back as another."""
        for text in PROBES:  # ASCII by itself; bytes above it are in the others
            if (back := self.decode(self.encode(text), skip_special=False)) != text:
                raise TokenizerError(
                    f"the tokenizer changes text: {text!r} comes back as {back!r}; give one without a normalizer or "
                    "a space put in front, with all 256 bytes"
                )

    def _find(self, role: str, released: str) -> int:
        """The tokenizer's own files come first, then the model's, then the released name."""
        named = (self.token_id(name) for name in self.side.names(role))
        numbered = (token for token in self.side.ids(role) if self._backend.id_to_token(token) is not None)
        found = next((token for token in (*named, *numbered, self.token_id(released)) if token is not None), None)
        if found is None:
            mend = f"set {role}_token in tokenizer_config.json or {role}_token_id in config.json, beside tokenizer.json"
            raise TokenizerError(f"the tokenizer has no {released}, and no file names another; {mend}")
        return found

    def _required(self, name: str) -> int:
        token = self.token_id(name)
        if token is None:
            raise TokenizerError(f"the tokenizer has no {name}; train one here, or give the released tokenizer.json")
        return token

    def _all_bytes(self) -> list[bytes]:
        byte_of = {character: byte for byte, character in enumerate(_byte_characters())}
        vocab = self._backend.get_vocab(with_added_tokens=True)
        table = [b""] * (max(vocab.values()) + 1)
        for word, token in vocab.items():
            if token in self._added:
                table[token] = self._added[token].encode()
            else:
                table[token] = bytes(byte_of[c] for c in word if c in byte_of)
        return table


class StreamDecoder:
    """Ids in, whole characters out: a character whose bytes are still missing waits."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """Return the text that this token completes; control tokens give none."""
        if self._tokenizer.is_special(token):
            return ""
        return self._decoder.decode(self._tokenizer.token_bytes(int(token)))

    def finish(self) -> str:
        """Return what was left, as U+FFFD if it is no whole character."""
        return self._decoder.decode(b"", final=True)


def _without_added_tokens(description: dict) -> tokenizers.Tokenizer:
    """The same tokenizer, to which every text is text. (The library's own switch for it knows special tokens only.)"""
    model = description["model"]
    names = {token["content"] for token in description.get("added_tokens", [])}
    if model.get("ignore_merges"):  # a word of the vocabulary counts without merges then: no added token must be one
        model = {**model, "vocab": {word: token for word, token in model["vocab"].items() if word not in names}}
    changes = {"added_tokens": [], "model": model, "truncation": None, "padding": None}
    return tokenizers.Tokenizer.from_str(json.dumps({**description, **changes}))


def _byte_characters() -> Sequence[str]:
    """Return the printable character that byte-level BPE writes for each byte 0..255."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in set(shown)]
    return [chr(byte) if byte in set(shown) else chr(0x100 + hidden.index(byte)) for byte in range(256)]
