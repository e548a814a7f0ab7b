"""From flags to a trainer, and the lines that a wrong flag gets."""

import pytest

from deepseek_v3.config import ConfigError
from deepseek_v3.training.metrics import read_metrics
from deepseek_v3.training.options import OptionsError, TrainOptions
from deepseek_v3.training.record import merge_options
from deepseek_v3.training.session import parse_change, prepare_training

TINY = (
    "vocab_size=331",
    "hidden_size=22",
    "intermediate_size=26",
    "moe_intermediate_size=7",
    "num_hidden_layers=2",
    "q_lora_rank=11",
    "kv_lora_rank=5",
)


@pytest.fixture
def options(tmp_path) -> TrainOptions:
    text = "\n\n".join(f"passage {i}: " + " ".join(str(i * j % 89) for j in range(40)) for i in range(60))
    (tmp_path / "text.txt").write_text(text)
    sizes = {"seq_len": 13, "batch_size": 4, "micro_batch": 2, "eval_kilobytes": 1, "sample_prompts": ()}
    return TrainOptions(
        run=str(tmp_path / "run"), data=str(tmp_path / "text.txt"), set=TINY, steps=3, precision="fp32", **sizes
    )


def test_a_run_folder_says_what_it_is_made_of_and_goes_on(options):
    trainer = prepare_training(options)
    assert trainer.model.config.vocab_size == 331
    assert trainer.model.config.bos_token_id == trainer.tokenizer.bos_id
    trainer.train()
    names = {path.name for path in trainer.run.iterdir()}
    assert names >= {"config.json", "tokenizer.json", "options.json", "metrics.jsonl", "checkpoints"}
    resumed = prepare_training(TrainOptions(run=options.run, resume=True, steps=5))
    assert (resumed.step, resumed.options.steps, resumed.options.seq_len) == (3, 5, 13)
    resumed.train()
    assert resumed.step == 5


def test_without_held_out_text_nothing_is_measured_and_the_training_is_the_same(options, tmp_path):
    prepare_training(options).train()
    prepare_training(options.replace(run=str(tmp_path / "blind"), eval_kilobytes=0, eval_every=1)).train()
    known, mine = (list(read_metrics(folder / "metrics.jsonl")) for folder in (tmp_path / "run", tmp_path / "blind"))
    losses = [[row["loss"] for row in rows if row["kind"] == "step"] for rows in (known, mine)]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 3
    assert {row["kind"] for row in known} > {row["kind"] for row in mine} == {"step"}


def test_a_run_folder_is_not_overwritten_by_accident(options):
    prepare_training(options).train()
    with pytest.raises(OptionsError, match="--resume"):
        prepare_training(options)


def test_weights_of_another_run_can_begin_a_new_one(options, tmp_path):
    first = prepare_training(options)
    outcome = first.train()
    second = prepare_training(options.replace(run=str(tmp_path / "second"), init_from=str(outcome.checkpoint), set=()))
    assert second.step == 0
    assert all(a.equal(b) for a, b in zip(first.model.state_dict().values(), second.model.state_dict().values()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preset": "enormous"}, "unknown preset 'enormous'"),
        ({"set": ("hiden_size=3",)}, "did you mean 'hidden_size'"),
        ({"set": ("hidden_size",)}, "must be key=value"),
        ({"set": (*TINY, "n_group=7")}, "n_group=7 does not divide"),
        ({"seq_len": 5000}, "exceeds max_position_embeddings"),
        ({"data": "nowhere.txt"}, "does not exist"),
        ({"tokenizer": "nowhere.json"}, "there is no nowhere.json"),
        ({"resume": True}, "holds no checkpoint to go on from"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(options, changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        prepare_training(options.replace(**changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 0},
        {"lr": 0.0},
        {"lr": 1e46},
        {"lr": float("nan")},
        {"beta2": 1.0},
        {"fim_rate": 1.5},
        {"precision": "fp4"},
    ]
    + [{"batch_size_start": 99}, {"constant_fraction": 0.99}, {"micro_batch": 0}, {"seq_len": 1}],
)
def test_a_flag_out_of_range_is_refused(changes):
    with pytest.raises(OptionsError):
        TrainOptions(**changes)


def test_changes_of_config_keys_are_read_as_json_or_words():
    assert parse_change("hidden_size=64") == ("hidden_size", 64)
    assert parse_change("q_lora_rank=null") == ("q_lora_rank", None)
    assert parse_change("scoring_func=softmax") == ("scoring_func", "softmax")


def test_a_resumed_run_keeps_its_options_but_for_the_flags_given():
    recorded = TrainOptions(lr=1e-2, steps=77, batch_size=12)
    merged = merge_options(recorded, TrainOptions(run="runs/x", resume=True, lr=5e-3))
    assert (merged.lr, merged.steps, merged.batch_size, merged.run, merged.resume) == (5e-3, 77, 12, "runs/x", True)


def test_config_errors_stay_what_they_are(options):
    with pytest.raises(ConfigError):
        prepare_training(options.replace(set=(*TINY, "qk_rope_head_dim=3")))
