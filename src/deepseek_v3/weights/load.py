"""Build a model from a checkpoint folder: released (BF16 or FP8), or written by this package (the same form).

    model, tokenizer = load_model("DIR", tokenizer_from=Tokenizer.from_file)

Everything that can be refused is refused before the first weight of a model changes.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepseek_v3.config import ModelConfig
from deepseek_v3.fp8.weight import HoldsFP8
from deepseek_v3.memory import check_memory
from deepseek_v3.model.initialize import allocate
from deepseek_v3.model.transformer import DeepseekV3
from deepseek_v3.weights.checkpoint import Checkpoint
from deepseek_v3.weights.digests import Piece, group_up
from deepseek_v3.weights.errors import CheckpointError, ConfigFileError, DtypeError
from deepseek_v3.weights.folder import recover_folder
from deepseek_v3.weights.jobs import run_jobs
from deepseek_v3.weights.manifest import list_pieces, verify_group, verify_manifest, verify_pieces
from deepseek_v3.weights.memory_map import ReadAhead, ask_for_huge_pages
from deepseek_v3.weights.names import Slot, scale_name
from deepseek_v3.weights.opening import open_checkpoint
from deepseek_v3.weights.stored import block_rows, split_rows
from deepseek_v3.weights.transfer import Transfer, group_transfers, run_transfers

TOKENIZER = "tokenizer.json"
log = logging.getLogger(__name__)
Opened = Iterator[tuple[Checkpoint, list[Slot]]]
Job = tuple[Path, int, Callable[[], None]]  # a file, how much of it must have come in, and what to do then


@torch.inference_mode(False)  # which is the calling thread's alone: the others fill the memory, and could not
def load_model(
    folder: str | PathLike,
    *,
    skip_verify: bool = False,
    dtype: torch.dtype | None = None,
    keep_fp8: bool = False,
    mtp: bool = True,
    follow_links: bool = False,
    tokenizer_from: Callable[[Path], Any] | None = None,
) -> tuple[DeepseekV3, Any]:
    """Read a folder into a new model.

    Args:
        skip_verify: do not hold the files against their SHA-256 manifest (logged).
        dtype: of the weights; None keeps the config's `torch_dtype`. The selection bias stays FP32.
        keep_fp8: weights stored in FP8 stay so in memory, half of BF16, and decoding is faster. The model is then for
            inference: none of its parameters has a gradient. A checkpoint without FP8 is loaded as ever.
        mtp: also the multi-token prediction layers; False reads a checkpoint that lost them.
        follow_links: accept shards that are links out of the folder, as in a download cache.
        tokenizer_from: builds the tokenizer from its file, if there is one.
    Returns:
        the model in eval mode, and the tokenizer; without `tokenizer_from` the path of its file; None if there is none.
    Raises:
        CheckpointError: of the subclass that says what is wrong, where, and what to do.
    """
    if dtype is not None and (not dtype.is_floating_point or dtype.itemsize == 1):
        raise CheckpointError(f"dtype={dtype} is not a format to compute in; use float32, bfloat16 or float64")
    recover_folder(folder)
    expected = list_pieces(folder, skip=skip_verify) or []
    # Config, index and headers are verified before they count. By size, so that large ones share a core.
    heads = [(piece, sha256) for piece, sha256 in expected if is_head(piece)]
    verify_pieces(sorted(heads, key=lambda head: head[0].n_bytes))
    with open_checkpoint(folder, mtp=mtp, follow_links=follow_links) as checkpoint:
        slots = checkpoint.check()
        tell_notes(checkpoint)
        with checkpoint.read_ahead() as ahead:
            if dtype is None:
                dtype = getattr(torch, checkpoint.config.torch_dtype)
            assert dtype is not None
            config = checkpoint.config.replace(quantization_config=None, torch_dtype=str(dtype).removeprefix("torch."))
            model = build_empty(config, dtype, fp8=find_fp8(checkpoint, slots) if keep_fp8 else {})
            keep_wide(model, slots)
            rest = [(piece, sha256) for piece, sha256 in expected if not is_head(piece)]
            fill_model(model, checkpoint, slots, ahead, rest)
    path = Path(folder) / TOKENIZER
    tokenizer = None if not path.exists() else path if tokenizer_from is None else tokenizer_from(path)
    return model.eval(), tokenizer


def tell_notes(checkpoint: Checkpoint) -> None:
    """Log what is ignored, shared or widened, in one line."""
    if notes := checkpoint.notes():
        log.warning("%s: %s", checkpoint.folder, "; ".join(notes))


def hold_in_fp8(model: DeepseekV3) -> None:
    """Quantize every matrix that may be in FP8 where it lies, the head too; for inference alone from then on.

    What stays as it is: embedding (and a head that is the same), norms, routers, `eh_proj`.

    Raises:
        ValueError: a weight with NaN or infinity.
    """
    tied = model.lm_head.weight is model.embed_tokens.weight
    for name, module in model.named_modules():
        if isinstance(module, HoldsFP8) and not name.endswith("eh_proj") and not (tied and module is model.lm_head):
            module.quantize_weights()
    model.requires_grad_(False)


def keep_wide(model: DeepseekV3, slots: list[Slot]) -> None:
    """Give the routers that are stored in FP32 among narrower weights FP32 in memory too: rounded, some tokens would
    go elsewhere."""
    for slot in slots:
        owner, _, name = slot.memory.rpartition(".")
        if slot.fp32 and name == "weight":
            module = model.get_submodule(owner)
            weight = module.get_parameter(name)
            wide = torch.empty(weight.shape, dtype=torch.float32, device=weight.device)
            module.register_parameter(name, torch.nn.Parameter(wide, requires_grad=weight.requires_grad))


def is_head(piece: Piece) -> bool:
    """Whether it holds a config, a part of an index, or a header; that of a shard is in its first piece."""
    return piece.start == 0 or piece.path.suffix == ".json"


def load_weights(
    model: DeepseekV3, folder: str | PathLike, *, skip_verify: bool = False, follow_links: bool = False
) -> None:
    """Read a folder into a model that exists; it is unchanged if anything is refused.

    Raises:
        CheckpointError: also when the folder's config builds another model than this one.
    """
    with _open_for(model, folder, skip_verify, follow_links) as (checkpoint, slots), checkpoint.read_ahead() as ahead:
        fill_model(model, checkpoint, slots, ahead)


def stream_weights(model: DeepseekV3, folder: str | PathLike) -> Iterator[tuple[str, Tensor]]:
    """Read a folder weight by weight, each whole, as it is called in a model on `meta`, which may be cut meanwhile.

    Raises:
        CheckpointError: before the first one; also when the folder's config builds another model than this one.
    """
    like = dict(model.state_dict())

    def read() -> Iterator[tuple[str, Tensor]]:
        with _open_for(model, folder) as (checkpoint, slots):
            for name, pieces in groupby(sorted(slots, key=lambda slot: slot.memory), lambda slot: slot.memory):
                yield name, _read_whole(checkpoint, [slot for slot in pieces if not slot.copy], like[name])

    return read()


def _read_whole(checkpoint: Checkpoint, pieces: list[Slot], like: Tensor) -> Tensor:
    whole = torch.empty_like(like, device="cpu")
    for slot, rows in ((piece, rows) for piece in pieces for rows in split_rows(piece.shape)):
        checkpoint.read_rows(slot.name, rows, place_of(slot, {slot.memory: whole})[rows])
    checkpoint.release()
    return whole


@contextmanager
def _open_for(model: DeepseekV3, folder: str | PathLike, skip_verify: bool = False, links: bool = False) -> Opened:
    """Open a folder that has passed every check."""
    recover_folder(folder)
    verify_manifest(folder, skip=skip_verify)
    mtp = model.config.num_nextn_predict_layers > 0  # a model without MTP modules takes the main model alone
    with open_checkpoint(folder, mtp=mtp, follow_links=links) as checkpoint:
        if difference := first_difference(checkpoint.config, model.config):
            raise ConfigFileError(f"{difference}; build the model from this config", file=Path(folder) / "config.json")
        slots = checkpoint.check()
        tell_notes(checkpoint)
        checkpoint.check_numbers(slots)
        yield checkpoint, slots


def first_difference(found: ModelConfig, wanted: ModelConfig) -> str:
    """Name the first key in which two configs build different tensors, or return an empty string."""
    free = ("torch_dtype", "quantization_config", "initializer_range", "max_position_embeddings",
            "bos_token_id", "eos_token_id", "pad_token_id")  # fmt: skip
    theirs, ours = found.to_dict(), wanted.to_dict()
    for key in sorted(theirs.keys() & ours.keys() - set(free)):
        if theirs[key] != ours[key]:
            return f"{key} is {theirs[key]!r}, the model has {ours[key]!r}"
    return ""


def find_fp8(checkpoint: Checkpoint, slots: list[Slot]) -> dict[str, int]:
    """Which tensors of our memory are stored in FP8 throughout, and of how many `parts` (HoldsFP8) each consists."""
    others = {slot.memory for slot in slots if not checkpoint.is_fp8(slot)}
    parts = {slot.memory: 1 if slot.rows is None else 2 for slot in slots if checkpoint.is_fp8(slot)}
    return {memory: count for memory, count in parts.items() if memory not in others}


def build_empty(config: ModelConfig, dtype: torch.dtype, *, fp8: Mapping[str, int] | None = None) -> DeepseekV3:
    """Allocate a model on the CPU without drawing its weights, or touching their memory.

    Args:
        fp8: tensors that are to hold FP8 codes, and their parts, as `find_fp8` tells.
    Raises:
        MemoryShort: it does not fit.
    """
    with torch.device("meta"):
        model = DeepseekV3(config).to(dtype)
    for memory, parts in (fp8 or {}).items():
        owner, _, name = memory.rpartition(".")
        model.get_submodule(owner).hold_fp8(name, parts)  # type: ignore[operator]
    if fp8:
        model.requires_grad_(False)
    tensors_once = {id(tensor): tensor.nbytes for tensor in (*model.parameters(), *model.buffers())}
    check_memory("the model", sum(tensors_once.values()))
    allocate(model, _make_room)
    return model


def _make_room(planned: Tensor) -> Tensor:
    room = torch.empty(planned.shape, dtype=planned.dtype)
    if isinstance(planned, torch.nn.Parameter):
        ask_for_huge_pages(room)
    return room


def fill_model(
    model: DeepseekV3,
    checkpoint: Checkpoint,
    slots: list[Slot],
    ahead: ReadAhead,
    expected: Sequence[tuple[Piece, str]] = (),
) -> None:
    """Copy every tensor to its place in memory on all cores, in the order of the files: each byte comes in once.

    Numbers are checked just before they are used, and so are the pieces of files that are `expected` to have a digest.

    Raises:
        CheckpointError: a number or a digest is wrong; the model is then filled in part.
    """
    jobs = sorted([*_fill_jobs(model, checkpoint, slots), *_verify_jobs(expected, checkpoint)], key=lambda job: job[:2])

    def run(path: Path, position: int, job: Callable[[], None]) -> None:
        ahead.reach(path, position)
        job()

    run_jobs([partial(run, *job) for job in jobs])


def _fill_jobs(model: DeepseekV3, checkpoint: Checkpoint, slots: list[Slot]) -> Iterator[Job]:
    state = model.state_dict()
    planned: dict[Path, list[tuple[int, Transfer]]] = {}
    originals = {slot.memory: slot.name for slot in slots if not slot.copy}
    for slot in slots:
        entry, file = checkpoint.entries[slot.name], checkpoint.files[slot.name]
        if slot.copy:
            yield file, entry.end, partial(checkpoint.check_copy, slot.name, originals[slot.memory])
            continue
        place, scale = place_of(slot, state), scale_place_of(slot, state)
        if scale is not None and not checkpoint.is_fp8(slot):
            raise DtypeError(f"is stored in {entry.dtype}; the model holds it in FP8", file=file, tensor=slot.name)
        for rows in split_rows(slot.shape):
            end = entry.start + entry.n_bytes // slot.shape[0] * rows.stop
            read = (slot.name, rows, place[rows], None if scale is None else scale[block_rows(rows)])
            if transfer := checkpoint.plan_rows(*read):
                planned.setdefault(file, []).append((end, transfer))
            else:
                yield file, end, partial(checkpoint.read_rows, *read)
    for file, transfers in planned.items():
        for end, group in group_transfers(transfers):
            yield file, end, partial(_transfer, group, checkpoint)


def _transfer(group: list[Transfer], checkpoint: Checkpoint) -> None:
    if name := run_transfers(group):
        checkpoint.check_codes(name)  # says which element of the whole


def _verify_jobs(expected: Sequence[tuple[Piece, str]], checkpoint: Checkpoint) -> Iterator[Job]:
    for group in group_up(expected):
        first, _ = group[0]
        yield first.path, first.start, partial(verify_group, group, checkpoint.show_piece)


def place_of(slot: Slot, state: dict[str, Tensor]) -> Tensor:
    """The piece of our memory that a released tensor is."""
    memory = state[slot.memory]
    if slot.expert is not None:
        memory = memory[slot.expert]
    return memory if slot.rows is None else memory[slot.rows[0] : slot.rows[1]]


def scale_place_of(slot: Slot, state: dict[str, Tensor]) -> Tensor | None:
    """The piece of our memory that its block scales are, if it is held in FP8."""
    scale = state.get(scale_name(slot.memory))
    if scale is None or slot.expert is None:
        return scale
    scale = scale[slot.expert]
    return scale if slot.rows is None else scale[slot.rows[0] // slot.shape[0]]
