"""GGUF files: there and back, what llama.cpp wants in them, and what is refused."""

import sys
from pathlib import Path

import pytest
import tokenizers
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent))
from tiny_checkpoints import YARN, edit_json, folder_digests, random_model

from deepseek_v3.data.tokenizer import Tokenizer
from deepseek_v3.weights.errors import CheckpointError
from deepseek_v3.weights.gguf import export_gguf
from deepseek_v3.weights.gguf_reader import import_gguf
from deepseek_v3.weights.save import save_model

gguf = pytest.importorskip("gguf")

# What the loader of llama.cpp asks of an MTP block, innermost length first (its optional copies of embedding
# and head left out), by our sizes: width 38, Q 17, C 13, K 7, R 6, U 5, 3 heads, 8 experts of 23.
WANTED_OF_MTP = {
    f"blk.3.{name}": shape
    for name, shape in {
        "attn_norm.weight": (38,),
        "attn_q_a_norm.weight": (17,),
        "attn_kv_a_norm.weight": (13,),
        "attn_q_a.weight": (38, 17),
        "attn_q_b.weight": (17, 3 * (7 + 6)),
        "attn_kv_a_mqa.weight": (38, 13 + 6),
        "attn_k_b.weight": (7, 13, 3),
        "attn_v_b.weight": (13, 5, 3),
        "attn_output.weight": (3 * 5, 38),
        "ffn_norm.weight": (38,),
        "ffn_gate_inp.weight": (38, 8),
        "exp_probs_b.bias": (8,),
        "ffn_gate_exps.weight": (38, 23, 8),
        "ffn_up_exps.weight": (38, 23, 8),
        "ffn_down_exps.weight": (23, 38, 8),
        "ffn_gate_shexp.weight": (38, 23),
        "ffn_up_shexp.weight": (38, 23),
        "ffn_down_shexp.weight": (23, 38),
        "nextn.eh_proj.weight": (2 * 38, 38),
        "nextn.enorm.weight": (38,),
        "nextn.hnorm.weight": (38,),
        "nextn.shared_head_norm.weight": (38,),
    }.items()
}


@pytest.mark.parametrize(("number_type", "modules"), [("f32", 0), ("f32", 1), ("bf16", 1)])
def test_gguf_there_and_back_is_byte_equal(tmp_path, number_type, modules):
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[number_type]
    said = {"rope_scaling": YARN, "max_position_embeddings": 640, "initializer_range": 0.02}  # the last is not stored
    model = random_model(num_nextn_predict_layers=modules, **said).to(dtype)
    for module in model.modules():  # norms and router are always F32 in the file: make them representable in both
        if hasattr(module, "eps") or hasattr(module, "e_score_correction_bias"):
            module.weight.data = module.weight.data.bfloat16().to(dtype)
    save_model(model, tmp_path / "a")
    export_gguf(tmp_path / "a", tmp_path / "m.gguf", number_type=number_type)
    import_gguf(tmp_path / "m.gguf", tmp_path / "b")
    assert folder_digests(tmp_path / "a") == folder_digests(tmp_path / "b")
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b", "m.gguf"}


def test_the_file_holds_what_the_architecture_wants(tmp_path):
    save_model(random_model(rope_scaling=YARN), tmp_path / "a")
    export_gguf(tmp_path / "a", tmp_path / "m.gguf", number_type="f32")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    value = {name: field.contents() for name, field in reader.fields.items()}
    assert value["general.architecture"] == "deepseek2"
    assert value["deepseek2.attention.head_count_kv"] == 1
    assert value["deepseek2.attention.key_length"] == 13 + 6
    assert value["deepseek2.attention.value_length"] == 13
    assert value["deepseek2.attention.key_length_mla"] == 7 + 6
    assert value["deepseek2.attention.value_length_mla"] == 5
    assert value["deepseek2.rope.scaling.yarn_log_multiplier"] == pytest.approx(0.1)
    assert value["deepseek2.expert_gating_func"] == 2
    tensors = {t.name: t for t in reader.tensors}
    kv_b = random_model().layers[2].self_attn.kv_b_proj.weight.view(3, 7 + 5, 13)
    key = torch.from_numpy(tensors["blk.2.attn_k_b.weight"].data.copy())
    assert torch.equal(key, kv_b[:, :7].transpose(1, 2))  # transposed per head
    assert torch.equal(torch.from_numpy(tensors["blk.2.attn_v_b.weight"].data.copy()), kv_b[:, 7:])
    assert value["deepseek2.block_count"] == 3 + 1
    assert value["deepseek2.nextn_predict_layers"] == 1
    found = {name: tuple(int(length) for length in tensor.shape) for name, tensor in tensors.items()}
    assert {name: shape for name, shape in found.items() if name.startswith("blk.3.")} == WANTED_OF_MTP
    export_gguf(tmp_path / "a", tmp_path / "n.gguf", number_type="f32", mtp=False)
    names = {tensor.name for tensor in gguf.GGUFReader(tmp_path / "n.gguf").tensors}
    assert names == {name for name in found if not name.startswith("blk.3.")}


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF\x03\0\0\0" + b"\xff" * 64, bytes(500)])
def test_a_broken_gguf_file_is_refused(tmp_path, content):
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"m\.gguf"):
        import_gguf(tmp_path / "m.gguf", tmp_path / "a")


