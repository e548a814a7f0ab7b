"""How a question becomes the tokens that the model is asked with, and its answer text."""

from collections.abc import Sequence

from deepseek_v3.data.chat import ChatTemplate
from deepseek_v3.data.tokenizer import Tokenizer
from deepseek_v3.post_training.dialogues import encode_prompt


class Wording:
    """A tokenizer and the template that came with it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer, self.template = tokenizer, ChatTemplate.find(tokenizer)
        self.pad = tokenizer.pad_id
        self._asked: dict[str, list[int]] = {}

    def ask(self, prompt: str) -> list[int]:
        """Write a question so that the answer comes next."""
        if prompt not in self._asked:
            if len(self._asked) > 10_000:
                self._asked.clear()
            self._asked[prompt] = encode_prompt(self.template, self.tokenizer, prompt)
        return self._asked[prompt]

    def read(self, tokens: Sequence[int]) -> str:
        """Return the text of an answer; a control token in it is text too, so that no rule is deceived by it."""
        return self.tokenizer.decode(tokens, skip_special=False)
