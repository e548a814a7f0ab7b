"""A zoo of broken checkpoints: every one refused by name, quickly, in little memory, the model untouched.

Each breakage is a function of a good folder; the dictionary BREAKAGES is the list. What the .safetensors header alone
can have wrong is in test_safetensors_file.py, what the index can in test_shards.py.
"""

import json
import os
import random
import shutil
import sys
import time
import tracemalloc
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent))
from tiny_checkpoints import edit_json, random_model

from deepseek_v3.weights.errors import CheckpointError
from deepseek_v3.weights.load import load_model, load_weights
from deepseek_v3.weights.safetensors_file import layout_header, parse_header
from deepseek_v3.weights.save import save_model
from deepseek_v3.weights.shards import read_tensors

CHANGES = {"num_hidden_layers": 1, "first_k_dense_replace": 0, "n_routed_experts": 4, "n_group": 2, "vocab_size": 61}
MODEL = "model.safetensors"
Q_A, GATE = "model.layers.0.self_attn.q_a_proj.weight", "model.layers.0.mlp.gate.weight"
BIAS = "model.layers.0.mlp.gate.e_score_correction_bias"
EXPERT = "model.layers.0.mlp.experts.3.up_proj.weight"
SCALE = EXPERT + "_scale_inv"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """One small FP8 checkpoint, whole and in two shards."""
    folder = tmp_path_factory.mktemp("good")
    model = random_model(**CHANGES)
    save_model(model, folder / "whole", dtype=torch.bfloat16, fp8=True)
    save_model(model, folder / "shards", dtype=torch.bfloat16, fp8=True, shard_bytes=16_000)
    return folder


@pytest.fixture
def model():
    return random_model(**CHANGES)


def rewrite(change):
    """A breakage that changes the dictionary of tensors and leaves a well-formed file."""

    def breakage(folder: Path) -> None:
        tensors = read_tensors(folder)
        change(tensors)
        save_file(tensors, folder / MODEL)

    return breakage


def replace(name: str, make):
    """A breakage that replaces one tensor."""
    return rewrite(lambda tensors: tensors.update({name: make(tensors[name])}))


def poke_scale(value: float):
    return replace(SCALE, lambda scale: torch.full_like(scale, value))


def poke_code(code: int):
    def change(weight: torch.Tensor) -> torch.Tensor:
        weight.view(torch.uint8)[1, 2] = code
        return weight

    return replace(EXPERT, change)


def write(name: str, content: bytes):
    return lambda folder: (folder / name).write_bytes(content)


def config(**changes):
    return lambda folder: edit_json(folder / "config.json", **changes)


def edit_header(change):
    """A breakage of the header's JSON, the data left alone."""

    def breakage(folder: Path) -> None:
        raw = (folder / MODEL).read_bytes()
        n = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + n])
        change(header)
        text = json.dumps(header).encode()
        (folder / MODEL).write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + n :])

    return breakage


def shift(name: str, start: int, end: int):
    def change(header):
        offsets = header[name]["data_offsets"]
        header[name]["data_offsets"] = [offsets[0] + start, offsets[1] + end]

    return edit_header(change)


def truncate(n_bytes: int):
    return lambda folder: os.truncate(folder / MODEL, (folder / MODEL).stat().st_size - n_bytes)


def append(content: bytes):
    def breakage(folder: Path) -> None:
        with (folder / MODEL).open("ab") as stream:
            stream.write(content)

    return breakage


def link_out(folder: Path) -> None:
    shutil.move(folder / MODEL, folder.parent / "outside.safetensors")
    (folder / MODEL).symlink_to(folder.parent / "outside.safetensors")


