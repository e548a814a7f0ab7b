"""The family's table: defaults read from the classes in transformers, counts from published configs."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parent))
from family_configs import MODELS, PUBLISHED

from deepseek_v3.cli import main
from deepseek_v3.config import ConfigError, ModelConfig
from deepseek_v3.family import ARCHITECTURES
from deepseek_v3.model.router import RoutingRecord
from deepseek_v3.sizing import count_parameters
from deepseek_v3.weights.convert import convert_checkpoint
from deepseek_v3.weights.load import load_model

CLASSES = {"deepseek_v3": "DeepseekV3Config", "deepseek_v2": "DeepseekV2Config", "glm4_moe_lite": "Glm4MoeLiteConfig"}


@pytest.mark.parametrize("kind", CLASSES)
def test_a_key_left_out_has_the_default_of_its_class_in_transformers(kind):
    theirs = getattr(pytest.importorskip("transformers"), CLASSES[kind])(
        **({"num_experts_per_tok": 6} if kind == "deepseek_v2" else {})
    ).to_dict()
    needed = {} if ARCHITECTURES[kind].defaults.get("num_experts_per_tok") else {"num_experts_per_tok": 6}
    ours = ModelConfig.from_dict({"model_type": kind, **needed}).to_dict()
    theirs["rope_theta"] = theirs.pop("rope_parameters")["rope_theta"]
    not_theirs = {"torch_dtype", "rope_scaling", "scoring_func", "moe_layer_freq", "architectures"}
    if kind != "deepseek_v2":
        not_theirs |= {"topk_method"}
    if kind != "deepseek_v3":
        not_theirs |= {"num_nextn_predict_layers"}
    if kind == "glm4_moe_lite":
        not_theirs |= {"first_k_dense_replace"}
    greedy = {"n_group", "topk_group"} if kind == "deepseek_v2" else set()  # null there: greedy knows no groups
    assert {key: ours[key] for key in ours.keys() - not_theirs - greedy} == {
        key: theirs[key] for key in ours.keys() - not_theirs - greedy
    }
    assert all(theirs[key] is None and ours[key] == 1 for key in greedy)


@pytest.mark.parametrize("name", MODELS)
def test_counts_are_the_published_ones(name, tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(MODELS[name]))
    assert main(["size", "--config", str(tmp_path / "config.json"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["parameters"]
    if name in PUBLISHED:
        assert round(found["main"] / 1e9, 3) == PUBLISHED[name]
    assert (found["mtp"] > 0) == (MODELS[name].get("num_nextn_predict_layers", 0) > 0)


def test_counts_that_nobody_published_are_counted_by_hand():
    """Attention: q down, its norm, q up; kv down with rope, its norm, kv up; out. Then experts, router, bias, norms."""
    D, Q, C, R = 2048, 768, 512, 64
    attention = D * Q + Q + Q * 20 * (192 + 64) + D * (C + R) + C + C * 20 * (192 + 256) + 20 * 256 * D
    dense, sparse = 3 * D * 10240, (64 + 1) * 3 * D * 1536 + 64 * D + 64
    glm = 2 * 154880 * D + D + 47 * (attention + 2 * D) + dense + 46 * sparse
    assert glm == 29_943_393_920
    assert count_parameters(ModelConfig.from_dict(MODELS["GLM-4.7-Flash"])).main == glm
    Q = 1536
    attention = D * Q + Q + Q * 32 * (128 + 64) + D * (C + R) + C + C * 32 * (128 + 128) + 32 * 128 * D
    dense, sparse = 3 * D * 7168, (256 + 1) * 3 * D * 768 + 256 * D + 256
    joyai = 2 * 129280 * D + D + 40 * (attention + 2 * D) + dense + 39 * sparse
    assert count_parameters(ModelConfig.from_dict(MODELS["JoyAI-LLM-Flash"])).main == joyai


# Every mechanism of the member in a model of a few thousand numbers. Widths are multiples of 4 and 16 bytes, as the
# grouped products of transformers want them; its class has no MTP layer, so drafting is off and said to be.
TINY = {
    "vocab_size": 131, "hidden_size": 44, "intermediate_size": 52, "moe_intermediate_size": 20,
    "num_hidden_layers": 3, "first_k_dense_replace": 1, "num_attention_heads": 4, "num_key_value_heads": 4,
    "kv_lora_rank": 16, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 20, "n_routed_experts": 24,
    "max_position_embeddings": 640, "initializer_range": 0.1, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2,
    "torch_dtype": "float32",
}  # fmt: skip
SAME = ("DeepSeek-R1", "DeepSeek-V3-0324", "DeepSeek-V3.1", "DeepSeek-V3.1-Terminus")  # as V3, but for stored scales
BESIDE = ("chat_template.jinja", "generation_config.json")
MEMBERS = [name for name in MODELS if name not in (*SAME, "Kimi-K2.5")]


def build_tiny(name: str, folder: Path):
    """A random model of the member, made and saved by transformers, with a tokenizer's side files beside it."""
    transformers = pytest.importorskip("transformers")
    values = {key: value for key, value in {**MODELS[name], **TINY}.items() if key != "quantization_config"}
    if values["q_lora_rank"] is not None:
        values["q_lora_rank"] = 28
    if values.get("rope_scaling"):
        values["rope_scaling"] = {**values["rope_scaling"], "original_max_position_embeddings": 16}
    kind = values["model_type"] if values["model_type"] in CLASSES else "deepseek_v3"
    torch.manual_seed(11)
    settings = {k: v for k, v in values.items() if k not in ("model_type", "architectures", "torch_dtype")}
    config = getattr(transformers, CLASSES[kind])(**settings)
    config._attn_implementation = "eager"
    theirs = getattr(transformers, ARCHITECTURES[kind].name)(config).eval()
    with torch.no_grad():
        for tensor_name, tensor in theirs.state_dict().items():
            if "norm" in tensor_name:
                tensor.uniform_(0.5, 1.5)
            elif tensor_name.endswith("e_score_correction_bias"):
                tensor.normal_(0, 0.1)
    theirs.save_pretrained(folder)
    said = json.loads((folder / "config.json").read_text())
    said |= {"model_type": values["model_type"], "architectures": values["architectures"]}
    if "scoring_func" in values:
        said["scoring_func"] = values["scoring_func"]
    (folder / "config.json").write_text(json.dumps(said, indent=1))
    (folder / "chat_template.jinja").write_bytes(b"{{ messages }}\r\n")
    return theirs


