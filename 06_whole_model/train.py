"""Train DeepSeek-V3 in NumPy on the text that every Python carries, for two minutes, and let it write.

    python train.py                         two minutes, float32, then the losses and some text
    python train.py --seconds 600 --save runs/numpy
    python train.py --load runs/numpy --seconds 0        only write
    python train.py --float64 --steps 20

The model has every mechanism of the released one: latent attention, experts in groups with a balancing bias, an MTP
module that also drafts. It reads characters of `pydoc_data.topics`; one topic in ten is held out. The text differs
between Python versions, and how many steps fit into two minutes between machines; so do the numbers.

`--save DIR` writes a directory that the package loads (`deepseek_v3.load`), and transformers as well; `--load DIR`
reads one that either has written, if its tokens are these 96 characters.
"""

import argparse

import chapters  # noqa: F401
import numpy as np
from architecture import Config, Model, count_parameters, init_model
from checkpoint import load_checkpoint, save_checkpoint
from generation import write_tokens
from loss_free_balancing import max_violation
from model import Losses, loss_forward
from small_language_model import VOCAB_SIZE, PackedText, decode_text, draw_prompts, draw_windows, read_topics
from speculative_decoding import SamplingRule
from training import Recipe, print_over, train_model, unigram_entropy

LAPTOP = Config(
    vocab_size=VOCAB_SIZE,
    hidden_size=128,
    intermediate_size=256,
    moe_intermediate_size=64,
    num_hidden_layers=3,
    first_k_dense_replace=1,
    num_attention_heads=4,
    q_lora_rank=64,
    kv_lora_rank=32,
    qk_nope_head_dim=24,
    qk_rope_head_dim=8,
    v_head_dim=24,
    n_routed_experts=8,
    num_experts_per_tok=2,
    n_group=4,
    topk_group=2,
    initializer_range=0.1,
)


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Train DeepSeek-V3 in NumPy and let it write.")
    parser.add_argument("--seconds", type=float, default=120, help="how long to train (0: not at all)")
    parser.add_argument("--steps", type=int, help="train for this many steps instead")
    parser.add_argument("--float64", action="store_true", help="double precision; about half as fast")
    parser.add_argument("--load", metavar="DIR", help="start from this checkpoint directory")
    parser.add_argument("--save", metavar="DIR", help="write a checkpoint directory at the end")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--length", type=int, default=72, help="characters to write after each of three prompts")
    return parser.parse_args(arguments)


def prepare_model(options: argparse.Namespace) -> Model:
    """Draw a model, or load one.

    Raises:
        ValueError: the loaded one has other tokens than this text.
    """
    dtype = np.float64 if options.float64 else np.float32
    if not options.load:
        return init_model(np.random.default_rng(options.seed), LAPTOP, dtype)
    model = load_checkpoint(options.load, dtype)
    if model.config.vocab_size != VOCAB_SIZE:
        raise ValueError(
            f"{options.load} has {model.config.vocab_size} tokens, this text has {VOCAB_SIZE} characters; load a "
            "checkpoint of this script, or use checkpoint.load_checkpoint and model.predict_logits on token numbers"
        )
    return model


def measure_held_out(model: Model, text: PackedText) -> Losses:
    """The losses on 64 fixed windows of topics that training never saw; nothing moves."""
    windows = draw_windows(np.random.default_rng(1), text, 64, Recipe().n_tokens)
    return loss_forward(model, *windows, alpha=0.0)[0]


def report_losses(model: Model, unseen: PackedText) -> None:
    """Print the held-out losses beside what a guess without context costs."""
    losses, entropy = measure_held_out(model, unseen), unigram_entropy(unseen, VOCAB_SIZE)
    violation = np.mean([max_violation(load) for load in losses.loads.values()])
    print(f"held-out topics: {losses.main:.3f} nats a character; its unigram entropy is {entropy:.3f}")
    if losses.ahead:
        print(f"the character after the next, by the MTP module: {losses.ahead[0]:.3f} nats")
    print(f"experts: MaxVio {violation:.2f} (0 when every expert gets the same)")


def report_text(model: Model, unseen: PackedText, length: int, seed: int) -> None:
    """Continue held-out prose, plainly and with drafts; with the default length no position is new to the model."""
    rng = np.random.default_rng(seed)
    prompts = draw_prompts(rng, unseen, 3)
    for prompt in prompts:
        tokens = write_tokens(model, prompt, length, SamplingRule(rng, temperature=0.5)).tokens
        print(f"  {decode_text(prompt)!r} + {decode_text(tokens[len(prompt) :])!r}")
    if model.config.num_nextn_predict_layers:
        drafted = [write_tokens(model, p, length, SamplingRule(rng, temperature=0.5), n_drafts=1) for p in prompts]
        acceptance = np.mean([report.acceptance for report in drafted])
        pace = np.mean([report.tokens_per_step for report in drafted])
        print(f"with one draft a step {acceptance:.0%} of them pass: {pace:.2f} characters for each main pass")


def main(arguments: list[str] | None = None) -> None:
    """Train, measure, write, save."""
    options = parse_options(arguments)
    text, unseen, model = read_topics(), read_topics(held_out=True), prepare_model(options)
    main_size, mtp_size = count_parameters(model.config)
    print(f"{len(text.tokens):,} characters to train on (digest {text.digest}), {len(unseen.tokens):,} held out")
    print(f"{main_size:,} parameters and {mtp_size:,} in the MTP module, {model.weights['lm_head.weight'].dtype}")
    if options.steps or options.seconds:
        how_long = {"n_steps": options.steps} if options.steps else {"seconds": options.seconds}
        history = train_model(model, text, seed=options.seed, say=print_over, **how_long)
        print(f"\ntrained for {len(history)} steps; last step: main {history[-1].main:.3f}")
    report_losses(model, unseen)
    report_text(model, unseen, options.length, options.seed)
    if options.save:
        save_checkpoint(model, options.save)
        print(f"saved in {options.save}")


if __name__ == "__main__":
    main()