# what is broken: (how, the file that the message must name, the tensor that it must name)
BREAKAGES = {
    # whole files
    "no config": (lambda f: (f / "config.json").unlink(), "config.json", None),
    "no tensors": (lambda f: (f / MODEL).unlink(), "", None),
    "tensors are a folder": (lambda f: ((f / MODEL).unlink(), (f / MODEL).mkdir()), MODEL, None),
    "an empty file": (write(MODEL, b""), MODEL, None),
    "seven bytes": (write(MODEL, b"1234567"), MODEL, None),
    "zeros": (write(MODEL, bytes(4096)), MODEL, None),
    "text": (write(MODEL, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), MODEL, None),
    "a pickle": (write(MODEL, b"\x80\x04\x95" + bytes(64)), MODEL, None),
    "a header of 2^64 bytes": (write(MODEL, b"\xff" * 8 + b"{}"), MODEL, None),
    "a link out of the folder": (link_out, MODEL, None),
    "one byte short": (truncate(1), MODEL, "*"),
    "half of it": (truncate(10_000), MODEL, "*"),
    "one byte too many": (append(b"\0"), MODEL, None),
    # headers of an otherwise good file
    "overlap": (shift(EXPERT, -4, -4), MODEL, "*"),
    "a hole": (shift(EXPERT, 4, 4), MODEL, "*"),
    "past the end": (shift(EXPERT, 10**6, 10**6), MODEL, "*"),
    "span and shape differ": (shift(EXPERT, 0, -1), MODEL, EXPERT),
    "backwards": (edit_header(lambda h: h[EXPERT]["data_offsets"].reverse()), MODEL, EXPERT),
    "huge numbers": (edit_header(lambda h: h[EXPERT].update(shape=[10**18, 10**18])), MODEL, EXPERT),
    "a number of 10^5 digits": (edit_header(lambda h: h[EXPERT].update(shape=[10**4000])), MODEL, EXPERT),
    "negative shape": (edit_header(lambda h: h[EXPERT].update(shape=[-23, -38])), MODEL, EXPERT),
    "shape is a text": (edit_header(lambda h: h[EXPERT].update(shape="23, 38")), MODEL, EXPERT),
    "shape is null": (edit_header(lambda h: h[EXPERT].update(shape=None)), MODEL, EXPERT),
    "an unknown dtype": (edit_header(lambda h: h[EXPERT].update(dtype="F7")), MODEL, EXPERT),
    "dtype of another width": (edit_header(lambda h: h[EXPERT].update(dtype="F32")), MODEL, EXPERT),
    "a field too many": (edit_header(lambda h: h[EXPERT].update(more=1)), MODEL, EXPERT),
    "a field too few": (edit_header(lambda h: h[EXPERT].pop("shape")), MODEL, EXPERT),
    "metadata with a number": (edit_header(lambda h: h.update(__metadata__={"a": 1})), MODEL, None),
    "JSON 10^6 deep": (write(MODEL, (10**6 + 2).to_bytes(8, "little") + b"{" + b"[" * 10**6 + b"}"), MODEL, None),
    "a name with control characters": (edit_header(lambda h: h.update({"a\x1b[2J": h.pop(EXPERT)})), MODEL, None),
    "a name of 10 MB": (edit_header(lambda h: h.update({"a" * 10**7: h.pop(EXPERT)})), MODEL, None),
    # tensors
    "a tensor missing": (rewrite(lambda t: t.pop(EXPERT)), "", EXPERT),
    "an MTP tensor missing": (
        rewrite(lambda t: t.pop("model.layers.1.hnorm.weight")),
        "",
        "model.layers.1.hnorm.weight",
    ),
    "a bias missing": (rewrite(lambda t: t.pop(BIAS)), "", BIAS),
    "a tensor too many": (rewrite(lambda t: t.update(extra=torch.ones(3))), MODEL, "extra"),
    "an indexer of V3.2": (
        rewrite(lambda t: t.update({"model.layers.0.self_attn.indexer.wk.weight": torch.ones(3)})),
        MODEL,
        "model.layers.0.self_attn.indexer.wk.weight",
    ),
    "an expert too many": (
        rewrite(lambda t: t.update({EXPERT.replace(".3.", ".4."): t[EXPERT].clone()})),
        MODEL,
        EXPERT.replace(".3.", ".4."),
    ),
    "a transposed weight": (replace(Q_A, lambda w: w.T.contiguous()), MODEL, Q_A),
    "a flat weight": (replace(Q_A, lambda w: w.flatten()), MODEL, Q_A),
    "an empty weight": (replace(Q_A, lambda w: w[:0]), MODEL, Q_A),
    "integers as weight": (replace(GATE, lambda w: w.to(torch.int16)), MODEL, GATE),
    "a gate in FP8": (replace(GATE, lambda w: w.to(torch.float8_e4m3fn)), MODEL, GATE),
    "a weight in E5M2": (replace(Q_A, lambda w: w.float().to(torch.float8_e5m2)), MODEL, Q_A),
    "a bias in FP8": (replace(BIAS, lambda b: b.to(torch.float8_e4m3fn)), MODEL, BIAS),
    # scales and codes
    "a scale missing": (rewrite(lambda t: t.pop(SCALE)), "", SCALE),
    "a scale of a BF16 weight": (replace(EXPERT, lambda w: w.to(torch.bfloat16)), MODEL, SCALE),
    "scales in BF16": (replace(SCALE, lambda s: s.bfloat16()), MODEL, SCALE),
    "scales of another shape": (replace(SCALE, lambda s: s.repeat(2, 1)), MODEL, SCALE),
    "scales flat": (replace(SCALE, lambda s: s.flatten()), MODEL, SCALE),
    "a scale of zero": (poke_scale(0.0), MODEL, SCALE),
    "a negative scale": (poke_scale(-1.0), MODEL, SCALE),
    "a scale that is NaN": (poke_scale(float("nan")), MODEL, SCALE),
    "an infinite scale": (poke_scale(float("inf")), MODEL, SCALE),
    "the code NaN": (poke_code(0x7F), MODEL, EXPERT),
    "the code -NaN": (poke_code(0xFF), MODEL, EXPERT),
    # config.json
    "config is empty": (write("config.json", b""), "config.json", None),
    "config is a list": (write("config.json", b"[]"), "config.json", None),
    "config is not UTF-8": (write("config.json", b'{"a": "\xff"}'), "config.json", None),
    "config has a key twice": (write("config.json", b'{"a": 1, "a": 2}'), "config.json", "a"),
    "config has NaN": (write("config.json", b'{"rms_norm_eps": NaN}'), "config.json", None),
    "config is 10^6 deep": (write("config.json", b'{"a":' * 10**5), "config.json", None),
    "config is 900 deep": (write("config.json", b'{"a":' * 900 + b"1" + b"}" * 900), "config.json", None),
    "config is 2 MB": (write("config.json", b" " * 2 * 10**6), "config.json", None),
    "another architecture": (config(model_type="llama"), "config.json", None),
    "a layer more": (config(num_hidden_layers=2), "", "*"),
    "a billion layers": (config(num_hidden_layers=10**9), "config.json", None),
    "a billion experts": (config(n_routed_experts=4 * 10**9), "config.json", None),
    "another vocabulary": (config(vocab_size=62), MODEL, "model.embed_tokens.weight"),
    "a width of 10^15": (config(hidden_size=10**15), "config.json", None),
    "layers as text": (config(num_hidden_layers="1"), "config.json", None),
    "layers as 10^30": (config(num_hidden_layers=10**30), "config.json", None),
    "rope_scaling is a list": (config(rope_scaling=[1]), "config.json", None),
    "rope_scaling with texts": (
        config(rope_scaling={"type": "yarn", "factor": "x", "original_max_position_embeddings": []}),
        "config.json",
        None,
    ),
    "beta_fast is a text": (
        config(rope_scaling={"type": "yarn", "factor": 2, "original_max_position_embeddings": 9, "beta_fast": "x"}),
        "config.json",
        None,
    ),
}


