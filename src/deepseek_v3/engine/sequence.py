"""A request on its way: its tokens so far, how far each part of the model has read them, and in which blocks.

    t_0 ... t_n-1        the main model has read the first `read` of them, module k the first `module_read[k]`

Letters: S rows, D width, V vocabulary.
"""

from array import array
from collections.abc import Callable

from torch import Tensor

from deepseek_v3.engine.request import GenerationStatistics, Request
from deepseek_v3.engine.sampler import Score, find_likeliest, make_generator, score_tokens
from deepseek_v3.engine.steering import Steerer
from deepseek_v3.engine.stop import TextGate, TokenStream
from deepseek_v3.engine.trace import Trace
from deepseek_v3.model.transformer import DeepseekV3

PATIENCE = 48  # steps without drafts, after which an adaptive sequence lets go of what its modules would have to read
PRIOR, MEMORY = 4, 32  # drafts that a chance begins with, and that it remembers


class Sequence:
    """What the engine knows of one request.

    Attributes:
        tokens: the prompt and what has been generated.
        limit: tokens to generate at most; the last one is drawn but not read.
        blocks: the block table of its cache.
        keys: of its full blocks, from the beginning.
        fresh: hidden rows [S, D] of the main model that no module has been handed.
        waiting: for each module the rows that it was handed too early: their token is not known for good yet.
        adaptive: whether it drafts only while that pays.
        chances: how often its first, second, ... draft becomes text.
        idle: how many steps it has decoded without drafts because they do not pay.
        gave_up: whether its modules have missed rows, so that it drafts no more.
        leader: another sequence with the same prompt, which reads it first.
        prompt_scores: of every token of the prompt, where they are asked for; of the first there is none.
        trace: what a training wants to know, if the request asked for it.
        finish: None while it runs, then "stop", "length", "abort" or "error".
    """

    def __init__(
        self,
        id: int,
        request: Request,
        model: DeepseekV3,
        modules: int,
        stream: Callable[[], TokenStream] | None = None,
    ) -> None:
        device = model.lm_head.weight.device
        self.id, self.request = id, request
        self.tokens, self.prompt = list(request.tokens), len(request.tokens)
        self.limit = request.limit(model.config)
        self.modules = min(request.drafts, modules)
        self.stop_tokens = request.all_stop_tokens
        self.generator = make_generator(request.seed, device)
        self.gate = TextGate(stream(), request.stop) if stream else None
        self.steerer: Steerer | None = None
        if request.steered:
            grammar = request.constraint.begin() if request.constraint else None
            self.steerer = Steerer(request.steering, grammar, self.tokens, model.config.vocab_size, device)
        self.adaptive = request.adaptive and (request.rule.greedy or request.seed is None)
        self.chances, self.drafted = [1.0] * request.drafts, [PRIOR] * request.drafts
        self.leader: Sequence | None = None
        self.prompt_scores: list[Score | None] = [None] * self.prompt if request.prompt_logprobs is not None else []
        self.statistics = GenerationStatistics(prompt_tokens=self.prompt)
        self.trace = Trace() if request.trace else None
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
        self.idle, self.gave_up = 0, False

    def skip(self, shared: list[int], block_size: int) -> None:
        """Take over a beginning that another sequence has read."""
        self.blocks = array("q", shared)
        self.read = len(shared) * block_size
        self.module_read = [self.read] * self.modules
        if not self.new:
            self.statistics.shared_tokens = self.read

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
    def must_wait(self) -> bool:
        """Whether another sequence is still reading the same prompt; its modules do so with the first new token."""
        leader = self.leader
        return leader is not None and leader.finish is None and leader.new < 1 + (leader.modules > 0)

    @property
    def drafts(self) -> int:
        """Drafts that could be made now: a step brings one token more than there are drafts."""
        return 0 if self.gave_up else min(self.request.drafts, self.limit - self.new - 1)

    @property
    def readable(self) -> int:
        """Where reading in pieces ends; of a sequence that generates, the newest token is read beside its drafts."""
        return len(self.tokens) - (self.new > 0)

    @property
    def settled(self) -> int:
        """Tokens whose latents are final in every layer that this sequence uses."""
        return min(len(self.tokens), self.read, *self.module_read)

    @property
    def scoring(self) -> int:
        """How many tokens from `read` on have a token of the prompt behind them that is to be scored."""
        return max(0, self.prompt - 1 - self.read) if self.request.prompt_logprobs is not None else 0

    def score_prompt(self, logits_SV: Tensor, count: int) -> None:
        """Score the tokens of the prompt that follow the `count` tokens read last."""
        start = self.read - count
        behind = self.tokens[start + 1 : min(self.read + 1, self.prompt)]
        top = self.request.prompt_logprobs
        if top is not None and behind:
            find_likeliest(logits_SV)
            scores = score_tokens(logits_SV[: len(behind)], behind, top)
            self.prompt_scores[start + 1 : start + 1 + len(behind)] = scores

    def steer(self, logits_SV: Tensor, drafts: list[int]) -> Tensor:
        """Apply bias, penalties and grammar; row by row behind the drafts."""
        if self.steerer is None:
            return logits_SV
        find_likeliest(logits_SV)  # what is masked must be a number too
        return self.steerer.steer(logits_SV, drafts)

    def accept(self, tokens: list[int]) -> list[int]:
        """Append new tokens until one ends it, none from a stop token on; return what was appended."""
        before = len(self.tokens)
        for token in tokens:
            if token in self.stop_tokens:
                self.finish = "stop"
                break
            self.tokens.append(token)
            complete = self.steerer is not None and self.steerer.take(token)
            stopped = self.gate is not None and self.gate.push(token)
            if complete or stopped:
                self.finish = "stop"
                break
        if self.finish is None and self.new >= self.limit:
            self.finish = "length"
        self.statistics.new_tokens += len(self.tokens) - before
        return self.tokens[before:]

    def take_shown(self) -> str:
        """Return the text that may be shown now."""
        return "" if self.gate is None else self.gate.take(last=self.finish is not None)

    def learn_chances(self, made: int, stood: int) -> None:
        """Note which drafts of a step became text."""
        for depth in range(made):
            self.drafted[depth] = min(self.drafted[depth] + 1, MEMORY)
            self.chances[depth] += ((depth < stood) - self.chances[depth]) / self.drafted[depth]

    def keep_fresh(self, hidden_SD: Tensor, *, idle: bool) -> None:
        """Keep rows for the modules, until too many steps have gone without drafts."""
        if not self.modules or self.gave_up:
            return
        self.fresh.append(hidden_SD)
        self.idle = self.idle + 1 if idle else 0
        if self.idle > PATIENCE:
            self.fresh, self.gave_up = [], True
