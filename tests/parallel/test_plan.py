"""The planner: bubbles of PyTorch's order = chapter 08's formulas, the cut is the one that trains, V3's figures."""

import json

import expert_parallelism
import pipeline_schedules
import pytest

from deepseek_v3.cli import main
from deepseek_v3.config import ModelConfig
from deepseek_v3.parallel.planning import (
    Placing,
    count_traffic,
    find_pace,
    order_of,
    place_stages,
    plan_memory,
    stage_times,
)
from deepseek_v3.parallel.rehearsal import rehearse
from deepseek_v3.parallel.stages import split_layers
from deepseek_v3.parallel.timetable import Times, bubbles, list_actions, makespan, most_held, play
from deepseek_v3.sizing import attention_flops, count_parameters
from deepseek_v3.training.machine import flops_per_token

V3 = ModelConfig.preset("v3-671b")


@pytest.mark.parametrize(("name", "ranks", "micro"), [("1F1B", 1, 3), ("1F1B", 4, 7), ("1F1B", 16, 120),
                                                      ("DualPipeV", 2, 5), ("DualPipeV", 4, 10),
                                                      ("DualPipeV", 16, 120)])  # fmt: skip
def test_bubbles_of_pytorchs_order_are_those_of_the_closed_forms(name, ranks, micro):
    known, stages = pipeline_schedules, ranks * (1 + (name == "DualPipeV"))
    for forward, inputs, weights in ((1.0, 1.0, 1.0), (3.0, 3.0, 3.0)):
        times = known.Times(forward, inputs + weights, weights, forward + inputs + weights)
        found = bubbles(play(list_actions(name, ranks, micro), [Times(forward, inputs, weights)] * stages))
        assert max(found) == pytest.approx(known.bubble_formula(name, stages, times))


def test_pytorchs_dual_pipe_v_takes_as_long_as_chapter_08s_whatever_the_times():
    known = pipeline_schedules
    for forward, inputs, weights in ((1.0, 1.25, 0.75), (2.0, 3.0, 1.0)):
        times = known.Times(forward, inputs + weights, weights, forward + inputs + weights)
        theirs = known.run_schedule(known.dualpipe_v_order(8, 21), 8, times)
        ours = play(list_actions("DualPipeV", 4, 21), [Times(forward, inputs, weights)] * 8)
        assert makespan(ours) == pytest.approx(max(rank[-1].end for rank in theirs))


@pytest.mark.parametrize(("ranks", "micro"), [(4, 10), (16, 120)])
def test_the_zero_bubble_v_waits_for_its_way_down_and_up_alone(ranks, micro):
    played = play(list_actions("ZBV", ranks, micro), [Times()] * 2 * ranks)
    assert max(bubbles(played)) == ranks - 1  # one chunk a rank, to reach the last and to end on the first


@pytest.mark.parametrize("name", ["1F1B", "ZBV", "DualPipeV"])
def test_every_micro_batch_is_read_and_differentiated_once_at_every_stage(name):
    order = list_actions(name, 3, 11)
    found = sorted(a for rank in order for actions in rank for a in actions)
    stages = range(3 if name == "1F1B" else 6)
    assert [a[1:] for a in found if a.kind == "F"] == [(s, m) for s in stages for m in range(11)]
    for kinds in ("BI", "BW"):
        assert sorted(a[1:] for a in found if a.kind in kinds) == [(s, m) for s in stages for m in range(11)]


def test_what_is_held_at_once_is_what_a_schedule_promises():
    one_f_one_b = list_actions("1F1B", 5, 13)
    assert [most_held(rank, [1.0] * 5) for rank in one_f_one_b] == [5, 4, 3, 2, 1]  # V3 Table 2: PP micro-batches
    dual = [most_held(rank, [1.0] * 8) for rank in list_actions("DualPipeV", 4, 13)]
    assert max(dual) == 2 * 4 + 1  # halves of a stage: V3 Table 2, PP + 1 micro-batches


def test_an_order_that_can_never_end_is_refused():
    order = list_actions("1F1B", 2, 3)
    with pytest.raises(ValueError, match="circle"):
        play([order[0][::-1], order[1]], [Times()] * 2)


def test_layers_are_spread_evenly_and_ends_count_as_layers():
    stages = split_layers(61, 1, 32)
    assert [len(s.layers) for s in stages] == [1, *[2] * 30, 0]
    assert [i for s in stages for i in s.layers] == list(range(61))
    assert (stages[0].first, stages[-1].last) == (True, True)
    with pytest.raises(ValueError, match="61 layers cannot fill 128 stages"):
        split_layers(61, 1, 128)


SHAPE = {"num_hidden_layers": 5, "hidden_size": 40, "vocab_size": 331, "n_routed_experts": 8, "n_group": 2}
SHAPE |= {"topk_group": 1, "moe_intermediate_size": 24, "num_nextn_predict_layers": 1}


def test_the_parts_of_all_processes_are_the_model():
    config = ModelConfig.preset("demo").replace(**SHAPE)
    _, ranks = place_stages(Placing(config, 16, pp=2, ep=2))
    held = rehearse(config, ranks, dp=8, ep=2)
    count = count_parameters(config).total - 5 * 8  # the routing biases are buffers: every process has them
    assert count <= 8 * sum(h.part for h in held) < 1.1 * count  # parts are equal or the first one's larger
    assert sum(h.whole for h in rehearse(config, ranks, dp=1, ep=1)) == count