def test_another_architecture_and_a_quantized_tensor_are_refused(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match="'llama', not 'deepseek2'"):
        import_gguf(tmp_path / "m.gguf", tmp_path / "a")


def rewrite_as_before_april_2025(source: Path, target: Path, folder: Path, **lengths: int) -> None:
    """kv_b_proj whole, `lengths` of the expanded heads, no `_mla` keys, no vocab_size."""
    reader, writer = gguf.GGUFReader(source), gguf.GGUFWriter(target, "deepseek2")
    for name, field in reader.fields.items():
        key = name.removeprefix("deepseek2.attention.")
        if name.startswith("GGUF.") or name == "general.architecture" or name.endswith(("_mla", "vocab_size")):
            continue
        of_list = field.types[1] if len(field.types) > 1 else None
        writer.add_key_value(name, lengths.get(key, field.contents()), field.types[0], of_list)
    for tensor in reader.tensors:
        if "attn_k_b" not in tensor.name and "attn_v_b" not in tensor.name:
            writer.add_tensor(tensor.name, tensor.data)
    split = {tensor.name.split(".")[1] for tensor in reader.tensors if "attn_k_b" in tensor.name}
    for name, weight in load_file(folder / "model.safetensors").items():
        if name.endswith("kv_b_proj.weight") and (layer := name.split(".")[2]) in split:
            writer.add_tensor(f"blk.{layer}.attn_kv_b.weight", weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_the_older_form_with_kv_b_whole_is_read(tmp_path):
    model = random_model(num_nextn_predict_layers=0, initializer_range=0.02)
    save_model(model, tmp_path / "a")
    export_gguf(tmp_path / "a", tmp_path / "m.gguf", number_type="f32")
    lengths = {"key_length": 7 + 6, "value_length": 5, "head_count_kv": 3}
    rewrite_as_before_april_2025(tmp_path / "m.gguf", tmp_path / "old.gguf", tmp_path / "a", **lengths)
    import_gguf(tmp_path / "old.gguf", tmp_path / "b")
    assert folder_digests(tmp_path / "a") == folder_digests(tmp_path / "b")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n_routed_experts": None}, "n_routed_experts=null"),
        ({"n_shared_experts": 0}, "n_shared_experts=0"),
        ({"q_lora_rank": None}, "q_lora_rank=None with 3 layers"),
        ({"rms_norm_eps": 1e-5}, "latent norms"),
        ({"num_nextn_predict_layers": 2}, "--without-mtp"),
        ({"rope_scaling": {**YARN, "mscale": 0.707}}, "mscale=0.707"),
        ({"rope_scaling": {**YARN, "mscale": None, "mscale_all_dim": None}}, "one number for both"),
        ({"rope_scaling": {**YARN, "attention_factor": 1.2}}, "attention_factor"),
        ({"rope_scaling": {**YARN, "truncate": False}}, "truncate"),
        (
            {"model_type": "deepseek_v2", "scoring_func": "softmax", "topk_method": "group_limited_greedy"},
            "group_limited_greedy",
        ),
    ],
)
def test_a_model_that_the_format_cannot_hold_is_refused_by_key(tmp_path, changes, words):
    save_model(random_model(**changes), tmp_path / "a")
    with pytest.raises(CheckpointError, match=words):
        export_gguf(tmp_path / "a", tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


def test_another_way_to_split_text_is_refused_and_ours_is_named(tmp_path):
    tokenizer = Tokenizer.train(["in 2024 and 1234"] * 3, 300)
    save_model(random_model(vocab_size=300), tmp_path / "a", tokenizer)
    export_gguf(tmp_path / "a", tmp_path / "m.gguf")
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    assert fields["tokenizer.ggml.pre"].contents() == "deepseek-v3"
    backend = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    digits = tokenizers.pre_tokenizers.Digits(individual_digits=True)
    level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([digits, level])
    save_model(random_model(vocab_size=300), tmp_path / "b", Tokenizer(backend))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: splits text"):
        export_gguf(tmp_path / "b", tmp_path / "n.gguf")


@pytest.mark.parametrize("jinja", [True, False])
def test_the_begin_token_and_the_chat_template_are_written(tmp_path, jinja):
    save_model(random_model(vocab_size=300, eos_token_id=[1, 7]), tmp_path / "a", Tokenizer.train(["ab cd"] * 3, 300))
    (tmp_path / "a" / "manifest.json").unlink()
    edit_json(tmp_path / "a" / "tokenizer_config.json", add_bos_token=True, chat_template="{{ 'old' }}")
    if jinja:
        (tmp_path / "a" / "chat_template.jinja").write_text("{{ 'new' }}")
    export_gguf(tmp_path / "a", tmp_path / "m.gguf")
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    assert fields["tokenizer.ggml.add_bos_token"].contents() is True
    assert fields["tokenizer.chat_template"].contents() == ("{{ 'new' }}" if jinja else "{{ 'old' }}")
    assert [fields[f"tokenizer.ggml.{role}_token_id"].contents() for role in ("eos", "eot")] == [1, 7]
