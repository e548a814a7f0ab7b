"""What serves here, asked without running it: every operation of a model, its form, and why not the kernel.

    for form in explain(config, dtype=torch.bfloat16): print(form.operation, form.form, form.why)

Letters: N tokens, D width, F and I hidden widths, E experts, V vocabulary, H heads.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from deepseek_v3.config import ModelConfig
from deepseek_v3.fp8.forms import NATIVE, explain_forms, which_form
from deepseek_v3.ops.choice import CODE, SERVES_UP_TO, absorbs, why_no_kernel


class Form(NamedTuple):
    """The form in which an operation runs; `why` says what keeps the kernel from serving, empty where it does."""

    operation: str
    form: str
    why: str


def explain(
    config: ModelConfig,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    tokens: int = 128,
    fp8: bool = False,
) -> list[Form]:
    """Say for every operation which form serves a forward pass of `tokens` new tokens in a row.

    Args:
        device: of the model, as a type: "cpu", "cuda".
        dtype: of activations and weights; with `fp8` the matrices are held in FP8.
    """
    c, matrix = config, CODE if fp8 else dtype

    def weight(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=matrix, device="meta")

    def activations(width: int, kind: torch.dtype = dtype, heads: int = 1) -> Tensor:
        return torch.empty(tokens, heads, width, dtype=kind, device="meta")

    x, router_x = activations(c.hidden_size), activations(c.hidden_size, torch.promote_types(dtype, torch.float32))
    asked: dict[str, tuple[Tensor, ...]] = {
        "linear": (x, weight(c.cache_width, c.hidden_size)),
        "swiglu": (x, weight(c.intermediate_size, c.hidden_size), weight(c.hidden_size, c.intermediate_size)),
        "rms norm": (x,),
        "attention, expanded": (activations(c.qk_head_dim, heads=c.num_attention_heads),),
        "head and loss": (x, torch.empty(c.vocab_size, c.hidden_size, dtype=dtype, device="meta")),
    }
    if c.n_routed_experts:
        up = weight(c.n_routed_experts, 2 * c.moe_intermediate_size, c.hidden_size)
        asked["routed experts"] = (x, up, weight(c.n_routed_experts, c.hidden_size, c.moe_intermediate_size))
        asked["choice of experts"] = (router_x[..., : c.n_routed_experts],)
    forms = []
    for operation, tensors in asked.items():
        why = why_no_kernel(*tensors, device=device)
        forms.append(Form(operation, "PyTorch" if why else "C++ kernel", why or ""))
    told, serves = explain_forms(device), which_form(device)
    why = "" if serves == NATIVE else "; ".join(f"{form} {said}" for form, said in told.items() if form != serves)
    forms.append(Form("FP8 training", serves, why))
    if absorbs(tokens):
        forms.append(Form("attention, absorbed", "PyTorch", "only a decoding step has a kernel for it"))
    why = _why_no_step(device, dtype, tokens)
    return [*forms, Form("decoding step", "the model" if why else "C++ kernel", why or "")]


def _why_no_step(device: str, dtype: torch.dtype, tokens: int) -> str | None:
    if tokens > SERVES_UP_TO:
        return f"more than {SERVES_UP_TO} tokens are the work of matrix products"
    rows = torch.empty(1024, 1, dtype=dtype, device="meta")  # of a decoding step even one token is enough
    return why_no_kernel(rows, device=device)