@pytest.mark.slow
def test_a_rank_holds_what_two_real_processes_hold(torchrun, tmp_path):
    config = ModelConfig.preset("demo").replace(**SHAPE)
    config.to_json(tmp_path / "config.json")
    script = tmp_path / "hold.py"
    script.write_text(HOLD)
    said = torchrun(2, str(script), str(tmp_path / "config.json"))
    real = [int(line.split("HELD")[1]) for line in said.splitlines() if "HELD" in line]
    _, ranks = place_stages(Placing(config, 2, pp=1, ep=2))
    assert max(real) == rehearse(config, ranks, dp=2, ep=2)[0].part


HOLD = """
import sys, torch
from deepseek_v3.config import ModelConfig
from deepseek_v3.model.transformer import DeepseekV3
from deepseek_v3.parallel.mesh import Mesh, leave
mesh = Mesh(1, ep=2)
model = mesh.place(DeepseekV3(ModelConfig.from_json(sys.argv[1])))
print("HELD", sum(p.to_local().numel() for p in model.parameters()), flush=True)
mesh.close()
leave(0)
"""


def test_operations_of_all_stages_are_those_of_a_step():
    for p in (Placing(V3), Placing(V3, pp=1, ep=1), Placing(V3, schedule="1F1B")):
        total = sum(sum(stage_times(p, stage)) for stage in place_stages(p)[0])
        more = 3 * attention_flops(V3, 4096 / 2) / 61  # of the MTP module, which `flops_per_token` leaves out
        assert total == pytest.approx(4096 * (flops_per_token(V3, 4096) + more), rel=1e-12)


def test_the_traffic_between_machines_is_chapter_08s():
    known, p = expert_parallelism, Placing(V3)
    sent = count_traffic(p, plan_memory(p, order_of(p)))
    cross = known.expected_crossings(known.Cluster(), 8, 4)
    a_token = cross * (known.fp8_token_bytes(7168) + known.bf16_token_bytes(7168))
    tokens, layers = 15360 // 128 * 4096, (61 - 3 + 1) / 16
    assert sent["experts, out in FP8"] + sent["experts, back in BF16"] == pytest.approx(2 * tokens * layers * a_token)


def test_the_reports_layout_takes_the_reports_hours_and_another_one_longer(capsys):
    assert main(["plan", "--json", "--recompute"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["is_the_report"]
    assert found["gpu_hours"] == pytest.approx(2664e3, rel=1e-9)
    assert (found["parameters"], found["active"]) == (671_026_419_200, 37_552_297_472)
    assert found["training_flops_per_token"] == pytest.approx(250.5e9, rel=1e-3)
    assert found["cache_bytes_per_token"] == 70_272
    assert found["dollars"] == pytest.approx(5.328e6)
    middle = found["ranks"][8]
    dense = 4 * (187_107_328 + 2 * 7168 + 3 * 7168 * 2048 + 256 * 7168)  # attention, norms, shared expert, gate
    experts = 4 * 4 * 3 * 7168 * 2048
    assert middle["whole"] == dense + experts
    assert middle["part"] == pytest.approx(dense / 128 + experts / 2, rel=1e-3)
    assert main(["plan", "--json", "--recompute", "--schedule", "1F1B"]) == 0
    other = json.loads(capsys.readouterr().out)
    assert not other["is_the_report"]
    assert other["gpu_hours"] > found["gpu_hours"]
    assert other["waiting_with_equal_stages"] == pytest.approx(15 * 3 / (15 * 3 + 120 * 3))


def test_the_tables_tell_what_is_counted_calibrated_and_predicted(capsys):
    assert main(["plan", "--gpus", "1024", "--pp", "8", "--ep", "64"]) == 0
    said = capsys.readouterr().out
    for word in ("671.03 B", "37.55 B", "70,272 B", "counted", "calibrated on", "predicted", "do not fit; try --re"):
        assert word in said
    assert "as published" not in said


@pytest.mark.parametrize(("words", "said"), [
    (["--gpus", "100"], "--pp 16 must divide --gpus 100"),
    (["--ep", "96"], "--ep 96 must divide the 128 processes"),
    (["--gpus", "4608", "--pp", "1", "--ep", "9"], "must divide n_routed_experts=256"),
    (["--batch-size", "15000"], "give 14976"),
    (["--batch-size", "1280"], "DualPipeV needs at least 32 micro-batches"),
    (["--pp", "64", "--gpus", "4096"], "61 layers cannot fill 128 stages"),
    (["--pp", "1", "--ep", "2", "--gpus", "1536"], "rows of each equally"),
])  # fmt: skip
def test_a_layout_that_does_not_divide_is_refused_by_name(capsys, words, said):
    assert main(["plan", *words]) == 1
    assert said in capsys.readouterr().err


def test_a_pipeline_with_unlike_stages_waits_longer():
    p = Placing(V3)
    pace = find_pace(p, order_of(p))
    assert pace.waiting > pace.waiting_equal > 0
    assert pace.makespan * (1 - pace.waiting) * 16 == pytest.approx(
        120 * sum(sum(stage_times(p, stage)) for stage in place_stages(p)[0])
    )
