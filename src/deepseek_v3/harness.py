"""A checkpoint as a model of lm-evaluation-harness, for its local tasks.

    import lm_eval
    from deepseek_v3.harness import load_for_harness
    lm_eval.simple_evaluate(model=load_for_harness("runs/demo"), tasks=["lambada_openai"])

The harness is no dependency: install `lm-eval` where it is wanted. What it asks of a model are three methods on lists
of requests, each with `args`; they are here, in plain sight, and `load_for_harness` makes the harness's class of them.
"""

from collections.abc import Sequence
from os import PathLike
from typing import Any

import torch

from deepseek_v3.data.tokenizer import Tokenizer
from deepseek_v3.engine.generate import generate
from deepseek_v3.engine.stop import StopGate
from deepseek_v3.model.transformer import DeepseekV3
from deepseek_v3.model_io import load

MAX_NEW_TOKENS = 256  # where a task does not say


class HarnessModel:
    """What the harness asks of a model: log-likelihoods of continuations and of whole texts, and greedy text."""

    def __init__(self, model: DeepseekV3, tokenizer: Tokenizer, *, seq_len: int | None = None) -> None:
        """Wrap a model.

        Args:
            seq_len: tokens that a window holds; the model's own limit unless told.
        """
        self.model, self.tokenizer = model, tokenizer
        self.seq_len = seq_len or model.config.max_position_embeddings

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return, for each (context, continuation), the nats of the continuation and whether it is the greedy one."""
        return [self._score(*self.split_tokens(*request.args)) for request in requests]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the nats of each whole text; every token counts once, behind at least half a window of the text."""
        found = []
        for request in requests:
            ids = [self.tokenizer.bos_id, *self.tokenizer.encode(request.args[0])]
            stride = max(1, self.seq_len // 2)
            nats, scored = 0.0, 1
            while scored < len(ids):
                end = min(len(ids), scored + (self.seq_len if scored == 1 else stride))
                start = max(0, end - 1 - self.seq_len)
                nats += self._score(ids[start:scored], ids[scored:end])[0]
                scored = end
            found.append(nats)
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return what the model writes after each context, up to the first of the texts in `until`."""
        return [self._continue(*request.args) for request in requests]

    def split_tokens(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Tokenize both as one text: a word across the seam is whole; spaces at the seam go to the continuation."""
        bare = context.rstrip()
        context, continuation = bare, context[len(bare) :] + continuation
        before = self.tokenizer.encode(context)
        whole = self.tokenizer.encode(context + continuation)
        return [self.tokenizer.bos_id, *before], whole[len(before) :]

    @torch.inference_mode()
    def _score(self, before: list[int], after: list[int]) -> tuple[float, bool]:
        if len(after) > self.seq_len:
            raise ValueError(f"a continuation of {len(after)} tokens is longer than a window of {self.seq_len}")
        if not after:
            return 0.0, True
        tokens = [*before, *after][-self.seq_len - 1 :]
        logits_SV = self.model(torch.tensor([tokens[:-1]], device=self.model.lm_head.weight.device))[0]
        labels = torch.tensor(tokens[-len(after) :], device=logits_SV.device)
        rows_SV = logits_SV[-len(after) :].float()
        nats = rows_SV.log_softmax(-1).gather(-1, labels[:, None]).sum()
        return float(nats), bool((rows_SV.argmax(-1) == labels).all())

    def _continue(self, context: str, settings: dict[str, Any]) -> str:
        until = settings.get("until") or []
        gate, text, said = StopGate((until,) if isinstance(until, str) else tuple(until)), self.tokenizer.stream(), ""
        count = int(settings.get("max_gen_toks", MAX_NEW_TOKENS))
        prompt = [self.tokenizer.bos_id, *self.tokenizer.encode(context)][-max(1, self.seq_len - count) :]
        temperature = float(settings.get("temperature", 0.0)) if settings.get("do_sample") else 0.0
        stops = self.tokenizer.stop_ids
        for token in generate(self.model, prompt, max_new_tokens=count, temperature=temperature, stop_tokens=stops):
            said += gate.push(text.push(token))
            if gate.stopped:
                return said
        return said + gate.push(text.finish()) + gate.finish()


def load_for_harness(folder: str | PathLike, **options: Any) -> Any:
    """Load a run or a checkpoint as an instance of the harness's own class of models.

    Args:
        options: of `deepseek_v3.load`.
    Raises:
        ImportError: lm-eval is not installed; ValueError: no tokenizer.
    """
    try:
        from lm_eval.api.model import LM  # type: ignore[import-not-found]
    except ImportError:
        raise ImportError("lm-evaluation-harness is not installed here: pip install lm-eval") from None

    class Adapter(HarnessModel, LM):
        def __init__(self, model: DeepseekV3, tokenizer: Tokenizer) -> None:
            LM.__init__(self)
            HarnessModel.__init__(self, model, tokenizer)

    model, tokenizer = load(folder, **options)
    if tokenizer is None:
        raise ValueError(f"{folder} has no tokenizer.json, so text cannot become tokens; copy it there")
    return Adapter(model, tokenizer)
