"""Weights that stay FP8 in memory: the model is the one that they decode to, in every form, and saves what it read.

The oracle is the same checkpoint decoded when it is loaded, which other tests hold against ml_dtypes and Transformers.
Sizes are no multiples of 128, heads and experts begin within blocks, and neighbouring blocks have unlike scales.
"""

import copy
import sys
from pathlib import Path

import pytest
import torch
from ml_dtypes import float8_e4m3fn
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent))
from tiny_checkpoints import V2_LITE, V3, folder_digests, random_model

from deepseek_v3.engine import native_step
from deepseek_v3.engine.decode_step import DecodeStep
from deepseek_v3.engine.generate import generate
from deepseek_v3.fp8.quantize import CODE
from deepseek_v3.fp8.weight import HoldsFP8
from deepseek_v3.model.cache import LatentCache
from deepseek_v3.model.moe import Experts
from deepseek_v3.native.build import SWITCH, have_kernels
from deepseek_v3.ops import experts as experts_module
from deepseek_v3.weights.convert import convert_checkpoint
from deepseek_v3.weights.errors import DigestError, DtypeError, ScaleError
from deepseek_v3.weights.load import load_model, load_weights
from deepseek_v3.weights.save import save_model
from deepseek_v3.weights.shards import read_tensors
from tests.tiny import predict

SIZES = {
    "hidden_size": 290, "intermediate_size": 300, "moe_intermediate_size": 150, "q_lora_rank": 140, "kv_lora_rank": 170,
    "qk_nope_head_dim": 70, "qk_rope_head_dim": 6, "v_head_dim": 90,
}  # fmt: skip
VALUES = {"v3": {**V3, **SIZES}, "v2-lite": {**V2_LITE, **SIZES, "q_lora_rank": None}}
needs_kernels = pytest.mark.skipif(not have_kernels(), reason="no C++ compiler here")