def refuse(folder: Path, model) -> CheckpointError:
    """Load the broken folder, into the model and into a new one; hold the refusal to its promises."""
    (folder / "manifest.json").unlink()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    started = time.perf_counter()
    with pytest.raises(CheckpointError) as refusal:
        load_model(folder)
    assert time.perf_counter() - started < 0.5 + 1.5 * ("PYTEST_XDIST_WORKER" in os.environ)  # cores may be shared
    with pytest.raises(CheckpointError):
        load_weights(model, folder)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert len(str(refusal.value)) < 1500
    assert str(refusal.value).isprintable()
    return refusal.value


@pytest.mark.parametrize("kind", BREAKAGES)
def test_a_broken_checkpoint_is_refused_by_name(good, model, tmp_path, kind):
    breakage, file, tensor = BREAKAGES[kind]
    shutil.copytree(good / "whole", tmp_path / "x")
    breakage(tmp_path / "x")
    refusal = refuse(tmp_path / "x", model)
    assert refusal.file is not None
    assert refusal.file.endswith(file)
    assert refusal.tensor is not None if tensor == "*" else refusal.tensor == tensor


def test_the_zoo_is_large_and_its_good_checkpoint_loads(good, model):
    assert len(BREAKAGES) >= 60
    for kind in ("whole", "shards"):
        load_weights(model, good / kind)


