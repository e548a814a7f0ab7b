"""A request on its way: its tokens so far, how far each part of the model has read them, and in which blocks.

    t_0 ... t_n-1        the main model has read the first `read` of them, module k the first `module_read[k]`

Letters: S rows, D width.
"""

from array import array

from torch import Tensor

from deepseek_v3.engine.request import GenerationStatistics, Request
from deepseek_v3.engine.sampler import make_generator
from deepseek_v3.model.transformer import DeepseekV3


class Sequence:
    """What the engine knows of one request.

    Attributes:
        tokens: the prompt and what has been generated.
        limit: tokens to generate at most; the last one is drawn but not read.
        blocks: the block table of its cache.
        keys: of its full blocks, from the beginning.
        fresh: hidden rows [S, D] of the main model that no module has been handed.
        waiting: for each module the rows that it was handed too early: their token is not known for good yet.
        finish: None while it runs, then "stop", "length", "abort" or "error".
    """

    def __init__(self, id: int, request: Request, model: DeepseekV3, modules: int) -> None:
        self.id, self.request = id, request
        self.tokens, self.prompt = list(request.tokens), len(request.tokens)
        self.limit = request.limit(model.config)
        self.modules = min(request.drafts, modules)
        self.generator = make_generator(request.seed, model.lm_head.weight.device)
        self.statistics = GenerationStatistics(prompt_tokens=self.prompt)
        self.finish: str | None = None
        self.error = ""
        self.restart()

    def restart(self) -> None:
        """Begin reading anew: at first, and after its blocks have been taken away."""
        self.read, self.module_read = 0, [0] * self.modules
        self.blocks = array("q")
        self.keys: list[bytes] = []
        self.fresh: list[Tensor] = []
        self.waiting: list[list[Tensor]] = [[] for _ in range(self.modules)]

    def skip(self, shared: list[int], block_size: int) -> None:
        """Take over a beginning that another sequence has read."""
        self.blocks = array("q", shared)
        self.read = len(shared) * block_size
        self.module_read = [self.read] * self.modules

    @property
    def text(self) -> list[int]:
        """What has been generated."""
        return self.tokens[self.prompt :]

    @property
    def new(self) -> int:
        """How many tokens have been generated."""
        return len(self.tokens) - self.prompt

    @property
    def decoding(self) -> bool:
        """Whether all but the newest token has been read, and that one was generated."""
        return self.new > 0 and self.read == len(self.tokens) - 1

    @property
    def drafts(self) -> int:
        """Drafts worth making now: a step brings one token more than there are drafts."""
        return min(self.request.drafts, self.limit - self.new - 1)

    @property
    def readable(self) -> int:
        """Where reading in pieces ends; of a sequence that generates, the newest token is read beside its drafts."""
        return len(self.tokens) - (self.new > 0)

    @property
    def settled(self) -> int:
        """Tokens whose latents are final in every layer that this sequence uses."""
        return min(len(self.tokens), self.read, *self.module_read)

    def accept(self, tokens: list[int]) -> list[int]:
        """Append new tokens, none from a stop token on, and see whether it is over; return what was appended."""
        ends = [at for at, token in enumerate(tokens) if token in self.request.stop_tokens]
        fresh = tokens[: ends[0]] if ends else tokens
        self.tokens += fresh
        self.statistics.new_tokens += len(fresh)
        if ends:
            self.finish = "stop"
        elif self.new >= self.limit:
            self.finish = "length"
        return fresh
