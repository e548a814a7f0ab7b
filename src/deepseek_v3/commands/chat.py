"""The command `deepseek-v3 chat`: a dialogue in the terminal, by the same engine as `serve`.

    deepseek-v3 chat RUN --system "Answer briefly."

What has been said is not read again: the engine finds it in its cache. This file imports no PyTorch until it runs.
"""

import sys
from dataclasses import dataclass
from typing import IO, Any

import tyro

from deepseek_v3.commands.generate import summarise
from deepseek_v3.commands.loading import load_writer

HINT = "Write a line; /new begins anew, /quit or Ctrl-D ends, Ctrl-C stops an answer."


@dataclass
class ChatOptions:
    """Talk with a trained model in the terminal."""

    run: tyro.conf.Positional[str]
    """a run folder, or a Hugging Face directory"""
    system: str = ""
    """what the model is told before the dialogue"""
    max_new_tokens: int = 512
    """an answer ends after this many tokens"""
    temperature: float = 0.7
    """0 always takes the likeliest token"""
    top_p: float = 0.95
    """draw among the likeliest tokens that together reach this probability; 1 = all"""
    seed: int | None = None
    """same seed and same words, same answers"""
    speculative: int | None = None
    """tokens to draft per step; by default one for each multi-token prediction module"""
    without_mtp: bool = False
    """leave the multi-token prediction layers out, where a checkpoint holds only a part of them"""
    dtype: str | None = None
    """float32, bfloat16, or fp8: all matrices in 8 bits, the head too; by default as stored"""
    device: str = "auto"
    """auto, cpu or cuda; auto takes a GPU where PyTorch sees one"""


def run_chat(options: ChatOptions) -> None:
    """Load, then answer line by line until the input ends.

    Raises:
        ValueError: no tokenizer, no chat template, or options that cannot work.
        OSError: no such folder or file.
    """
    if options.max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens {options.max_new_tokens} must be at least 1")
    model, tokenizer = load_writer(
        options.run, dtype=options.dtype, device=options.device, without_mtp=options.without_mtp
    )
    talk(Dialogue(model, tokenizer, options), sys.stdin, sys.stdout, sys.stderr)


class Dialogue:
    """The messages so far, and the engine that answers."""

    def __init__(self, model: Any, tokenizer: Any, options: ChatOptions) -> None:
        from deepseek_v3.data.chat import ChatTemplate
        from deepseek_v3.engine.engine import Engine
        from deepseek_v3.engine.request import EngineOptions, count_drafts
        from deepseek_v3.engine.sampler import SamplingRule

        self.tokenizer, self.options = tokenizer, options
        self.template = ChatTemplate.find(tokenizer)
        self.drafts = count_drafts(model, len(model.mtp) if options.speculative is None else options.speculative)
        self.rule = SamplingRule(options.temperature, top_p=options.top_p)
        self.context = model.config.max_position_embeddings
        blocks = -(-self.context // 32)
        limits = EngineOptions(n_blocks=blocks, max_rows=1, step_tokens=max(256, self.drafts + 1))
        self.engine = Engine(model, limits, stream=tokenizer.stream)
        self.restart()

    def restart(self) -> None:
        """Forget what has been said, but not what the model was told."""
        self.messages = [{"role": "system", "content": self.options.system}] if self.options.system else []

    def answer(self, words: str, out: IO[str]) -> str:
        """Answer, written as it comes; return a line of figures.

        Raises:
            ValueError: words that do not fit, or logits that are no numbers; they are forgotten then.
        """
        from deepseek_v3.data.chat import encode_rendering
        from deepseek_v3.engine.request import Request

        asked = [*self.messages, {"role": "user", "content": words}]
        tokens, _ = encode_rendering(self.tokenizer, self.template.render_prompt(asked))
        if (room := self.context - len(tokens)) < 1:
            raise ValueError(f"the dialogue fills the context of {self.context} tokens; /new begins another")
        request = Request(
            tokens, self.rule, min(room, self.options.max_new_tokens), self.options.seed,
            min(self.drafts, room - 1), self.tokenizer.stop_ids, adaptive=True,
        )  # fmt: skip
        sequence, said = self.engine.admit(request), ""
        try:
            while not sequence.finish:
                for event in self.engine.step():
                    said += event.shown
                    out.write(event.shown)
                    out.flush()
        except KeyboardInterrupt:  # enough of this answer
            self.engine.abort(sequence.id)
        if sequence.finish == "error":
            raise ValueError(sequence.error)
        self.messages = [*asked, {"role": "assistant", "content": said}]
        return summarise(sequence.statistics)


def talk(dialogue: Dialogue, source: IO[str], out: IO[str], log: IO[str]) -> None:
    """Read lines and answer them, until there are no more."""
    log.write(HINT + "\n")
    while True:
        out.write("> ")
        out.flush()
        line = source.readline()
        words = line.strip()
        if not line or words == "/quit":
            out.write("" if line else "\n")
            return
        if words == "/new":
            dialogue.restart()
        elif words:
            try:
                figures = dialogue.answer(words, out)
            except ValueError as error:
                figures = str(error)
            out.write("\n")
            out.flush()
            log.write(figures + "\n")
