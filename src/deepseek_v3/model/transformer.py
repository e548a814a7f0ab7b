"""DeepSeek-V3: embedding, blocks, final norm, head, and the multi-token prediction modules.

    model = DeepseekV3(ModelConfig.preset("nano"))
    logits = model(tokens)                         int64 [B, S] -> [B, S, V]; row i predicts token i + 1
    logits, mtp_logits = model(tokens, mtp=True)   one [B, S, V] per depth k; row i predicts token i + 1 + k

Letters: B batch, S positions, D width, V vocabulary.
Source: arXiv:2412.19437, Figures 2 and 3.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

import deepseek_v3.ops as ops
from deepseek_v3.config import ModelConfig
from deepseek_v3.model.block import Block
from deepseek_v3.model.cache import LatentCache, Past, Within
from deepseek_v3.model.head import Head
from deepseek_v3.model.initialize import draw_by_name
from deepseek_v3.model.linear import Embedding
from deepseek_v3.model.mtp import MultiTokenPredictor
from deepseek_v3.model.norm import RMSNorm
from deepseek_v3.model.rope import rope_frequencies, rotation_at, rotation_magnitude
from deepseek_v3.model.router import Router, RoutingRecord
from deepseek_v3.model.section import Section


class DeepseekV3(nn.Module):
    """The whole model; the MTP modules share its embedding and head.

    Weights are drawn from PyTorch's generator: torch.manual_seed makes them the same again. Under torch.device("meta")
    nothing is drawn, and nothing takes memory: for who fills the weights otherwise.

    Attributes:
        frequency_R: of the rotations, FP64 on the CPU wherever the model is and however it is cast.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = Head(config.hidden_size, config.vocab_size)
        self.mtp = nn.ModuleList(
            MultiTokenPredictor(config, config.num_hidden_layers + k) for k in range(config.num_nextn_predict_layers)
        )
        if config.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight
        self.rope_magnitude, self.frequency_R = rotation_magnitude(config), rope_frequencies(config)
        if not self.norm.weight.is_meta:
            self.initialize_weights()

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return next(self.parameters()).device

    @torch.no_grad()
    def initialize_weights(self, seed: int | None = None) -> "DeepseekV3":
        """Draw every matrix from N(0, initializer_range^2), and set norms to 1, biases to 0; returns the model.

        Args:
            seed: every matrix from a generator of its own, by seed and name: the same weights on every device, and
                wherever a part of the model lives. None: all in turn from PyTorch's generator.
        """
        for name, parameter in self.named_parameters(remove_duplicate=False):
            if parameter.dim() == 1:
                parameter.fill_(1)
            elif seed is None:
                parameter.normal_(0, self.config.initializer_range)
            else:
                draw_by_name(parameter, name, self.config.initializer_range, seed)
        for module in self.modules():
            if isinstance(module, Router) and module.sigmoid:
                module.e_score_correction_bias.zero_()
        return self

    def forward(
        self,
        tokens_BS: Tensor,
        *,
        mtp: bool = False,
        cache: LatentCache | None = None,
        record: RoutingRecord | None = None,
    ):
        """Return logits [B, S, V], and with `mtp` also a list of logits, one per depth.

        Args:
            tokens_BS: int64, every one below vocab_size.
            mtp: also predict further tokens. The last k rows of depth k have no input token yet: ignore them.
            cache: attend to what it holds and append; without, attend within tokens_BS.
            record: told which experts the tokens went to.
        Raises:
            ValueError: tokens that are not a matrix, or `mtp` with a cache (a decoder runs the modules itself).
        """
        if tokens_BS.dim() != 2 or tokens_BS.shape[1] == 0:
            raise ValueError(f"tokens of shape {tuple(tokens_BS.shape)} must be [B, S] with S of at least 1")
        if not mtp:
            return self.lm_head(self.hidden_states(tokens_BS, cache=cache, record=record))
        if cache is not None:
            raise ValueError(
                "mtp=True with a cache has no meaning: the next tokens are not known; call the modules in .mtp"
            )
        hidden_BSD = self.hidden_states(tokens_BS, record=record)
        logits = self.lm_head(hidden_BSD)
        return logits, [self.lm_head(h) for h in self.mtp_hidden_states(tokens_BS, hidden_BSD, record)]  # V3 Eq. (23)

    def hidden_states(
        self,
        tokens_BS: Tensor,
        *,
        cache: LatentCache | None = None,
        counts: Sequence[int] | None = None,
        record: RoutingRecord | None = None,
        within: Within | Section | None = None,
    ) -> Tensor:
        """Return the final-normed hidden states [B, S, D]: what the head reads, and the first MTP module.

        Args:
            counts: of each row of the cache the tokens that are real; what follows them is padding and leaves no trace.
            within: without a cache, what every token may see, causally all by default; or which section of the rows the
                tokens are.
        """
        rotation, before = self.place_tokens(tokens_BS.shape[1], cache, counts)
        past = before or within
        if within is not None and within.position_BS is not None:
            rotation = rotation_at(within.position_BS, self.frequency_R, self.rope_magnitude)
        x_BSD = self.embed_tokens(tokens_BS)
        for i, layer in enumerate(self.layers):
            x_BSD = layer(x_BSD, rotation, past=None if past is None else past.at(i), record=record)
        if cache is not None:
            cache.advance(tokens_BS.shape[1] if counts is None else counts)
        return self.norm(x_BSD)

    def mtp_hidden_states(
        self,
        tokens_BS: Tensor,
        hidden_BSD: Tensor,
        record: RoutingRecord | None = None,
        within: Within | Section | None = None,
    ) -> list[Tensor]:
        """Run the chain of MTP modules over whole sequences; depth k reads token i + k in row i.

        Depth k has S - k rows: those whose token exists. Behind them come k rows of zeros, which a loss must mask; no
        router has seen them.

        Args:
            tokens_BS: those of hidden_BSD, and behind a section as many of the next one as there are modules.
        """
        rotation, _ = self.place_tokens(tokens_BS.shape[1], None)
        if within is not None and within.position_BS is not None:
            rotation = rotation_at(within.position_BS, self.frequency_R, self.rope_magnitude)
        hiddens = []
        for k, module in enumerate(self.mtp, 1):
            rows = min(hidden_BSD.shape[1], tokens_BS.shape[1] - k)
            if rows < 1:
                hiddens.append(torch.zeros_like(hidden_BSD))
                continue
            turned = ops.Rotation(rotation.cos[..., :rows, :], rotation.sin[..., :rows, :])
            past = None if within is None else within.first(rows)
            ahead_BSD = self.embed_tokens(tokens_BS[:, k : k + rows])
            hidden = module(hidden_BSD[:, :rows], ahead_BSD, turned, past=past, record=record)
            hidden_BSD = nn.functional.pad(hidden, (0, 0, 0, hidden_BSD.shape[1] - rows))
            hiddens.append(hidden_BSD)  # V3 Fig. 3
        return hiddens

    def place_tokens(
        self, count: int, cache: LatentCache | None, counts: Sequence[int] | None = None
    ) -> tuple[ops.Rotation, Past | None]:
        """Rotation of the next `count` positions, and with a cache what each query may see of it, at layer 0.

        Raises:
            ValueError: they do not fit into the cache.
        """
        if cache is None:
            positions = torch.arange(count, device=self.device)
            return rotation_at(positions, self.frequency_R, self.rope_magnitude), None
        past, positions = cache.place(count, counts), cache.positions(count)
        rotation = rotation_at(positions, self.frequency_R, self.rope_magnitude)
        equal = positions.dim() == 1 and past.seen == cache.lengths[0] + count
        if equal and (count == 1 or not ops.absorbs(count)):
            return rotation, past  # one query sees every position, and the expanded form is causal by itself
        mask = torch.arange(past.seen, device=positions.device) <= positions[..., None]
        return rotation, past._replace(mask_ST=mask if mask.dim() == 2 else mask.unsqueeze(1))
