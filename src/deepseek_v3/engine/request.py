"""What a generation is asked for, checked, and what it did, counted."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from deepseek_v3.model.transformer import DeepseekV3


@dataclass
class GenerationStatistics:
    """What one generation did; `generate` fills it in as it goes.

    Attributes:
        steps: passes of the main model after the prompt.
        drafted: drafts of each depth.
        accepted: of these, the ones that became text.
    """

    prompt_tokens: int = 0
    new_tokens: int = 0
    steps: int = 0
    drafted: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    prefill_s: float = 0.0
    decode_s: float = 0.0

    @property
    def acceptance_rate(self) -> float:
        """Share of all drafts that became text; a draft behind one that fell has fallen too."""
        return sum(self.accepted) / sum(self.drafted) if self.drafted else 0.0

    @property
    def acceptance_by_depth(self) -> list[float]:
        """The same of the first drafts, the second ones, and so on: none can be larger than the one before."""
        return [stood / made for stood, made in zip(self.accepted, self.drafted)]

    @property
    def tokens_per_step(self) -> float:
        """Tokens that a pass of the main model brings; 1 without drafts. The first token is the prompt's own."""
        return (self.new_tokens - 1) / self.steps if self.steps else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Decoding rate, the prompt and its first token not counted."""
        return (self.new_tokens - 1) / self.decode_s if self.decode_s and self.new_tokens else 0.0

    def count_drafts(self, made: int, stood: int) -> None:
        """Count one step's drafts by depth."""
        for counts, share in ((self.drafted, made), (self.accepted, stood)):
            counts += [0] * (made - len(counts))
            for depth in range(share):
                counts[depth] += 1


def check_prompt(model: DeepseekV3, tokens: Tensor | Sequence[int]) -> list[int]:
    """Return the prompt as a list.

    Raises:
        ValueError: several sequences, none, a token that is none, or more tokens than the model has positions.
    """
    config = model.config
    if isinstance(tokens, Tensor):
        if tokens.is_floating_point() or tokens.dim() not in (1, 2) or (tokens.dim() == 2 and tokens.shape[0] != 1):
            raise ValueError(
                f"tokens of shape {tuple(tokens.shape)} and {tokens.dtype} must be integers, "
                "[S] or [1, S]; for several prompts use generate_batch"
            )
        tokens = tokens.flatten().tolist()
    prompt = [int(token) for token in tokens]
    if not prompt:
        raise ValueError("the prompt is empty; start with the bos token, for instance")
    for token in prompt:
        if not 0 <= token < config.vocab_size:
            raise ValueError(
                f"token {token} is outside the vocabulary of {config.vocab_size}; is it another tokenizer's?"
            )
    if len(prompt) > config.max_position_embeddings:
        raise ValueError(
            f"the prompt has {len(prompt)} tokens, max_position_embeddings={config.max_position_embeddings}; shorten it"
        )
    return prompt


def count_drafts(model: DeepseekV3, speculative: bool | int) -> int:
    """Return how many tokens to draft a step.

    Raises:
        ValueError: a negative number, or a model without MTP modules.
    """
    drafts = len(model.mtp) if speculative is True else int(speculative)
    if drafts < 0:
        raise ValueError(f"speculative={speculative} must be False, True or the number of drafts")
    if speculative and not len(model.mtp):
        raise ValueError(
            "speculative decoding needs MTP modules and this model has none (num_nextn_predict_layers=0); pass "
            "speculative=False, or load a checkpoint that kept them"
        )
    return drafts
