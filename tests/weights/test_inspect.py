"""`inspect` counts from headers alone, the released checkpoint too, and names what does not fit."""

import json
import os
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parent))
from tiny_checkpoints import V3, edit_json, random_model

from deepseek_v3.config import ModelConfig
from deepseek_v3.sizing import count_parameters
from deepseek_v3.weights.errors import CheckpointError, ConfigFileError
from deepseek_v3.weights.inspect import inspect_checkpoint, print_inspection
from deepseek_v3.weights.names import iterate_slots
from deepseek_v3.weights.safetensors_file import layout_header
from deepseek_v3.weights.save import list_specs, save_model
from deepseek_v3.weights.shards import plan_shards


def fake_checkpoint(folder: Path, config: ModelConfig, shards: int) -> None:
    """The true config, names, shapes and headers; the numbers are holes in sparse files."""
    specs = list_specs(list(iterate_slots(config)), torch.bfloat16, fp8=config.quantization_config is not None)
    total = plan_shards(specs).total_size
    plan = plan_shards(specs, shard_bytes=-(-total // shards) + 2**27)
    config.to_json(folder / "config.json")
    for file, of_file in plan.files.items():
        head, _ = layout_header(of_file)
        n_bytes = plan_shards(of_file, shard_bytes=2**62).total_size
        with (folder / file).open("wb") as stream:
            stream.write(head)
            os.truncate(stream.fileno(), len(head) + n_bytes)
    weight_map = {name: file for file, of_file in plan.files.items() for name, _, _ in of_file}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_the_released_checkpoint_is_inspected_counted_and_checked_in_a_minute(tmp_path):
    """688 GB of sparse files: 91,991 tensors, of which not a byte of data is read."""
    fake_checkpoint(tmp_path, ModelConfig.preset("v3-671b"), 160)
    started = time.perf_counter()
    found = inspect_checkpoint(tmp_path)
    assert time.perf_counter() - started < 60
    assert found.problems == []
    assert found.tensors == 91_991
    assert found.parameters == 684_489_845_504
    assert found.scales == 41_540_496
    assert found.dtypes["F8_E4M3"] + found.dtypes["BF16"] + found.dtypes["F32"] == 91_991
    assert found.n_bytes == 688_574_839_360
    assert found.parts["MTP copies"].parameters == 2 * 129280 * 7168
    main = sum(part.parameters for name, part in found.parts.items() if not name.startswith("MTP"))
    assert main == 671_026_419_200


def test_v2_lite_is_counted(tmp_path):
    fake_checkpoint(tmp_path, ModelConfig.preset("v2-lite-16b"), 4)
    found = inspect_checkpoint(tmp_path)
    assert (found.problems, found.parameters, found.scales) == ([], 15_706_484_224, 0)


def test_the_parts_add_up_to_the_calculator(tmp_path):
    model = random_model()
    save_model(model, tmp_path / "a", dtype=torch.bfloat16, fp8=True, shard_bytes=10_000)
    found = inspect_checkpoint(tmp_path / "a", verify=True)
    counted = count_parameters(model.config)
    assert found.parameters - found.parts["MTP copies"].parameters == counted.total
    assert found.has_manifest
    assert found.tensors == sum(part.tensors for part in found.parts.values())
    assert json.loads(json.dumps(found.to_dict()))["parameters"] == found.parameters


def test_everything_that_does_not_fit_is_listed(tmp_path, capsys):
    save_model(random_model(), tmp_path / "a")
    path = tmp_path / "a" / "model.safetensors"
    tensors = load_file(path)
    tensors["extra[bold]"] = torch.ones(2)
    del tensors["model.norm.weight"]
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:-1].contiguous()
    save_file(tensors, path)
    found = inspect_checkpoint(tmp_path / "a")
    assert len(found.problems) == 3
    print_inspection(found)
    shown = capsys.readouterr().out
    for word in ("model.norm.weight", "lm_head.weight", "extra[bold]", "[130, 38]"):
        assert word in shown
    with pytest.raises(CheckpointError):
        inspect_checkpoint(tmp_path / "a", verify=True)


@pytest.mark.parametrize("claimed", ["num_hidden_layers", "num_nextn_predict_layers"])
def test_a_config_that_claims_all_layers_it_may_does_not_hang(tmp_path, claimed):
    save_model(random_model(), tmp_path / "a")
    edit_json(tmp_path / "a" / "config.json", **{claimed: 10_000})
    assert inspect_checkpoint(tmp_path / "a").problems[-1].startswith("... and more")
    edit_json(tmp_path / "a" / "config.json", **{claimed: 10**9})
    with pytest.raises(ConfigFileError, match="at most 10,000"):
        inspect_checkpoint(tmp_path / "a")


def test_the_model_without_experts_has_no_expert_rows(tmp_path):
    save_model(random_model(V3, n_routed_experts=None), tmp_path / "a")
    assert not any("expert" in name for name in inspect_checkpoint(tmp_path / "a").parts)
