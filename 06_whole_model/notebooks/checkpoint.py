# %% [markdown]
# # A checkpoint, byte by byte
#
# **The question.** A model was trained here. Somebody who has never seen our code wants to run it, in another language,
# ten years from now. What must be in the parcel?
#
# Two things. A page that says how the parts are put together (`config.json`), and a crate of numbers in which each
# array has a *name*. Names are the whole contract. The package of this repository, Hugging Face's library and the
# serving engines agree on nothing else: not on a language, not on a memory layout, not on who stacks the experts. If
# `model.layers.0.self_attn.kv_b_proj.weight` has the right shape and the right numbers, they all compute the same.
#
# The crate is a **safetensors** file. It is so simple that this notebook writes and reads one with nothing but `json`
# and `struct`. Then it asks how much of a trained model survives when each number is given only 16 bits, or 8.

# %%
import json
import struct
import tempfile
from pathlib import Path

import numpy as np

# %%
from architecture import Config, Model, init_model, tensor_shapes, trained_weights
from checkpoint import (
    load_checkpoint,
    read_safetensors,
    released_slots,
    released_tensors,
    save_checkpoint,
    write_safetensors,
)
from fine_grained_quantization import dequantize, quantize_weight
from float_formats import BF16, E4M3, encode, round_to
from model import loss_forward

# %%
from small_language_model import AdamW, draw_windows, read_topics
from training import Recipe, take_step

from utils.plots_06 import draw_file, plot_rounded

# %% [markdown]
# ## Numbers to follow with a pencil
#
# **A file with one array.** Let `x` be the two numbers 1 and $-2$ as 32-bit floats. A float has a sign bit, 8 bits of
# exponent and 23 of fraction (chapter 00). 1 is `3F800000` in hexadecimal, $-2$ is `C0000000`. Small computers write
# the last byte first: `00 00 80 3F`, `00 00 00 C0`. That is the data, 8 bytes. Before it stands the header, a line of
# JSON that says where `x` lies: from byte 0 to byte 8 *of the data*. Before the header stand 8 bytes with its length.
#
# **BF16.** Cut the last 16 bits off a float: 1 is `3F80`. Reading it back means writing 16 zero bits behind it. What
# does $\tfrac13$ become? It is `3EAAAAAB`. Nearest in 16 bits is `3EAB`, and that is 0.333984375: off by 0.2 %.

# %%
x = np.array([1.0, -2.0], dtype=np.float32)
print("bytes of x:", x.tobytes().hex(" "))
upper = np.array([0x3F80, 0x3EAB], dtype=np.uint16)
print("BF16 3F80 and 3EAB are", (upper.astype(np.uint32) << 16).view(np.float32))
print("1/3 in BF16, by chapter 05:", round_to(np.array([1 / 3]), BF16)[0])

# %% [markdown]
# ## Build it: write a crate


# %%
def write_crate(path, arrays):
    """Length of the header, header, numbers: arrays by name, all float32."""
    header, offset = {}, 0
    for name, array in arrays.items():
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    text = json.dumps(header).encode()
    data = b"".join(array.tobytes() for array in arrays.values())
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)  # <Q: 8 bytes, the last one first


# %%
scratch = tempfile.TemporaryDirectory()
folder = Path(scratch.name)
write_crate(folder / "tiny.safetensors", {"x": x})
raw = (folder / "tiny.safetensors").read_bytes()
draw_file(raw, f"A whole file: {len(raw)} bytes, of which the last 8 are the numbers")

# %% [markdown]
# ## Build it: read one
#
# The header says of each array where it begins and ends, so a reader can fetch one array out of 700 GB without touching
# the rest. (A mapped file, as the serving engines use it, does just that.)


# %%
def read_crate(path):
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header, data = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    arrays = {}
    for name, entry in header.items():
        if name != "__metadata__":
            start, end = entry["data_offsets"]
            arrays[name] = np.frombuffer(data[start:end], dtype=np.float32).reshape(entry["shape"])
    return arrays


# %%
rng = np.random.default_rng(0)
arrays = {"a": rng.normal(size=(2, 3)).astype(np.float32), "b.weight": rng.normal(size=5).astype(np.float32)}
write_crate(folder / "ours.safetensors", arrays)
write_safetensors(folder / "theirs.safetensors", arrays)
for reader in (read_crate, read_safetensors):
    for file in ("ours", "theirs"):
        found = reader(folder / f"{file}.safetensors")
        assert found.keys() == arrays.keys()
        assert all(np.array_equal(found[name], array) for name, array in arrays.items())
print("our writer and the module's, our reader and the module's: four ways, the same numbers")

