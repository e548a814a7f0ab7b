"""Read and write checkpoint directories of the released format with nothing but json, struct and NumPy.

    python checkpoint.py            save a tiny model, look into the file, load it again
    python checkpoint.py DIR        list what a checkpoint holds

Source: the released config.json and tensor index; the safetensors format: 8 bytes with the length of a JSON header,
the header ({name: {dtype, shape, data_offsets}}), then the raw numbers. BF16 is the upper half of a float32.
Letters: E routed experts, F hidden width, D model width, V vocabulary.

The same directory is read by the package, by transformers and by the serving engines. Two things differ from memory:
every expert has tensors of its own there, and each MTP layer carries copies of the embedding and of the head.
"""

import json
import os
import shutil
import struct
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import chapters  # noqa: F401
import numpy as np
from architecture import BIAS, Config, Model, Weights, init_model, tensor_shapes
from fine_grained_quantization import TILE, spread
from float_formats import E4M3, decode

CODES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16, "F8_E4M3": np.uint8}
OURS = {"config.json", "model.safetensors"}


def released_slots(config: Config) -> Iterator[tuple[str, str, int | None]]:
    """Yield (released name, name in memory, expert or None) for every tensor of a checkpoint, copies included."""
    for name in tensor_shapes(config):
        if ".mlp.experts." in name:
            head, tail = name.split(".experts.")
            for e in range(config.n_routed_experts):
                yield f"{head}.experts.{e}.{tail}", name, e
        else:
            yield name, name, None
    for i in range(config.num_hidden_layers, config.n_layers):
        yield f"model.layers.{i}.embed_tokens.weight", "model.embed_tokens.weight", None
        yield f"model.layers.{i}.shared_head.head.weight", "lm_head.weight", None


def released_tensors(config: Config, weights: Weights) -> Weights:
    """Return all tensors as they are named in a released checkpoint; views, nothing is copied."""
    slots = released_slots(config)
    return {name: weights[key] if e is None else weights[key][e] for name, key, e in slots if key in weights}


def read_safetensors(path: Path) -> Weights:
    """Read every tensor of a file: F64, F32 and F16 as they are, BF16 as float32, FP8 as its codes (uint8).

    Raises:
        ValueError: the file is cut short, or holds numbers of another format.
    """
    raw = np.fromfile(path, dtype=np.uint8)
    length = struct.unpack("<Q", raw[:8].tobytes())[0] if len(raw) >= 8 else len(raw)
    if 8 + length > len(raw):
        raise ValueError(f"{path} has {len(raw)} bytes, too few for its header; copy the file again")
    header = json.loads(raw[8 : 8 + length].tobytes())
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        start, end = (8 + length + offset for offset in entry["data_offsets"])
        if entry["dtype"] not in CODES or end > len(raw):
            raise ValueError(
                f"{path}: {name} of dtype {entry['dtype']} ends at byte {end} of {len(raw)}; cannot be read"
            )
        array = raw[start:end].view(CODES[entry["dtype"]]).reshape(entry["shape"])
        if entry["dtype"] == "BF16":
            array = (array.astype(np.uint32) << 16).view(np.float32)
        tensors[name] = array
    return tensors


