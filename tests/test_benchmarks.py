"""Benchmarks do what they say: a kernel called with a wrong count would end, a reader that reads less be fast."""

import os

import pytest
import torch

from benchmarks import fp8_gpu, loading, serving
from benchmarks import training as training_benchmark
from benchmarks.decode import NARROW
from benchmarks.neighbour import busy_neighbour
from benchmarks.neighbour import measure as measure_beside
from benchmarks.peers import Setting, make_peer, nano, tell_compiling
from benchmarks.products import measure
from benchmarks.profile import measure_operations, named_kernels
from benchmarks.recompute import kept_bytes
from deepseek_v3.data.tokenizer import SMALLEST_VOCAB, Tokenizer
from deepseek_v3.engine.generate import generate
from deepseek_v3.model.transformer import DeepseekV3
from deepseek_v3.native.build import have_kernels
from deepseek_v3.sizing import count_parameters
from tests.tiny import tiny_config


@pytest.mark.skipif(not have_kernels(), reason="no C++ compiler here")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_products_are_measured(dtype):
    rates = measure(dtype, 64, 8, 16, rounds=1)
    assert len(rates) == 6
    assert all(rate > 0 for rate in rates.values())


def test_the_counting_model_counts_and_its_module_is_right_for_the_share_that_was_asked_for():
    model = serving.make_counter(tiny_config(num_nextn_predict_layers=0), 0.8, torch.float32)
    assert serving.serve(model, [[3]], 50, drafts=1).engine.metrics().new_tokens == 50
    assert list(generate(model, [3], max_new_tokens=50, stop_tokens=())) == [(4 + i) % 38 for i in range(50)]
    found = serving.measure_drafts(model, [[1], [5]], 1, 200)
    assert 0.65 < found["acceptance"] < 0.95
    assert found["tokens a step"] == 1 + found["acceptance"]
    assert 0 < found["break-even"] < 9
    assert min(found.values()) > 0


@pytest.mark.parametrize("read", [loading.read_files, loading.copy_files])
def test_readers_read_every_byte(read, tmp_path):
    wanted = [os.urandom(size) for size in (1, 5_000_000, 9_000_001)]
    for i, content in enumerate(wanted):
        (tmp_path / f"{i}").write_bytes(content)
    loading.forget_files(tmp_path)
    found = [content.numpy().tobytes() for content in read(tmp_path)]
    assert [a == b for a, b in zip(found, wanted, strict=True)] == [True, True, True]


@pytest.mark.skipif(not have_kernels(), reason="no C++ compiler here")
def test_a_profile_names_our_kernels_and_shares_out_the_whole_time():
    from deepseek_v3.fp8.quantize import quantize_weight

    with named_kernels():
        lines = measure_operations(lambda: quantize_weight(torch.randn(130, 257)), 3)
    assert {line.name: line.calls for line in lines}["kernel amax_fp32"] == 1
    assert sum(line.share for line in lines) == pytest.approx(1)


def test_one_of_the_peers_settings_is_compiled_in_every_format_and_says_so(monkeypatch, capsys):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: compiled.append(options))
    assert sum(setting.compiled for setting in training_benchmark.SETTINGS) == 1
    model = nano(**NARROW, num_hidden_layers=1)
    for setting, count in ((Setting("sdpa", "eager"), 0), (Setting("sdpa", "grouped_mm", compiled=True), 1)):
        make_peer(model, torch.float32, setting)
        assert len(compiled) == count
    run = tell_compiling("sdpa+grouped_mm+compiled", lambda: None)
    run()
    run()
    assert capsys.readouterr().out.split() == ["compiling", "sdpa+grouped_mm+compiled", "...", "0", "s"]


def test_a_busy_neighbour_spins_beside_and_is_gone_afterwards():
    times = measure_beside(nano(**NARROW, num_hidden_layers=1).eval(), rounds=1, tokens=3, settle_s=0)
    assert {way: len(seconds) for way, seconds in times.items()} == {"one quiet": 1, "quiet": 1, "beside": 1}
    with busy_neighbour() as process:
        assert process.poll() is None
    assert process.poll() is not None


def test_recomputation_keeps_the_inputs_of_blocks_and_no_weights():
    from deepseek_v3.training.recompute import recompute_blocks

    model = nano(**NARROW, num_hidden_layers=3)
    whole, block = kept_bytes(model, 2, 61)
    recompute_blocks(model)
    inputs, nothing = kept_bytes(model, 2, 61)
    layer = 2 * 61 * NARROW["hidden_size"] * 4
    assert nothing <= 2 * layer  # its input, and at most what the rotation needs
    assert inputs + block < whole


