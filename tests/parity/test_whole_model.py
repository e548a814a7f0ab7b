"""One checkpoint, three implementations: chapter 06 in float64, the package, Hugging Face; and one training step.

Three configs: the released order of things without context extension; YaRN, two MTP depths, a plain query projection,
no groups; all layers with experts, two shared experts, YaRN of other strength, sharded files.
"""

from typing import NamedTuple

import checkpoint
import model as chapter
import numpy as np
import pytest
import torch
from architecture import BIAS, V3, Config, count_parameters, init_model, trained_weights
from small_language_model import AdamW
from training import move_biases

import deepseek_v3
from deepseek_v3 import ModelConfig
from deepseek_v3.data.packing import PackedStream
from deepseek_v3.data.tokenizer import Tokenizer
from deepseek_v3.model.router import RoutingRecord
from deepseek_v3.model.transformer import DeepseekV3
from deepseek_v3.sizing import count_parameters as package_count
from deepseek_v3.training.balance import LoadCounter
from deepseek_v3.training.loss import pretraining_loss
from deepseek_v3.training.options import TrainOptions
from deepseek_v3.training.trainer import Trainer
from deepseek_v3.training.training_state import newest_checkpoint
from deepseek_v3.weights.names import iterate_slots
from tests.tiny import SIZES
from utils.gradient_check import relative_error

FLOAT64 = 1e-8  # relative: some hundred products in a row on both sides, summed in different orders
FLOAT32 = 1e-5  # absolute, on logits of order 1, against the same weights in float64
MTP_WEIGHT, ALPHA, SPEED = 0.3, 0.01, 0.001

