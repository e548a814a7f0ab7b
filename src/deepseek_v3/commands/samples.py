"""What a model in training writes: the samples of the report and of the demo, where training meets generation."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deepseek_v3.data.tokenizer import Tokenizer
    from deepseek_v3.model.transformer import DeepseekV3


def continue_text(
    model: "DeepseekV3",
    tokenizer: "Tokenizer",
    prompt: str,
    *,
    tokens: int = 48,
    temperature: float = 0.7,
    seed: int = 0,
) -> str:
    """Return what the model writes after a prompt."""
    import torch

    from deepseek_v3.engine.generate import generate

    training = model.training
    model.eval()
    try:
        start = torch.tensor([[tokenizer.bos_id, *tokenizer.encode(prompt)]])
        new = generate(
            model,
            start,
            max_new_tokens=tokens,
            temperature=temperature,
            top_p=0.95,
            seed=seed,
            stop_tokens=tokenizer.stop_ids,
        )
        return tokenizer.decode([int(token) for token in new])
    finally:
        model.train(training)
