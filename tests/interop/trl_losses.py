"""TRL's losses on answers that the other side wrote: run in an environment of TRL's own, one JSON file in, one out.

    python trl_losses.py MODEL CASE.json RESULT.json       MODEL: a folder of a DeepseekV3ForCausalLM

TRL's `GRPOTrainer._compute_loss` is called as it stands; only the scoring of tokens is ours, by the model's own logits,
since TRL's needs a patched forward pass.
"""

import json
import sys
from collections import defaultdict
from types import SimpleNamespace

import torch
from accelerate import Accelerator
from transformers import AutoModelForCausalLM
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling


def score(model, input_ids, attention_mask, logits_to_keep, **_):
    """Log-probabilities and entropies of the last tokens, as TRL wants them."""
    logits = model(input_ids=input_ids, attention_mask=attention_mask).logits[:, -logits_to_keep - 1 : -1].double()
    every = logits.log_softmax(-1)
    logps = every.gather(-1, input_ids[:, -logits_to_keep:, None])[..., 0]
    return logps, -(every.exp() * every).sum(-1).detach(), None


def make_trainer(model, settings):
    """A GRPOTrainer with what `_compute_loss` reads, and nothing else."""
    trainer = object.__new__(GRPOTrainer)
    trainer.model, trainer.accelerator = model, Accelerator(cpu=True)
    trainer.args = SimpleNamespace(
        use_bias_correction_kl=settings["bias_correction"], delta=None, steps_per_generation=1
    )
    trainer.top_entropy_quantile, trainer.off_policy_mask_threshold, trainer.use_vllm = 1.0, None, False
    trainer.loss_type, trainer.importance_sampling_level = settings["loss_type"], settings["level"]
    trainer.beta, trainer.epsilon_low, trainer.epsilon_high = settings["beta"], settings["low"], settings["high"]
    trainer.max_completion_length, trainer.current_gradient_accumulation_steps = settings["max_length"], 1
    trainer._entropy_bonus_enabled = trainer.aux_loss_enabled = trainer.use_adaptive_entropy = False
    trainer._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
    trainer._get_per_token_logps_and_entropies = score
    return trainer


def policy_loss(model, case, settings):
    """Loss and the gradient's norm, as TRL has them."""
    inputs = {name: torch.tensor(case[name]) for name in ("prompt_ids", "completion_ids")}
    inputs |= {name: torch.tensor(case[name]).long() for name in ("prompt_mask", "completion_mask")}
    inputs |= {name: torch.tensor(case[name]).double() for name in ("advantages", "old_per_token_logps")}
    inputs["ref_per_token_logps"] = torch.tensor(case["ref_per_token_logps"]).double()
    inputs["num_items_in_batch"] = inputs["completion_mask"].sum()
    model.zero_grad()
    loss = make_trainer(model, settings)._compute_loss(model, inputs)
    loss.backward()
    return float(loss.detach()), float(
        torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    )


def tuning_loss(model, examples, pad):
    """Loss and the gradient's norm of TRL's batch of dialogues, on completions alone."""
    rows = [{"input_ids": e["tokens"], "completion_mask": [int(a) for a in e["answers"]]} for e in examples]
    rows = [
        {**row, "labels": [t if m else -100 for t, m in zip(row["input_ids"], row["completion_mask"])]} for row in rows
    ]
    batch = DataCollatorForLanguageModeling(pad_token_id=pad)(rows)
    model.zero_grad()
    names = ("input_ids", "attention_mask", "labels")
    loss = model(**{name: batch[name] for name in names if name in batch}).loss
    loss.backward()
    return float(loss.detach()), float(
        torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    )


def main():
    """Read, compute, write."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(
        sys.argv[1], dtype=torch.float64, experts_implementation="eager"
    ).train()
    with open(sys.argv[2], encoding="utf-8") as file:
        case = json.load(file)
    found = {name: policy_loss(model, case, settings) for name, settings in case["settings"].items()}
    found["sft"] = tuning_loss(model, case["dialogues"], case["pad"])
    with open(sys.argv[3], "w", encoding="utf-8") as file:
        json.dump(found, file)


if __name__ == "__main__":
    main()