YARN = {
    "type": "yarn",
    "factor": 40,
    "original_max_position_embeddings": 32,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
# the grouped products of transformers want rows of 16 bytes
SMALL = {**SIZES, "vocab_size": 101, "hidden_size": 4 * 11, "moe_intermediate_size": 4 * 7, "initializer_range": 0.08}
CONFIGS = {
    "as released": {},
    "YaRN, two depths, plain queries": {
        "rope_scaling": YARN,
        "num_nextn_predict_layers": 2,
        "q_lora_rank": None,
        "n_group": 1,
        "topk_group": 1,
        "v_head_dim": 24,
    },
    "experts everywhere, two shared": {
        "first_k_dense_replace": 0,
        "n_shared_experts": 2,
        "num_experts_per_tok": 4,
        "routed_scaling_factor": 1.5,
        "rope_scaling": {**YARN, "factor": 4, "mscale": 0.707, "mscale_all_dim": 0.707},
    },
}


class Trio(NamedTuple):
    """One checkpoint on disk, and who has read it."""

    folder: object
    package: DeepseekV3  # float64
    numpy: chapter.Model  # float64


@pytest.fixture(params=CONFIGS, ids=lambda name: name.replace(" ", "-").replace(",", ""))
def trio(request, tmp_path):
    """A package model with norms away from 1 and biases away from 0, saved in float32, read by both in float64."""
    torch.manual_seed(len(request.param))
    model = DeepseekV3(ModelConfig(**{**SMALL, **CONFIGS[request.param]}))
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith(BIAS):
                buffer.normal_(0, 0.2)
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.normal_(1, 0.2)
    deepseek_v3.save(model, tmp_path / "one", shard_bytes=100_000 if "shared" in request.param else None)
    package, _ = deepseek_v3.load(tmp_path / "one", dtype=torch.float64)
    return Trio(tmp_path / "one", package.train(), checkpoint.load_checkpoint(tmp_path / "one", np.float64))


@pytest.fixture(autouse=True)
def float64_angles():
    """The package turns its rope in the default dtype; here that is float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def released(package: DeepseekV3, tensors: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Name the package's tensors (its weights or their gradients) as a checkpoint does, without the MTP copies."""
    named = {}
    for slot in iterate_slots(package.config):
        if slot.copy or slot.memory not in tensors:
            continue
        tensor = tensors[slot.memory]
        tensor = tensor if slot.expert is None else tensor[slot.expert]
        named[slot.name] = (tensor if slot.rows is None else tensor[slot.rows[0] : slot.rows[1]]).detach().numpy()
    return named


def draw_batch(vocab_size: int):
    """Packed windows: documents that end inside, so that some rows of each depth do not count."""
    rng = np.random.default_rng(3)
    document = np.array([[0] * 11 + [1] * 12, [2] * 23, [3] * 5 + [4] * 1 + [5] * 17])
    return rng.integers(0, vocab_size, document.shape), document


def step_package(package: DeepseekV3, tokens, document):
    """One loss and its gradients by released name, and the record."""
    record = RoutingRecord()
    inputs = torch.tensor(tokens[:, :-1])
    hidden = package.hidden_states(inputs, record=record)
    labels = torch.tensor(tokens[:, 1:]), torch.tensor(document)
    rows = int((labels[1][:, 1:] == labels[1][:, :-1]).sum())
    parts = pretraining_loss(
        hidden,
        package.mtp_hidden_states(inputs, hidden, record),
        package.lm_head,
        torch.tensor(tokens),
        labels[1],
        mtp_weight=MTP_WEIGHT,
        step_rows=rows,
        balance_losses=record.balance_losses.values(),
        balance_alpha=ALPHA,
    )
    package.zero_grad()
    parts.total.backward()
    grads = {name: p.grad for name, p in package.named_parameters()}
    return parts, released(package, grads), record


def hold_gradients(config: Config, got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> None:
    """Compare every tensor by its released name."""
    named = checkpoint.released_tensors(config, got)
    named = {name: named[name] for name in want}
    assert len(want) == len(got) + sum(
        3 * (config.n_routed_experts - 1) for i in range(config.n_layers) if config.is_moe(i)
    )
    wrong = {n: e for n in want if not (e := relative_error(named[n], want[n])) <= FLOAT64}
    assert not wrong, wrong


def test_the_same_checkpoint_gives_the_same_logits_in_numpy_and_in_the_package(trio):
    tokens, _ = draw_batch(101)
    with torch.no_grad():
        main, mtp = trio.package(torch.tensor(tokens), mtp=True)
    got = chapter.predict_logits(trio.numpy, tokens)
    assert len(got) == 1 + len(mtp)
    for k, want in enumerate([main, *mtp]):
        rows = tokens.shape[1] - k
        assert relative_error(got[k], want[:, :rows].numpy()) < FLOAT64  # V3 Eq. (23), V3 Fig. 3


def test_the_same_checkpoint_gives_the_same_logits_in_numpy_and_in_hugging_face(trio):
    transformers = pytest.importorskip("transformers")
    torch.set_default_dtype(torch.float32)
    peer = transformers.DeepseekV3ForCausalLM.from_pretrained(
        trio.folder, attn_implementation="eager", dtype=torch.float32
    ).eval()
    tokens, _ = draw_batch(101)
    with torch.no_grad():
        want = peer(torch.tensor(tokens), use_cache=False).logits
    assert np.abs(chapter.predict_logits(trio.numpy, tokens)[0] - want.numpy()).max() <= FLOAT32


def test_one_training_step_has_the_same_loss_gradients_and_biases(trio):
    tokens, document = draw_batch(101)
    losses, cache = chapter.loss_forward(trio.numpy, tokens, document, mtp_weight=MTP_WEIGHT, alpha=ALPHA)
    grads = chapter.loss_backward(cache)
    parts, want, record = step_package(trio.package, tokens, document)
    assert losses.total == pytest.approx(parts.total.item(), rel=FLOAT64)
    assert losses.balance == pytest.approx(parts.balance, rel=FLOAT64)
    assert losses.main == pytest.approx(parts.main_nats.item() / parts.main_rows, rel=FLOAT64)
    for ahead, nats in zip(losses.ahead, parts.mtp_nats):
        assert ahead == pytest.approx(nats.item() / parts.main_rows, rel=FLOAT64)
    hold_gradients(trio.numpy.config, grads, want)
    assert len(losses.loads) == len(record.counts)
    for load, count in zip(losses.loads.values(), record.counts.values()):
        assert (load == count.numpy()).all()
    counter = LoadCounter(trio.package)
    counter.add(record)
    counter.move_biases(SPEED)
    move_biases(trio.numpy, losses.loads, SPEED)
    ours = checkpoint.released_tensors(trio.numpy.config, trio.numpy.weights)
    state = released(trio.package, trio.package.state_dict())
    for name in [n for n in state if n.endswith(BIAS)]:
        assert np.allclose(ours[name], state[name], rtol=0, atol=1e-7), name  # ours in FP64, the package's in FP32


def test_one_step_of_adamw_moves_every_tensor_alike(trio):
    tokens, document = draw_batch(101)
    _, cache = chapter.loss_forward(trio.numpy, tokens, document, mtp_weight=MTP_WEIGHT, alpha=ALPHA)
    grads = chapter.loss_backward(cache)
    step_package(trio.package, tokens, document)
    torch.nn.utils.clip_grad_norm_(trio.package.parameters(), 1.0)
    groups = [
        {"params": [p for p in trio.package.parameters() if p.dim() >= 2], "weight_decay": 0.1},
        {"params": [p for p in trio.package.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), eps=1e-8).step()
    AdamW(trained_weights(trio.numpy.weights)).step(grads, 1e-3)
    ours = checkpoint.released_tensors(trio.numpy.config, trio.numpy.weights)
    for name, want in released(trio.package, dict(trio.package.named_parameters())).items():
        # Adam divides a gradient by its own size: where that is near rounding, the direction is noise of size 1e-3
        assert np.abs(ours[name] - want).max() < 1e-6, name


def test_the_package_reads_what_the_chapter_writes(trio, tmp_path, rng):
    model = init_model(rng, Config.from_dict(trio.package.config.to_dict()), np.float32)
    checkpoint.save_checkpoint(model, tmp_path / "ours")
    package, tokenizer = deepseek_v3.load(tmp_path / "ours", dtype=torch.float64)
    assert tokenizer is None
    tokens, _ = draw_batch(101)
    with torch.no_grad():
        want = package(torch.tensor(tokens)).numpy()
    wide = checkpoint.load_checkpoint(tmp_path / "ours", np.float64)
    assert relative_error(chapter.predict_logits(wide, tokens)[0], want) < FLOAT64


def test_a_model_that_the_package_trained_is_the_same_in_all_three(tmp_path):
    """The checkpoint of a run, as `deepseek-v3 train` leaves it: training state and tokenizer beside the weights."""
    transformers = pytest.importorskip("transformers")
    torch.set_default_dtype(torch.float32)
    texts = [f"row {i}: " + " ".join(str(i * j % 89) for j in range(50)) for i in range(19)]
    options = TrainOptions(run=str(tmp_path / "run"), seed=3, warmup_steps=2, lr=3e-3, save_every=0).replace(
        seq_len=13, batch_size=4, micro_batch=2, steps=6, eval_every=3
    )
    tokenizer = Tokenizer.train(texts, 280)
    torch.manual_seed(3)
    model = DeepseekV3(ModelConfig(**{**SMALL, "vocab_size": 288}))
    stream = PackedStream(texts, tokenizer, options.seq_len, seed=3, fim_rate=0.0, lanes=2)
    Trainer(model, tokenizer, stream, texts[:2], options).train()
    folder = newest_checkpoint(tmp_path / "run")
    ours = checkpoint.load_checkpoint(folder, np.float64)
    assert ours.weights[f"model.layers.1.mlp.gate.{BIAS}"].any()  # it was balanced
    tokens = np.random.default_rng(0).integers(0, 288, (2, 17))
    got = chapter.predict_logits(ours, tokens)[0]
    peer = transformers.DeepseekV3ForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        assert np.abs(got - peer(torch.tensor(tokens), use_cache=False).logits.numpy()).max() <= FLOAT32
        torch.set_default_dtype(torch.float64)
        package, _ = deepseek_v3.load(tmp_path / "run", dtype=torch.float64)
        assert relative_error(got, package(torch.tensor(tokens)).numpy()) < FLOAT64


@pytest.mark.parametrize("fp8", [False, True])
def test_bf16_and_fp8_checkpoints_are_read_alike(trio, tmp_path, fp8):
    deepseek_v3.save(trio.package.float(), tmp_path / "low", dtype=torch.bfloat16, fp8=fp8)
    package, _ = deepseek_v3.load(tmp_path / "low", dtype=torch.float32)
    ours = checkpoint.load_checkpoint(tmp_path / "low", np.float32)
    named = checkpoint.released_tensors(ours.config, ours.weights)
    for name, want in released(package, package.state_dict()).items():
        assert np.array_equal(named[name], want), name


def test_both_count_671_billion_parameters():
    counted = package_count(ModelConfig.preset("v3-671b"))
    assert count_parameters(V3) == (counted.main, counted.mtp)
