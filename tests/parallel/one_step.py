"""Run by torchrun, or alone: gradients of one step, as one file; what every block made; how often it has run forward;
in a pipeline when the gradients of weights grew; and how many numbers a token were gathered over sections.

one_step.py OUT [pp=2] [ep=2] [replicas=2] [cp=2] [recompute=1] [length=33]
"""

import json
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from deepseek_v3.config import ModelConfig
from deepseek_v3.data.packing import Batch
from deepseek_v3.model.attention import MultiHeadLatentAttention
from deepseek_v3.model.norm import RMSNorm
from deepseek_v3.model.transformer import DeepseekV3
from deepseek_v3.parallel.layout import Solo
from deepseek_v3.parallel.mesh import leave
from deepseek_v3.training.balance import LoadCounter
from deepseek_v3.training.machine import autocast_for
from deepseek_v3.training.objective import Pretraining
from deepseek_v3.training.optimizer import build_optimizer
from deepseek_v3.training.options import TrainOptions
from deepseek_v3.training.recompute import recompute_blocks
from deepseek_v3.training.schedule import Settings
from deepseek_v3.training.step import Reading, Update

out, ways = Path(sys.argv[1]), {name: int(value) for name, value in (word.split("=") for word in sys.argv[2:])}
rows, length, micro, recompute = 8, ways.pop("length", 33), 1, ways.pop("recompute", 0)
config = ModelConfig.preset("demo").replace(
    num_hidden_layers=5, hidden_size=40, vocab_size=331, n_routed_experts=8, moe_intermediate_size=24,
    num_nextn_predict_layers=1, n_group=2, topk_group=1, first_k_dense_replace=0,
)  # fmt: skip
if "WORLD_SIZE" in os.environ:
    from torch.distributed.pipelining import PipelineStage

    from deepseek_v3.parallel.mesh import Mesh
    from deepseek_v3.parallel.pipeline import Pipeline

    layout = (Pipeline if ways.get("pp", 1) > 1 else Mesh)(micro, **ways)
else:
    layout = Solo(micro)
torch.manual_seed(3)
model = DeepseekV3(config)
tokens = torch.randint(0, 331, (rows, length + 1))
documents = (torch.arange(length + 1) > 7).long().expand(rows, -1)
model = layout.place(model)
runs: dict[str, int] = {}
made: dict[str, list[torch.Tensor]] = {}
for name, module in model.named_modules():
    if isinstance(module, MultiHeadLatentAttention):
        module.register_forward_hook(lambda *_, name=name: runs.update({name: runs.get(name, 0) + 1}))
    if isinstance(module, RMSNorm) and name in ("norm", "mtp.0.shared_head_norm"):
        module.register_forward_hook(lambda *_, name=name: made.setdefault(name, []).append(_[2].detach()))
grew: dict[str, list[bool]] = {"I": [], "W": [], "B": []}


def note_growth(name: str) -> None:
    """Let a stage note whether its weights have other gradients after a part of a backward pass."""
    plain = getattr(PipelineStage, name)

    def held() -> list[torch.Tensor]:
        grads = [m.o_proj.weight.grad for m in model.modules() if isinstance(m, MultiHeadLatentAttention)]
        return [grad.clone() for grad in grads if grad is not None]

    def watched(*words, **named):
        kind = "W" if "weight" in name else "B" if named.get("full_backward", True) else "I"
        before = held()
        plain(*words, **named)
        after = held()
        grew[kind].append(len(before) < len(after) or any(not torch.equal(a, b) for a, b in zip(before, after)))

    setattr(PipelineStage, name, watched)


if ways.get("pp", 1) > 1:
    note_growth("backward_one_chunk")
    note_growth("backward_weight_one_chunk")
gathered: set[int] = set()


def note_widths() -> None:
    """Let sections note what a token sends."""
    from deepseek_v3.parallel.section import Sections

    plain = Sections._gather

    def watched(sections: Sections, x_BSW: torch.Tensor) -> torch.Tensor:
        gathered.add(x_BSW.shape[-1])
        return plain(sections, x_BSW)

    Sections._gather = watched


if ways.get("cp", 1) > 1:
    note_widths()
if recompute:
    recompute_blocks(model)
parts = Pretraining(0.1), layout, LoadCounter(model), None, autocast_for("fp32")
update = Update(model, build_optimizer(model, TrainOptions()), *parts, torch.ones(331, dtype=torch.int64), 1.0)
batch = layout.rows(Batch(tokens, documents))
found = layout.accumulate(Reading(update, Settings(1e-3, rows, 0.3, 1e-3, rows * length)), batch, lambda: False)
grads = {name: layout.whole(p.grad).clone() for name, p in model.named_parameters()}
norm = layout.clip(model.parameters(), 1e9)
update.counter.sum_over(layout.sum)
counts = {str(layer): count.tolist() for layer, count in layout.union(update.counter.counts).items()}
rank = getattr(layout, "rank", 0)
total = float(layout.sum(torch.tensor(sum(float(part.total.detach()) for part in found), dtype=torch.float64)))
save_file({name: torch.cat(pieces) for name, pieces in made.items()}, out / f"made-{rank}.safetensors")
if getattr(layout, "ways", None) is None or layout.ways.readers.get_local_rank() == 0:
    save_file(grads, out / f"grads-{rank}.safetensors")
    said = {"counts": counts, "runs": runs, "total": total, "norm": norm, "grew": grew, "gathered": sorted(gathered)}
    (out / f"facts-{rank}.json").write_text(json.dumps(said))
layout.close()
leave(0)