def write_safetensors(path: Path, tensors: Weights) -> None:
    """Write float32 and float64 tensors to one file, and have the disk keep it before returning."""
    header: dict = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, array in tensors.items():
        code = {"float64": "F64", "float32": "F32"}[array.dtype.name]
        header[name] = {"dtype": code, "shape": list(array.shape), "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that the numbers start at a multiple of 8 bytes
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for array in tensors.values():
            file.write(np.ascontiguousarray(array).tobytes())
        file.flush()
        os.fsync(file.fileno())


def find_shards(folder: Path) -> list[Path]:
    """List the safetensors files of a directory: those that its index names, or the only one.

    Raises:
        ValueError: there are none.
    """
    index = folder / "model.safetensors.index.json"
    if index.exists():
        return [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    if (folder / "model.safetensors").exists():
        return [folder / "model.safetensors"]
    raise ValueError(f"{folder} holds neither model.safetensors nor an index; give a checkpoint directory")


def dequantize_blocks(stored: Weights) -> Weights:
    """Multiply FP8 codes by their block scales; `weight_scale_inv` is the multiplier, whatever its name says."""
    scales = {name: stored.pop(name) for name in list(stored) if name.endswith("_scale_inv")}
    for name, scale in scales.items():  # after all shards: a scale may lie in another one than its weight
        weight = name.removesuffix("_scale_inv")
        codes = stored[weight]
        stored[weight] = decode(codes, E4M3).astype(np.float32) * spread(scale, (TILE, TILE), codes.shape)
    return stored


def load_checkpoint(folder: str | Path, dtype: type = np.float64) -> Model:
    """Read a checkpoint directory into memory, every number in `dtype`.

    Raises:
        ValueError: another architecture, or tensors that are missing, left over or of a wrong shape.
    """
    folder = Path(folder)
    config = Config.from_dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    stored: Weights = {}
    for path in find_shards(folder):
        stored |= read_safetensors(path)
    stored = dequantize_blocks(stored)
    weights = {name: np.empty(shape, dtype) for name, shape in tensor_shapes(config).items()}
    places = {name: weights[key] if e is None else weights[key][e] for name, key, e in released_slots(config)}
    wrong = [n for n in places.keys() | stored.keys() if np.shape(stored.get(n)) != np.shape(places.get(n))]
    if wrong:
        listed = [f"{n}: {np.shape(stored.get(n))} against {np.shape(places.get(n))}" for n in sorted(wrong)[:5]]
        raise ValueError(f"{folder}: {len(wrong)} tensors do not fit config.json: {'; '.join(listed)}")
    for name, place in places.items():
        place[...] = stored[name]
    return Model(config, weights)


def save_checkpoint(model: Model, folder: str | Path) -> None:
    """Write a checkpoint directory beside the old one, whole and flushed, then exchange the two by their names.

    The biases are stored in float32, as released.

    Raises:
        ValueError: the directory holds files that this function does not write.
    """
    folder = Path(folder).resolve()
    strange = {path.name for path in folder.iterdir()} - OURS if folder.exists() else set()
    if strange:
        raise ValueError(f"{folder} also holds {sorted(strange)[:3]}; give a new directory, or one saved from here")
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    tensors = released_tensors(model.config, model.weights)
    tensors |= {name: array.astype(np.float32) for name, array in tensors.items() if name.endswith(BIAS)}
    write_safetensors(beside / "model.safetensors", tensors)
    dtype = model.weights["lm_head.weight"].dtype.name
    text = json.dumps({**model.config.to_dict(), "torch_dtype": dtype}, indent=2)
    (beside / "config.json").write_text(text + "\n", encoding="utf-8")
    beside.chmod(0o755)
    if folder.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
        os.replace(folder, old)
        os.replace(beside, folder)
        shutil.rmtree(old)
    else:
        os.replace(beside, folder)


def main() -> None:
    """List a checkpoint, or make one: names, shapes, and the numbers back again."""
    if len(sys.argv) > 1:
        for path in find_shards(Path(sys.argv[1])):
            for name, array in read_safetensors(path).items():
                print(f"{name:<64} {list(array.shape)!s:<16} {array.dtype}")
        return
    model = init_model(np.random.default_rng(0), Config())
    with tempfile.TemporaryDirectory() as scratch:
        save_checkpoint(model, Path(scratch) / "tiny")
        raw = (Path(scratch) / "tiny" / "model.safetensors").read_bytes()
        (length,) = struct.unpack("<Q", raw[:8])
        print(f"{len(raw):,} bytes: 8 for the length, {length:,} of header, {len(raw) - 8 - length:,} of numbers")
        print("the header begins", raw[8:170].decode(), "...")
        again = load_checkpoint(Path(scratch) / "tiny")
    names = list(released_tensors(model.config, model.weights))
    print(f"{len(names)} tensors in the file, {len(model.weights)} arrays in memory; the last layer's copies:")
    print("  ", "\n   ".join(names[-2:]))
    same = all(np.array_equal(again.weights[name], array) for name, array in model.weights.items())
    print("every number as it was:", same)


if __name__ == "__main__":
    main()