def speaks_as(theirs, folder: Path, **options) -> bool:
    """Logits within 1e-5 of those of transformers, and every layer's choice of experts the same."""
    chosen: list[torch.Tensor] = []
    for layer in theirs.model.layers:
        if hasattr(layer.mlp, "gate"):
            layer.mlp.gate.register_forward_hook(lambda _module, _input, out: chosen.append(out[2]))
    model, _ = load_model(folder, **options)
    tokens, record = torch.arange(2 * 41).view(2, 41) * 7 % 131, RoutingRecord()
    near = (model(tokens, record=record) - theirs(tokens).logits).abs().max() <= 1e-5
    assert len(record.choices) == len(chosen) == 2
    pairs = zip(record.choices.values(), chosen)
    return bool(near) and all(torch.equal(a.sort(-1).values, b.sort(-1).values) for a, b in pairs)


def comes_through(folder: Path, target: Path, prefix: str = "") -> bool:
    """Every tensor and file beside them is in the target byte for byte; names lose their prefix."""
    convert_checkpoint(folder, target)
    before, after = (load_file(side / "model.safetensors") for side in (folder, target))
    assert {name.removeprefix(prefix) for name in before} == after.keys()
    assert all((target / name).read_bytes() == (folder / name).read_bytes() for name in BESIDE)
    found = ((after[name.removeprefix(prefix)], tensor) for name, tensor in before.items())
    return all(a.dtype == b.dtype and torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in found)


@pytest.mark.parametrize("name", MEMBERS)
@torch.no_grad()
def test_a_tiny_member_speaks_as_in_transformers_and_comes_through_byte_for_byte(name, tmp_path):
    assert speaks_as(build_tiny(name, tmp_path / "a"), tmp_path / "a")
    assert comes_through(tmp_path / "a", tmp_path / "b")


