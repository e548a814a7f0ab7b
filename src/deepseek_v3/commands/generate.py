"""The command `deepseek-v3 generate`: a prompt in, text streamed out.

    deepseek-v3 generate RUN --prompt "def read(" --temperature 0.8 --speculative 1
    echo "Once" | deepseek-v3 generate RUN --prompt-file -

This file imports no PyTorch until the command runs.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import tyro

from deepseek_v3.commands.loading import load_writer


@dataclass
class GenerateOptions:
    """Continue a prompt with a trained model, printed as it comes."""

    run: tyro.conf.Positional[str]
    """a run folder, or a Hugging Face directory"""
    prompt: str = ""
    """the text to continue"""
    prompt_file: str | None = None
    """read the prompt from this file; - reads standard input"""
    max_new_tokens: int = 256
    """stop after this many tokens"""
    temperature: float = 0.7
    """0 always takes the likeliest token"""
    top_k: int = 0
    """draw among the k likeliest tokens; 0 = all"""
    top_p: float = 0.95
    """draw among the likeliest tokens that together reach this probability; 1 = all"""
    seed: int | None = None
    """same seed, same text"""
    stop: tuple[str, ...] = ()
    """end before any of these texts"""
    speculative: int = 0
    """tokens to draft per step with the multi-token prediction modules; 0 = plain decoding"""
    without_mtp: bool = False
    """leave the multi-token prediction layers out, where a checkpoint holds only a part of them"""
    dtype: str | None = None
    """float32, bfloat16, or fp8: all matrices in 8 bits, the head too; by default as stored"""
    device: str = "auto"
    """auto, cpu or cuda; auto takes a GPU where PyTorch sees one"""


def read_prompt_text(options: GenerateOptions) -> str:
    """Return the prompt, from the option, a file or standard input.

    Raises:
        ValueError: two prompts, or a file that is not text.
    """
    if options.prompt_file is None:
        return options.prompt
    if options.prompt:
        raise ValueError("give --prompt or --prompt-file, not both")
    data = sys.stdin.buffer.read() if options.prompt_file == "-" else Path(options.prompt_file).read_bytes()
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{options.prompt_file} is not UTF-8 text ({error.reason} at byte {error.start})") from None


def run_generate(options: GenerateOptions) -> None:
    """Load, stream the continuation to standard output, and say at the end how fast it came, on standard error.

    Raises:
        ValueError: no tokenizer beside the model, or options that cannot work.
        OSError: no such folder or file.
    """
    prompt = read_prompt_text(options)
    model, tokenizer = load_writer(
        options.run, dtype=options.dtype, device=options.device, without_mtp=options.without_mtp
    )
    stream_text(model, tokenizer, prompt, options, sys.stdout, sys.stderr)


def stream_text(model: Any, tokenizer: Any, prompt: str, options: GenerateOptions, out: IO[str], log: IO[str]) -> None:
    """Write the prompt and its continuation as it comes; then a line of figures to the log.

    Raises:
        ValueError: a prompt or option that cannot work, before anything is written.
    """
    from deepseek_v3.engine.generate import generate
    from deepseek_v3.engine.request import GenerationStatistics
    from deepseek_v3.engine.stop import StopGate

    statistics, gate, text = GenerationStatistics(), StopGate(options.stop), tokenizer.stream()
    tokens = generate(
        model,
        [tokenizer.bos_id, *tokenizer.encode(prompt)],
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        seed=options.seed,
        speculative=options.speculative,
        stop_tokens=tokenizer.stop_ids,
        statistics=statistics,
    )
    out.write(prompt)
    out.flush()
    try:
        for token in tokens:
            out.write(gate.push(text.push(token)))
            out.flush()
            if gate.stopped:
                break
        out.write(gate.finish() + "\n")  # a character whose last bytes have not come is left out
    except KeyboardInterrupt:  # the reader has seen enough
        out.write("\n")
    out.flush()
    log.write(summarise(statistics) + "\n")


def summarise(statistics: Any) -> str:
    """One line: tokens, rate, and what the drafts brought."""
    s = statistics
    line = f"[{s.prompt_tokens} + {s.new_tokens} tokens; prompt {s.prefill_s:.2f} s"
    line += f", then {s.tokens_per_second:.0f} tokens/s"
    if s.drafted:
        line += f"; drafts accepted {s.acceptance_rate:.0%}"
        if len(s.drafted) > 1:
            line += f" ({', '.join(f'{share:.0%}' for share in s.acceptance_by_depth)} by depth)"
        line += f", {s.tokens_per_step:.2f} tokens per step"
    return line + "]"