def test_rollouts_and_the_plain_engine_draw_the_same_and_are_timed():
    from benchmarks import rollouts
    from deepseek_v3.data.tokenizer import SMALLEST_VOCAB, Tokenizer
    from deepseek_v3.post_training.wording import Wording

    model = DeepseekV3(tiny_config(vocab_size=271, num_nextn_predict_layers=0))
    found = rollouts.measure(model, Wording(Tokenizer.train([], SMALLEST_VOCAB)), 3, 4, rounds=1)
    assert set(found) == {"rollout", "plain", "times as fast"}
    assert min(found.values()) > 0


def test_experts_and_the_dense_model_multiply_as_much_and_every_part_of_a_step_is_timed():
    from benchmarks import experts

    shapes = {name: experts.make_config(dense=name == "dense") for name in ("experts", "dense")}
    active = {name: count_parameters(config).active for name, config in shapes.items()}
    routers = 4 * experts.EXPERTS * (experts.WIDTH + 1)  # with their biases
    assert active["experts"] - active["dense"] == routers
    small = dict(**NARROW, num_hidden_layers=1, n_routed_experts=8)
    models = {name: DeepseekV3(config.replace(**small)) for name, config in shapes.items()}
    found = experts.measure(models, rounds=1, rows=1, length=40)
    assert {name: tuple(parts) for name, parts in found.items()} == dict.fromkeys(models, experts.PARTS)
    assert min(min(parts.values()) for parts in found.values()) > 0


def test_fp8_on_a_gpu_is_measured_by_what_runs_here_too(monkeypatch, tmp_path, capsys):
    """No GPU: the same calls on small shapes, without the forms that want one; and nothing is written unasked."""
    small = {"QUANTIZED": (32, 256), "PRODUCTS": ((8, 32, 128),), "WEIGHT_GRADIENTS": ((32, 16, 64),)}
    for name, sizes in {**small, "EXPERTS": (2, 8, 32, 128), "REPEAT": 1}.items():
        monkeypatch.setattr(fp8_gpu, name, sizes)
    found = fp8_gpu.measure("cpu", rounds=1)
    assert [set(figures) for figures in found.values()] == [
        {"copy", "rows", "both"}, {"cuBLAS BF16"}, {"cuBLAS BF16"}, {"cuBLAS BF16, one by one"}, set(), set()
    ]  # fmt: skip
    assert all(rate > 0 for figures in found.values() for rate in figures.values())
    text = fp8_gpu.write_results(tmp_path / "results", "NVIDIA H200", found).read_text()
    assert '"device": "NVIDIA H200"' in text
    if not torch.cuda.is_available():
        fp8_gpu.main()
        assert "nothing is measured" in capsys.readouterr().out


def served_model():
    """A tiny model without modules, and its tokenizer."""
    tokenizer = Tokenizer.train([], SMALLEST_VOCAB)
    return DeepseekV3(tiny_config(vocab_size=SMALLEST_VOCAB, num_nextn_predict_layers=0)).eval(), tokenizer


def test_a_text_is_timed_in_process_and_through_a_server_by_the_same_tokens():
    import psutil

    from benchmarks import streaming
    from deepseek_v3.engine.engine import Engine
    from deepseek_v3.engine.request import EngineOptions
    from tests.serving.serving_harness import run_server

    model, tokenizer = served_model()
    engine = Engine(model, EngineOptions(n_blocks=16), stream=tokenizer.stream)
    with run_server(model, tokenizer, name="served") as server:
        streaming.wait_until_ready(server.port)
        found = streaming.measure(engine, server.port, psutil.Process(), [[5, 7], [11]], 6, rounds=1)
    assert engine.metrics().new_tokens == 2 * 2 * 6
    assert min(found["here"].wall, found["there"].wall) > 0


def test_a_burst_is_timed_to_its_last_answer_and_a_client_that_leaves_until_nothing_is_held():
    from benchmarks import load
    from tests.serving.serving_harness import run_server

    with run_server(*served_model(), name="served", max_rows=2, queue=2) as server:
        answers = load.burst(server.port, 40, 9)
        assert {answer.status for answer in answers} == {200, 429}
        assert sum(answer.status == 200 for answer in answers) >= 4
        assert min(answer.seconds for answer in answers) > 0
        assert load.leave(server.port, 200) > 0
        assert server.worker.load == server.blocks_held() == 0


def test_without_llama_cpp_the_row_says_so(monkeypatch, tmp_path, capsys):
    from benchmarks import llama

    monkeypatch.setattr(llama, "PROGRAM", tmp_path / "none")
    llama.print_against_llama()
    assert "not built" in capsys.readouterr().out