@pytest.fixture(scope="module", params=VALUES)
def folder(request, tmp_path_factory):
    model = random_model(VALUES[request.param])
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1 and not name.startswith(("embed", "lm_head")):
                for axis, width in ((-2, 32), (-1, 64)):  # stripes that are louder and softer
                    length = weight.shape[axis]
                    stripe = torch.exp2(torch.randint(-3, 1, (length // width + 1,)).float())
                    weight *= stripe.repeat_interleave(width)[:length].view(*((-1, 1) if axis == -2 else (-1,)))
    folder = tmp_path_factory.mktemp("fp8") / "a"
    save_model(model, folder, dtype=torch.bfloat16, fp8=True, shard_bytes=300_000)
    return folder


def tokens_of(*shape: int) -> torch.Tensor:
    return torch.randint(0, 131, shape, generator=torch.Generator().manual_seed(7))


def test_every_projection_is_held_as_it_is_stored(folder):
    kept, _ = load_model(folder, keep_fp8=True)
    dense, _ = load_model(folder)
    stored = read_tensors(folder)
    name = "model.layers.1.mlp.experts.5.up_proj.weight"
    experts = kept.layers[1].mlp.experts
    assert torch.equal(experts.gate_up_proj[5, 150:].view(torch.uint8), stored[name].view(torch.uint8))
    assert torch.equal(experts.gate_up_proj_scale_inv[5, 1], stored[name + "_scale_inv"])
    codes = stored[name].view(torch.uint8).numpy().view(float8_e4m3fn).astype("float32")
    scale = stored[name + "_scale_inv"].numpy().repeat(128, 0).repeat(128, 1)[:150, :290]
    assert torch.equal(
        experts.dequantized_weight("gate_up_proj", torch.float32)[5, 150:], torch.from_numpy(codes * scale)
    )
    held = {name.removesuffix("_scale_inv") for name in kept.state_dict() if name.endswith("_scale_inv")}
    assert held == {name for name, p in kept.named_parameters() if p.dtype == CODE}
    projections = [n for n, p in dense.named_parameters() if "_proj" in n and "eh_proj" not in n]
    assert held == set(projections)
    assert not any(p.requires_grad for p in kept.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("count", [5, 33])
def test_the_forward_pass_is_that_of_the_decoded_model_to_the_bit(folder, dtype, count, form):
    kept, dense = load_model(folder, dtype=dtype, keep_fp8=True)[0], load_model(folder, dtype=dtype)[0]
    tokens = tokens_of(1, count)
    with torch.inference_mode():
        assert torch.equal(kept(tokens), dense(tokens))
        for ours, theirs in zip(kept(tokens, mtp=True)[1], dense(tokens, mtp=True)[1]):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_decoding_step_computes_with_the_stored_numbers(folder, dtype, form):
    """In BF16 the kernel sums codes times scales in FP32; so it equals the checkpoint decoded to FP32."""
    kept, exact = load_model(folder, dtype=dtype, keep_fp8=True)[0], load_model(folder, dtype=torch.float32)[0]
    step, want_step = DecodeStep(kept), DecodeStep(exact)
    if dtype == torch.bfloat16 and not step.native.ready:
        exact = want_step = None  # PyTorch's operations round to BF16: held against the decoded model instead
        want_step = DecodeStep(load_model(folder)[0])
    assert step.native.ready == have_kernels()
    for batch, count in ((1, 1), (1, 3), (3, 1), (9, 1), (3, 7)):
        tokens, cached = tokens_of(batch, count), tokens_of(batch, 5)
        caches = [LatentCache.dense(kept.config, batch, 20, dtype=torch.float32) for _ in range(2)]
        ours, theirs = (s(cached, c)[1] for s, c in zip((step, want_step), caches))
        (hidden, ours), (want_hidden, theirs) = (s(tokens, c) for s, c in zip((step, want_step), caches))
        tolerance = 3e-5 if want_step.native.addresses.dtype == torch.float32 else 0.1
        assert ours.shape == (batch, count, 131)
        assert float((ours - theirs).abs().max()) <= tolerance * float(theirs.abs().max())
        for depth in range(len(kept.mtp)):
            modules = [LatentCache.dense(kept.config, batch, 20, layers=1, dtype=torch.float32) for _ in range(2)]
            below = want_hidden.bfloat16()
            ours, theirs = (
                predict(s, depth, below.to(s.native.addresses.dtype), tokens, c)[1]
                for s, c in zip((step, want_step), modules)
            )
            assert float((ours - theirs).abs().max()) <= tolerance * float(theirs.abs().max())


@needs_kernels
def test_a_token_does_not_feel_who_shares_its_step_or_the_threads(folder, monkeypatch):
    kept, tokens = load_model(folder, keep_fp8=True)[0], tokens_of(11, 3)
    step = DecodeStep(kept)

    def read(rows: list[int], counts: list[int]) -> torch.Tensor:
        cache = LatentCache.dense(kept.config, len(rows), 3, dtype=torch.bfloat16)
        return torch.cat([step(part, cache)[1] for part in tokens[rows].split(counts, 1)], 1)

    monkeypatch.setattr(native_step, "threads_now", lambda _: 1)
    want = read(list(range(11)), [3])
    monkeypatch.setattr(native_step, "threads_now", lambda _: 3)
    assert torch.equal(read(list(range(11)), [1, 1, 1]), want)
    for row in (0, 10):
        assert torch.equal(read([row], [1, 2]), want[row : row + 1])


def test_drafts_are_verified_as_ever(folder, form):
    kept = load_model(folder, dtype=torch.float32, keep_fp8=True)[0]
    want = list(generate(kept, [5, 7, 11], max_new_tokens=19, stop_tokens=()))
    assert len(want) == 19
    if len(kept.mtp):
        assert list(generate(kept, [5, 7, 11], max_new_tokens=19, stop_tokens=(), speculative=2)) == want


def test_it_is_half_as_large(folder):
    kept, dense = load_model(folder, keep_fp8=True)[0], load_model(folder)[0]

    def held_bytes(model) -> int:
        return sum(t.nbytes for name, t in model.state_dict().items() if "_proj" in name and "eh_proj" not in name)

    assert held_bytes(kept) < 0.51 * held_bytes(dense)


def test_what_is_saved_is_what_was_read(folder, tmp_path):
    kept = load_model(folder, keep_fp8=True)[0]
    save_model(kept, tmp_path / "fp8", fp8=True, shard_bytes=300_000)
    assert folder_digests(tmp_path / "fp8") == folder_digests(folder)
    for dtype, to in ((torch.bfloat16, "bf16"), (torch.float32, "fp32")):
        save_model(kept, tmp_path / to, dtype=dtype)
        convert_checkpoint(folder, tmp_path / f"converted {to}", to=to)
        assert folder_digests(tmp_path / to) == folder_digests(tmp_path / f"converted {to}")


def test_it_can_be_copied_and_moved_but_not_cast(folder):
    kept = load_model(folder, keep_fp8=True)[0]
    want, tokens = load_model(folder, dtype=torch.float32)[0], tokens_of(1, 5)
    twin = copy.deepcopy(kept).float()
    experts = twin.layers[1].mlp.experts
    assert experts.down_proj.dtype == CODE
    assert experts.down_proj_scale_inv.dtype == torch.float32
    assert twin.norm.weight.dtype == torch.float32
    with torch.inference_mode():
        assert torch.equal(twin(tokens), want(tokens))
    for name, tensor in kept.bfloat16().state_dict().items():
        if name.endswith("_scale_inv"):
            assert tensor.dtype == torch.float32, name
            assert torch.equal(tensor, twin.state_dict()[name])
    for tensor in kept.to("meta").state_dict().values():
        assert tensor.is_meta


def test_activations_have_gradients(folder):
    """Through a frozen model, as for an adapter in front of it."""
    kept, dense = load_model(folder, dtype=torch.float32, keep_fp8=True)[0], load_model(folder, dtype=torch.float32)[0]
    grads = []
    for model in (kept, dense.requires_grad_(False)):
        x = torch.randn(1, 40, 290, generator=torch.Generator().manual_seed(3)).requires_grad_()
        rotation, _ = model.place_tokens(40, None)
        model.layers[1](x, rotation).square().sum().backward()
        grads.append(x.grad)
    assert float((grads[0] - grads[1]).abs().max()) <= 1e-5 * float(grads[1].abs().max())


def test_routing_weights_have_gradients_where_nothing_else_has(folder):
    kept, dense = load_model(folder, dtype=torch.float32, keep_fp8=True)[0], load_model(folder, dtype=torch.float32)[0]
    x, index, grads = torch.randn(40, 290), torch.arange(80).view(40, 2) % 8, []
    for model in (kept, dense.requires_grad_(False)):
        weight = torch.full((40, 2), 0.5, requires_grad=True)
        model.layers[1].mlp.experts(x, weight, index).square().sum().backward()
        grads.append(weight.grad)
    assert float((grads[0] - grads[1]).abs().max()) <= 1e-5 * float(grads[1].abs().max())


def rewrite(source: Path, target: Path, changes: dict[str, torch.Tensor | None]) -> None:
    """One shard with some tensors changed or left out, and no manifest."""
    target.mkdir()
    tensors = {name: changes.get(name, tensor) for name, tensor in read_tensors(source).items()}
    save_file({name: t.contiguous() for name, t in tensors.items() if t is not None}, target / "model.safetensors")
    (target / "config.json").write_bytes((source / "config.json").read_bytes())


def test_a_stack_that_is_stored_in_two_formats_is_decoded(folder, tmp_path):
    name = "model.layers.1.mlp.experts.3.down_proj.weight"
    number = load_model(folder, dtype=torch.float32)[0].layers[1].mlp.experts.down_proj[3].clone()
    rewrite(folder, tmp_path / "a", {name: number, f"{name}_scale_inv": None})
    kept = load_model(tmp_path / "a", dtype=torch.float32, keep_fp8=True)[0]
    exact, tokens = load_model(folder, dtype=torch.float32)[0], tokens_of(1, 33)
    experts = kept.layers[1].mlp.experts
    assert experts.scales("down_proj") is None
    assert experts.gate_up_proj.dtype == CODE
    with torch.inference_mode():
        for count in (5, 33):  # not to the bit: the kernel of experts wants one format
            ours, theirs = kept(tokens[:, :count]), exact(tokens[:, :count])
            assert float((ours - theirs).abs().max()) <= 3e-5 * float(theirs.abs().max())
    ours, theirs = (
        DecodeStep(model)(tokens[:, :5], LatentCache.dense(model.config, 1, 5, dtype=torch.float32))[1]
        for model in (kept, exact)
    )
    assert float((ours - theirs).abs().max()) <= 3e-5 * float(theirs.abs().max())


def test_scales_that_are_powers_of_two_are_read(folder, tmp_path):
    """F8_E8M0, as later releases store them."""
    scales = {n: t for n, t in read_tensors(folder).items() if n.endswith("_scale_inv")}
    rewrite(folder, tmp_path / "a", {name: scale.to(torch.float8_e8m0fnu) for name, scale in scales.items()})
    kept, dense = load_model(tmp_path / "a", keep_fp8=True)[0], load_model(tmp_path / "a")[0]
    with torch.inference_mode():
        assert torch.equal(kept(tokens_of(1, 33)), dense(tokens_of(1, 33)))


def test_numbers_that_are_none_are_refused(folder, tmp_path):
    name = "model.layers.1.mlp.experts.3.down_proj.weight"
    tensors = read_tensors(folder)
    codes = tensors[name].clone()
    codes.view(torch.uint8)[200, 17] = 0xFF
    rewrite(folder, tmp_path / "nan", {name: codes})
    with pytest.raises(ScaleError, match=r"element \(200, 17\) is the FP8 code NaN"):
        load_model(tmp_path / "nan", keep_fp8=True)
    scale = tensors[f"{name}_scale_inv"].clone()
    scale[2, 1] = float("inf")
    rewrite(folder, tmp_path / "inf", {f"{name}_scale_inv": scale})
    with pytest.raises(ScaleError, match=r"block \(2, 1\) has the scale inf"):
        load_model(tmp_path / "inf", keep_fp8=True)


def test_a_flipped_bit_is_refused(folder, tmp_path):
    import shutil

    shutil.copytree(folder, tmp_path / "a")
    path = sorted((tmp_path / "a").glob("*.safetensors"))[0]
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)
    with pytest.raises(DigestError):
        load_model(tmp_path / "a", keep_fp8=True)


def test_weights_are_read_into_a_model_that_holds_fp8_only_from_fp8(folder, tmp_path):
    kept = load_model(folder, keep_fp8=True)[0]
    before = {name: tensor.clone() for name, tensor in kept.state_dict().items()}
    convert_checkpoint(folder, tmp_path / "bf16", to="bf16")
    with pytest.raises(DtypeError, match="is stored in BF16; the model holds it in FP8"):
        load_weights(kept, tmp_path / "bf16")
    for name, tensor in kept.state_dict().items():
        assert torch.equal(tensor.view(torch.uint8), before[name].view(torch.uint8)), name
    with torch.no_grad():
        for tensor in kept.state_dict().values():
            tensor.zero_() if tensor.dtype != CODE else tensor.view(torch.uint8).zero_()
    load_weights(kept, folder)
    for name, tensor in kept.state_dict().items():
        assert torch.equal(tensor.view(torch.uint8), before[name].view(torch.uint8)), name


def test_a_checkpoint_without_fp8_is_loaded_as_ever(folder, tmp_path):
    convert_checkpoint(folder, tmp_path / "bf16", to="bf16")
    model = load_model(tmp_path / "bf16", keep_fp8=True)[0]
    assert all(module.scales("weight") is None for module in model.modules() if isinstance(module, HoldsFP8))
    assert all(p.requires_grad for p in model.parameters())


def test_only_chosen_experts_are_decoded(folder, monkeypatch):
    monkeypatch.setenv(SWITCH, "0")
    kept = load_model(folder, keep_fp8=True)[0]
    asked, decode = [], experts_module.dequantize_held

    def note(weight: torch.Tensor, scale: torch.Tensor | None, dtype: torch.dtype, only: list[int]) -> torch.Tensor:
        asked.append(only)
        return decode(weight, scale, dtype, only)

    monkeypatch.setattr(experts_module, "dequantize_held", note)
    with torch.inference_mode():
        experts: Experts = kept.layers[1].mlp.experts
        experts(torch.randn(2, 290, dtype=torch.bfloat16), torch.ones(2, 2), torch.tensor([[1, 6], [6, 1]]))
    assert asked == [[1, 6], [1, 6]]
