"""Writing: the latent cache, absorbed attention, and drafts by the MTP module that the main model checks.

    python generation.py            three ways to the same text, and what the cache holds

Source: arXiv:2412.19437, sections 2.1.1 and 2.2; arXiv:2211.17192 for the check of drafts.
Letters: S new tokens, T tokens in the cache, D model width, V vocabulary.

Per token and layer the cache holds kv_lora_rank + qk_rope_head_dim numbers and nothing else. The prompt is read in the
expanded form of attention; behind it every step uses the absorbed one, which never builds a key or a value of a head.
Chapter 04 does the decoding: it asks for `read`, `draft` and `roll_back`, and this file gives it those.
"""

from collections.abc import Sequence

import chapters  # noqa: F401
import numpy as np
from absorbed_attention import absorbed_attention_forward
from architecture import Config, Model, init_model, view_layer, view_mtp
from decoupled_rope import decoupled_attention_forward
from kv_cache import TokenCache
from model import layer_forward, predict_logits
from mtp_module import mtp_forward
from rms_norm import rms_norm_forward
from small_language_model import decode_text
from speculative_decoding import GreedyRule, Report, plain_decode, speculative_decode


class LatentSession:
    """One sequence being written: a latent cache for each layer of the main model and for the first MTP module."""

    def __init__(self, model: Model, capacity: int):
        self.model = model
        self.layers = [view_layer(model, i) for i in range(model.config.n_layers)]
        self.caches = [TokenCache(capacity) for _ in self.layers]

    @property
    def nbytes(self) -> int:
        """Bytes of the tokens cached, all layers together."""
        return sum(cache.nbytes for cache in self.caches)

    def run_layer(self, x_1SD: np.ndarray, i: int) -> np.ndarray:
        """Run layer i on new tokens behind those in its cache."""
        past = self.caches[i]
        attend = absorbed_attention_forward if past.n_tokens else decoupled_attention_forward
        return layer_forward(x_1SD, self.layers[i], self.model.config, past=past, attend=attend)[0]

    def read(self, tokens_S: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Append tokens to the main model: (logits_SV, hidden_SD)."""
        x_1SD = self.model.weights["model.embed_tokens.weight"][np.asarray(tokens_S)][None]
        for i in range(self.model.config.num_hidden_layers):
            x_1SD = self.run_layer(x_1SD, i)
        hidden_SD = rms_norm_forward(x_1SD, self.model.weights["model.norm.weight"])[0][0]
        return hidden_SD @ self.model.weights["lm_head.weight"].T, hidden_SD

    def draft(self, hidden_SD: np.ndarray, tokens_S: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Append rows (h_i, t_{i+1}) to the MTP module: (logits_SV for t_{i+2}, out_SD).

        Raises:
            ValueError: the model has no MTP module.
        """
        first = self.model.config.num_hidden_layers
        if first == len(self.layers):
            raise ValueError("num_nextn_predict_layers=0: nothing drafts here; use write_tokens without drafts")
        embedding_1SD = self.model.weights["model.embed_tokens.weight"][np.asarray(tokens_S)][None]
        at_1S = self.caches[first].n_tokens + np.arange(len(hidden_SD))[None]

        def block(x_1SD: np.ndarray, _at_1S: np.ndarray):  # the cache knows the positions
            return self.run_layer(x_1SD, first), None

        out_1SD, _ = mtp_forward(view_mtp(self.model, 1), hidden_SD[None], embedding_1SD, at_1S, block)
        return out_1SD[0] @ self.model.weights["lm_head.weight"].T, out_1SD[0]

    def roll_back(self, n_target: int, n_draft: int) -> None:
        """Forget what was made of rejected drafts: the first rows stay, of the main model and of the module."""
        first = self.model.config.num_hidden_layers
        for i, cache in enumerate(self.caches[: first + 1]):
            cache.truncate(n_draft if i == first else n_target)


def write_tokens(model: Model, prompt: Sequence[int], n_new: int, rule, n_drafts: int = 0) -> Report:
    """Continue a prompt by `n_new` tokens, one for each pass of the main model, or more with drafts.

    Args:
        rule: GreedyRule() or SamplingRule(rng, temperature) of chapter 04.
        n_drafts: tokens that the MTP module proposes before each pass; the text has the same distribution.
    """
    session = LatentSession(model, len(prompt) + n_new + n_drafts + 1)
    if n_drafts:
        return speculative_decode(session, prompt, n_new, rule, n_drafts)
    return Report(plain_decode(session, prompt, n_new, rule))


def write_without_cache(model: Model, prompt: Sequence[int], n_new: int) -> list[int]:
    """Continue greedily by running the whole text again for every token: slow, obvious, the oracle of the rest."""
    text = [*prompt]
    for _ in range(n_new):
        text.append(int(predict_logits(model, np.array([text]))[0][0, -1].argmax()))
    return text


def main() -> None:
    """Write the same tokens in three ways with a random model, and weigh the cache."""
    config = Config(initializer_range=0.3)
    model = init_model(np.random.default_rng(0), config)
    prompt = [3, 1, 4, 1, 5]
    again = write_without_cache(model, prompt, 20)
    plain = write_tokens(model, prompt, 20, GreedyRule())
    drafted = write_tokens(model, prompt, 20, GreedyRule(), n_drafts=2)
    print("Five characters go in, twenty come out of a model with random weights (so they mean nothing):")
    print(f"  reading the whole text again for each:       {decode_text(again[5:])}")
    print(f"  with a cache of latents, absorbed attention: {decode_text(plain.tokens[5:])}")
    print(f"  with two drafts at every step:               {decode_text(drafted.tokens[5:])}")
    print(f"All three are the same text: {again == plain.tokens == drafted.tokens}.")
    print(f"A random model drafts badly: {drafted.acceptance:.0%} of the first drafts passed.")
    session = LatentSession(model, 5)
    session.read(prompt)
    each = config.kv_lora_rank + config.qk_rope_head_dim
    print(f"The cache of 5 tokens holds {session.nbytes // 8} numbers: 5 x {config.num_hidden_layers} layers x {each}.")
    heads, width = config.num_attention_heads, config.qk_nope_head_dim + config.qk_rope_head_dim
    print(f"Keys and values of every head would be {heads * (width + config.v_head_dim)}, where it holds {each}.")


if __name__ == "__main__":
    main()