# %% [markdown]
# ## What a model puts into it
#
# In memory the experts of a layer are one stacked array: a product over all of them at once is convenient. In a
# released file every expert has tensors of its own. And the MTP layer carries *copies* of embedding and head, so that
# it can be served alone. In code, naively:


# %%
def name_tensors(model):
    """The arrays of a model as they are named in a released file."""
    named = {}
    for name, array in model.weights.items():
        if ".experts." in name:
            before, after = name.split(".experts.")
            named |= {f"{before}.experts.{e}.{after}": array[e] for e in range(len(array))}
        else:
            named[name] = array
    for i in range(model.config.num_hidden_layers, model.config.n_layers):
        named[f"model.layers.{i}.embed_tokens.weight"] = model.weights["model.embed_tokens.weight"]
        named[f"model.layers.{i}.shared_head.head.weight"] = model.weights["lm_head.weight"]
    return named


# %%
model = init_model(rng, Config(), np.float32)
mine, theirs = name_tensors(model), released_tensors(model.config, model.weights)
assert mine.keys() == theirs.keys()
assert all(np.array_equal(mine[name], array) for name, array in theirs.items())
save_checkpoint(model, folder / "saved")
again = load_checkpoint(folder / "saved", np.float32)
assert all(np.array_equal(again.weights[name], array) for name, array in model.weights.items())
print(f"{len(model.weights)} arrays in memory, {len(mine)} in the file; all of them came back bit for bit")

# %% [markdown]
# ## The derivation
#
# Why this order, and why so strict?
#
# 1. **Length first.** A reader cannot know how long the header is; 8 bytes say it. From there on everything can be
#    found by counting.
# 2. **Offsets, not sizes.** Each array can be fetched alone, and a reader can check that the last one ends where the
#    file ends. A parcel that was cut on the way is refused, not padded with zeros.
# 3. **Numbers only.** Older formats could carry programs, and a file from a stranger could run one. A header of JSON
#    and raw numbers cannot.
# 4. **Whole or not at all.** The module writes beside the old folder, has the disk keep it, and then exchanges the two
#    by their names. A power cut leaves the old checkpoint or the new one, never half of each.
# 5. **FP8 comes in two tensors.** V3's matrices are stored as 8-bit codes and, for each block of 128 by 128, one scale:
#    `weight` and `weight_scale_inv`. The value is code *times* that number, whatever the name says.

# %%
weight = rng.normal(size=(256, 200)).astype(np.float32) * 0.02
codes, scale = np.empty((256, 200), np.uint8), np.empty((2, 2), np.float32)
for i, rows in enumerate((slice(0, 128), slice(128, 256))):
    for j, columns in enumerate((slice(0, 128), slice(128, 200))):
        scale[i, j] = np.abs(weight[rows, columns]).max() / np.float32(448)  # the largest number of E4M3
        codes[rows, columns] = encode(weight[rows, columns] / scale[i, j], E4M3)
stored = quantize_weight(weight)
assert np.array_equal(codes, stored.codes)
assert np.array_equal(scale, stored.scales)
print(f"{weight.nbytes:,} bytes became {codes.nbytes:,} of codes and {scale.nbytes} of scales")

# %% [markdown]
# ## The experiment: how much of a model survives?
#
# Train a small model for 60 steps in 32 bits. Then round every matrix: to BF16, to FP8 with a scale for each block,
# and to FP8 without any scale. Weights may be of any size, so once more without a scale as if they were 64 times
# smaller. What does the loss say, on text that was held out?

# %%
recipe, text, held_out = Recipe(n_tokens=50), read_topics(), read_topics(held_out=True)
config = Config(initializer_range=0.12)
model = init_model(np.random.default_rng(0), config, np.float32)
optimizer, rng = AdamW(trained_weights(model.weights)), np.random.default_rng(0)
for step in range(60):
    rate = 1e-2 * min(1, (step + 1) / 20) * (0.55 + 0.45 * np.cos(np.pi * step / 60))
    take_step(model, optimizer, draw_windows(rng, text, recipe.n_windows, recipe.n_tokens), recipe, rate)
windows = draw_windows(np.random.default_rng(1), held_out, 64, 50)


# %%
def loss_of(change):
    """The loss on held-out text after `change` was applied to every matrix; a stack of experts one by one."""
    weights = dict(model.weights)
    for name, array in weights.items():
        if array.ndim == 2:
            weights[name] = change(array)
        elif array.ndim == 3:
            weights[name] = np.stack([change(expert) for expert in array])
    return loss_forward(Model(config, weights), *windows)[0].main