@pytest.mark.parametrize("kind", ["JSON 10^6 deep", "a name of 10 MB", "config is 10^6 deep", "a billion layers"])
def test_a_refusal_takes_little_memory(good, model, tmp_path, kind):
    shutil.copytree(good / "whole", tmp_path / "x")
    BREAKAGES[kind][0](tmp_path / "x")
    (tmp_path / "x" / "manifest.json").unlink()
    tracemalloc.start()
    with pytest.raises(CheckpointError):
        load_weights(model, tmp_path / "x")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64 * 2**20


@pytest.mark.parametrize("n_points", [20, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("manifest", [True, False])
def test_a_truncated_file_is_refused(good, tmp_path, model, n_points, manifest):
    shutil.copytree(good / "shards", tmp_path / "x")
    if not manifest:
        (tmp_path / "x" / "manifest.json").unlink()
    for path in sorted((tmp_path / "x").iterdir()):
        raw = path.read_bytes()
        for i in range(n_points):
            path.write_bytes(raw[: len(raw) * i // n_points])
            with pytest.raises(CheckpointError):
                load_weights(model, tmp_path / "x")
        path.write_bytes(raw)
    load_weights(model, tmp_path / "x")


@pytest.mark.parametrize("n_flips", [300, pytest.param(6000, marks=pytest.mark.slow)])
def test_a_flipped_bit_anywhere_is_refused(good, tmp_path, model, n_flips):
    """Config, index, shards and the manifest itself; a file is hit as often as it is long, and at least 10 times."""
    shutil.copytree(good / "shards", tmp_path / "x")
    randomness = random.Random(0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    files = {path: path.read_bytes() for path in sorted((tmp_path / "x").iterdir())}
    total = sum(map(len, files.values()))
    for path, raw in files.items():
        for _ in range(max(10, n_flips * len(raw) // total)):
            broken = bytearray(raw)
            bit = randomness.randrange(8 * len(raw))
            broken[bit // 8] ^= 1 << bit % 8
            path.write_bytes(broken)
            with pytest.raises(CheckpointError):
                load_weights(model, tmp_path / "x")
        path.write_bytes(raw)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    load_weights(model, tmp_path / "x")


def mutate(raw: bytes, randomness: random.Random) -> bytes:
    """Change a header a little: bytes overwritten, cut, doubled, or swapped for a token of JSON."""
    tokens = [
        b"{",
        b"}",
        b"[",
        b"]",
        b'"',
        b",",
        b":",
        b"-",
        b"1e9",
        b"null",
        b"\\",
        b"\xff",
        b"\0",
        b" ",
        b"999999999999",
    ]
    broken = bytearray(raw)
    for _ in range(randomness.choice((1, 1, 1, 2, 5))):
        i = randomness.randrange(len(broken) + 1)
        j = min(len(broken), i + randomness.choice((0, 1, 1, 3, 20)))
        kind = randomness.randrange(4)
        if kind == 0:
            broken[i:j] = randomness.choice(tokens)
        elif kind == 1:
            del broken[i:j]
        elif kind == 2:
            broken[i:i] = broken[i:j]
        elif broken:
            broken[min(i, len(broken) - 1)] = randomness.randrange(256)
    return bytes(broken)


@pytest.mark.parametrize("n_headers", [20_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_a_fuzzed_header_is_read_or_refused_and_nothing_else(n_headers):
    specs = [("a.weight", torch.bfloat16, (3, 5)), ("b", torch.float32, (7,)), ("c", torch.float8_e4m3fn, ())]
    head, _ = layout_header(specs, {"format": "pt"})
    raw = head[8:]
    randomness = random.Random(0)
    accepted = unaccounted = unnamed = 0
    slowest = 0.0
    for _ in range(n_headers):
        broken = mutate(raw, randomness)
        started = time.perf_counter()
        try:
            header = parse_header(broken, 8 + len(broken) + 59, "fuzzed")
            accepted += 1
            unaccounted += 59 - sum(entry.n_bytes for entry in header.entries.values())
        except CheckpointError as refusal:
            unnamed += refusal.file != "fuzzed"
        slowest = max(slowest, time.perf_counter() - started)
    assert accepted < n_headers / 2
    assert unaccounted == unnamed == 0
    assert slowest < 0.5