@torch.no_grad()
def test_a_tiny_k25_speaks_as_its_language_model_and_is_written_as_that(tmp_path):
    theirs = build_tiny("Kimi-K2", tmp_path / "a")
    inner, tensors = json.loads((tmp_path / "a" / "config.json").read_text()), tmp_path / "a" / "model.safetensors"
    outer = {"model_type": "kimi_k25", "text_config": inner, "vision_config": {"hidden_size": 12}}
    (tmp_path / "a" / "config.json").write_text(json.dumps(outer))
    save_file({f"language_model.{name}": tensor for name, tensor in load_file(tensors).items()}, tensors)
    assert speaks_as(theirs, tmp_path / "a")
    assert comes_through(tmp_path / "a", tmp_path / "b", "language_model.")
    assert json.loads((tmp_path / "b" / "config.json").read_text())["model_type"] == "kimi_k2"


@pytest.mark.parametrize("keep_fp8", [False, True])
@torch.no_grad()
def test_a_tiny_v31_with_scales_that_are_powers_of_two_speaks_as_in_transformers(keep_fp8, tmp_path):
    """Codes by PyTorch's cast, one block a matrix; such a scale times a code is exact, in BF16 too."""
    theirs = build_tiny("DeepSeek-V3.1", tmp_path / "a")
    (tmp_path / "exact").mkdir()
    codes, exact = {}, {}
    for name, weight in load_file(tmp_path / "a" / "model.safetensors").items():
        codes[name] = exact[name] = weight
        if name.endswith(("_proj.weight", "_mqa.weight")):
            scale = torch.exp2((weight.abs().max() / 448).log2().ceil())
            codes[name] = (weight / scale).to(torch.float8_e4m3fn)
            codes[f"{name}_scale_inv"] = scale.view(1, 1)
            exact[name] = codes[name].float() * scale
    assert sum(name.endswith("_scale_inv") for name in codes) == 3 * 5 + 3 + 2 * 3 * (24 + 1)
    save_file(codes, tmp_path / "a" / "model.safetensors")
    save_file(exact, tmp_path / "exact" / "model.safetensors", metadata={"format": "pt"})
    said = json.loads((tmp_path / "a" / "config.json").read_text())
    (tmp_path / "exact" / "config.json").write_text(json.dumps(said))
    said["quantization_config"] = MODELS["DeepSeek-V3.1"]["quantization_config"]
    (tmp_path / "a" / "config.json").write_text(json.dumps(said))
    there = type(theirs).from_pretrained(tmp_path / "exact", attn_implementation="eager", dtype=torch.float32)
    assert speaks_as(there.eval(), tmp_path / "a", dtype=torch.float32, keep_fp8=keep_fp8)
    assert comes_through(tmp_path / "a", tmp_path / "b")
    written = json.loads((tmp_path / "b" / "config.json").read_text())
    assert written["quantization_config"]["scale_fmt"] == "ue8m0"


@pytest.mark.parametrize(
    ("name", "ignored"),
    [
        ("DeepSeek-V3", {"scoring_func": "softmax", "topk_method": "greedy"}),
        ("DeepSeek-V2-Lite", {"scoring_func": "sigmoid", "topk_method": "noaux_tc"}),
        ("DeepSeek-V2-Lite", {"norm_topk_prob": True}),
    ],
)
@torch.no_grad()
def test_a_rule_of_routing_that_its_class_takes_no_notice_of_is_refused(name, ignored, tmp_path):
    """transformers computes the same with and without the key; engines that honour it compute another model."""
    theirs, tokens = build_tiny(name, tmp_path), torch.arange(41)[None]
    said = json.loads((tmp_path / "config.json").read_text())
    key = next(iter(ignored))
    (tmp_path / "config.json").write_text(json.dumps({**said, key: ignored[key]}))
    again = type(theirs).from_pretrained(tmp_path, attn_implementation="eager", dtype=torch.float32).eval()
    assert getattr(again.config, key) == ignored[key]
    assert torch.equal(again(tokens).logits, theirs(tokens).logits)
    with pytest.raises(ConfigError, match=f"{key}=.* takes no notice of the key"):
        ModelConfig.from_dict({**said, **ignored})
    with pytest.raises(ValueError, match=next(iter(ignored))):
        load_model(tmp_path)