# %%
ways = {
    "32 bits": lambda w: w,
    "BF16": lambda w: round_to(w, BF16).astype(np.float32),
    "FP8, a scale a block": lambda w: dequantize(quantize_weight(w)),
    "FP8, no scale": lambda w: round_to(w, E4M3).astype(np.float32),
    "no scale, small weights": lambda w: 64 * round_to(w / 64, E4M3).astype(np.float32),
}
losses = {name: loss_of(change) for name, change in ways.items()}
for name, loss in losses.items():
    print(f"{name:<22} {loss:.4f} nats a character, {loss - losses['32 bits']:+.4f}")
assert losses["FP8, a scale a block"] - losses["32 bits"] < 0.01 < losses["no scale, small weights"] - losses["32 bits"]
scaled, bare = (losses[name] - losses["32 bits"] for name in ("FP8, a scale a block", "no scale, small weights"))
plot_rounded(losses, f"Eight bits with scales cost {scaled:.4f} nats; small weights without, {bare:.3f}")

# %% [markdown]
# Sixteen bits cost next to nothing, eight a few thousandths. Without a scale all depends on luck: the weights of this
# model happen to lie within the range of the format. Were they 64 times smaller, most would fall below its smallest
# steps. A scale for each block makes the format follow the weights. (One small model; its matrices are smaller than a
# block, so each has one scale.)
#
# ## The trained model speaks: its crate
#
# The model that runs through the book (`make book`) lies in `book_model/`, in the format that you have just built.
# Every number of it is BF16, but for the routing biases.

# %%
crate = Path("../book_model/model.safetensors").read_bytes()
(length,) = struct.unpack("<Q", crate[:8])
header = json.loads(crate[8 : 8 + length])
header.pop("__metadata__", None)
book = load_checkpoint("../book_model", np.float32)
shared = sum(name.endswith(("4.embed_tokens.weight", "shared_head.head.weight")) for name in header)
print(f"{len(header)} tensors in {len(crate):,} bytes, {shared} of them copies;", end=" ")
print(
    f"{sum(w.size for w in book.weights.values()):,} numbers in memory;",
    {kind: sum(entry["dtype"] == kind for entry in header.values()) for kind in ("BF16", "F32")},
)
assert all(np.array_equal(round_to(w, BF16), w) for name, w in book.weights.items() if not name.endswith("bias"))

# %% [markdown]
# ## Change this, predict, run
#
# The cell cuts the last 100 bytes off the file of the saved model and reads it, first with our reader, then with the
# module's. Predict: what does each of them do? Which of the two would you rather have on a cluster, at night?
#
# <details><summary>Afterwards</summary>
#
# Ours fails in the last array, with a word about a shape, because too few numbers are left for it. Had the cut fallen
# between two arrays, it would have failed with an empty one. The module compares the end of every array with the length
# of the file and names both. Now cut 4 bytes and *append* 4 zero bytes: both read it, and the last weight is
# wrong. Only a checksum finds that; the package writes one for each 4 MB of a file (`docs/checkpoints.md`).
#
# </details>

# %%
cut, padding = 100, b""
whole = (folder / "saved" / "model.safetensors").read_bytes()
(folder / "cut.safetensors").write_bytes(whole[:-cut] + padding)
for reader in (read_crate, read_safetensors):
    try:
        reader(folder / "cut.safetensors")
        print(f"{reader.__name__}: read it without a word")
    except ValueError as error:
        print(f"{reader.__name__}: {str(error).replace(str(folder), '...')}")

# %% [markdown]
# ## What you can now do
#
# Write and read a checkpoint of the released format without a library; say which tensors a released file has that the
# model in memory has not; turn FP8 codes and block scales into numbers; say what a rounding costs by measuring it.
#
# ## Exercises
#
# Graded: `read_tensor`, `name_mtp_tensors` (`make check CH=06`). By thought alone:
#
# 1. How many tensors has the file of V3, MTP layer included? (61 layers, the first 3 dense, 256 experts; count the
#    `weight_scale_inv` as not there.)
#
# <details><summary>Solution</summary>
#
# Attention has 7 tensors and each layer 2 norms: 9. Dense layers have 3 more: $3 \cdot 12 = 36$. An expert layer has
# the gate and its bias, 3 for the shared expert and $3 \cdot 256$: $9 + 2 + 3 + 768 = 782$; 58 of them are 45,356. The
# MTP layer is one more, 782, with `enorm`, `hnorm`, `eh_proj`, `shared_head.norm` and the two copies: 788. Embedding,
# norm and head: 3. Together 46,183.
#
# </details>
#
# 2. Why is the balancing bias stored in FP32 in a file whose matrices have 8 bits?
#
# <details><summary>Solution</summary>
#
# It decides between experts whose scores may lie close together, and it moves by 0.001: chapter 03 shows where BF16
# stops hearing such steps. It has 256 numbers a layer, so 32 bits cost nothing.
#
# </details>
