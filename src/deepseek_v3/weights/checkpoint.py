"""A checkpoint folder whose tensors are held against its config: what fits, what does not, and what is mended.

with Checkpoint("DIR") as checkpoint:
    slots = checkpoint.check()
    checkpoint.notes()                    what was ignored, shared or widened on the way: nothing of it in silence
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import torch

from deepseek_v3.weights.errors import (
    CheckpointError,
    DtypeError,
    MissingTensorError,
    ScaleError,
    ShapeError,
    UnexpectedTensorError,
)
from deepseek_v3.weights.names import SCALE_SUFFIX, Slot, iterate_slots, mtp_layer_of, scale_name, scale_shape
from deepseek_v3.weights.stored import CONFIG, FP8, StoredTensors

FLOATS = ("F32", "BF16", "F16", "F64")
WIDE = ("F32", "F64")
COPIES = ("embed_tokens", "shared_head.head")  # of embedding and head, in an MTP layer
WITHOUT_MTP = "load without it: mtp=False, --without-mtp, or train with --set num_nextn_predict_layers=0"


class Checkpoint(StoredTensors):
    """Stored tensors and the slots that they fill."""

    def slots(self) -> Iterator[Slot]:
        """Yield the config's slots as this checkpoint fills them.

        Copies of embedding and head that an MTP layer leaves out are none: memory holds them once anyway. A router in
        FP32 among weights of another format stays FP32, whatever they become.
        """
        wide = set(self._wide_routers())
        for slot in iterate_slots(self.config):  # lazily: a wrong config may claim billions
            entry = self.entries.get(slot.name)
            if slot.copy and entry is None:
                continue
            yield replace(slot, fp32=True) if slot.name in wide else slot

    def _wide_routers(self) -> list[str]:
        """Routers in FP32 where the other weights are not."""
        if self.config.torch_dtype in ("float32", "float64"):
            return []
        return [n for n, entry in self.entries.items() if entry.dtype == "F32" and n.endswith("mlp.gate.weight")]

    def _missing_copies(self) -> int:
        """Count the copies of embedding and head that the MTP layers in the files leave out."""
        names = [name for name in self.entries if mtp_layer_of(name, self.config)]
        layers = {".".join(name.split(".")[:3]) for name in names if self.config.num_nextn_predict_layers}
        return sum(f"{layer}.{copy}.weight" not in self.entries for layer in layers for copy in COPIES)

    def notes(self) -> list[str]:
        """Say what is ignored, shared and widened in reading this folder, a line for each kind.

        From what the files hold: a wrong config may claim billions of layers.
        """
        found = [f"{count:,} {kind}: ignored" for kind, count in sorted(self.ignored.items())]
        if self.lost_mtp:
            counted = self.keys.get("num_nextn_predict_layers", self.keys.get("num_mtp_layers", 1))
            found.append(f"the config counts {counted} MTP layer(s), the files have none: drafting is off")
        if left_out := self._missing_copies():
            found.append(f"{left_out} copies of embedding and head are left out of the MTP layer: shared")
        biases = Counter(e.dtype for n, e in self.entries.items() if n.endswith("e_score_correction_bias"))
        for dtype in sorted(biases.keys() - {*WIDE}):
            found.append(f"{biases[dtype]:,} selection biases are stored in {dtype}: widened to F32, exactly")
        if routers := len(self._wide_routers()):
            found.append(f"{routers:,} routers are stored in F32, other weights are not: they stay F32")
        return found

    def check(self) -> list[Slot]:
        """Hold names, shapes and number formats against the config; return its slots.

        Raises:
            CheckpointError: of the subclass that says what does not fit, at the first tensor where it does not.
        """
        slots = []
        known: set[str] = set()
        for slot in self.slots():  # stops at the first that is missing, however many a config claims
            self.check_slot(slot)
            slots.append(slot)
            known.add(slot.name)
            if self.is_fp8(slot):
                known.add(scale_name(slot.name))
        for name in self.entries:
            if name not in known:
                self._refuse_unexpected(name)
        return slots

    def check_numbers(self, slots: list[Slot]) -> None:
        """Look at the numbers that can be wrong: block scales, FP8 codes, and the MTP layer's copies.

        Raises:
            CheckpointError: a scale or code that is no usable number, or a copy that differs from its original.
        """
        originals = {slot.memory: slot.name for slot in slots if not slot.copy}
        for slot in slots:
            if self.is_fp8(slot):
                self.check_codes(slot.name)
            elif slot.copy:
                self.check_copy(slot.name, originals[slot.memory])
            self.release()

    def check_copy(self, name: str, original: str) -> None:
        """Refuse a copy that differs from its original."""
        for copied, kept in zip(self.view(name).split(4096), self.view(original).split(4096)):
            if copied.dtype != kept.dtype or not torch.equal(copied.view(torch.uint8), kept.view(torch.uint8)):
                problem = f"differs from {original}, of which it is the MTP layer's copy"
                mend = f"take the file from a good copy, or {WITHOUT_MTP}"
                raise CheckpointError(problem, file=self.files[name], tensor=name, mend=mend)

    def check_slot(self, slot: Slot) -> None:
        """Refuse a tensor that is missing, or of another shape or format than its slot."""
        entry = self.entries.get(slot.name)
        if entry is None:
            mend = "the config and the files are of different models, or a shard is missing"
            if mtp_layer_of(slot.name, self.config):
                mend = f"the MTP layer is there in part; {WITHOUT_MTP}"
            raise MissingTensorError("is missing", file=self.folder, tensor=slot.name, mend=mend)
        place = {"file": self.files[slot.name], "tensor": slot.name}
        if entry.shape != slot.shape:
            raise ShapeError(f"has the shape {list(entry.shape)}, {CONFIG} says {list(slot.shape)}", **place)
        if entry.dtype == FP8 and slot.fp8:
            self._check_scale(slot)
        elif entry.dtype not in FLOATS:
            allowed = (*FLOATS, FP8) if slot.fp8 else FLOATS
            raise DtypeError(f"is stored in {entry.dtype}; its place allows {', '.join(allowed)}", **place)

    def _check_scale(self, slot: Slot) -> None:
        name = scale_name(slot.name)
        entry = self.entries.get(name)
        if entry is None:
            mend = "without its block scales an FP8 weight has no value"
            raise ScaleError("is missing in every shard", file=self.folder, tensor=name, mend=mend)
        place = {"file": self.files[name], "tensor": name}
        if entry.dtype not in ("F32", "F8_E8M0"):
            raise DtypeError(f"is stored in {entry.dtype}; block scales are F32 (or F8_E8M0)", **place)
        if entry.shape != scale_shape(slot.shape):
            needed = list(scale_shape(slot.shape))
            raise ShapeError(f"has the shape {list(entry.shape)}, blocks of 128 x 128 need {needed}", **place)

    def _refuse_unexpected(self, name: str) -> None:
        mend = "the config and the files are of different models"
        if name.endswith(SCALE_SUFFIX):
            mend = "its weight is not stored in FP8"
        elif mtp_layer_of(name, self.config):
            mend = f"an MTP layer that the config does not count; {WITHOUT_MTP}"
        elif ".indexer." in name:
            mend = "a V3.2 checkpoint with sparse attention, which this package does not build"
        elif ".self_attn." in name and "gate" in name.rpartition(".self_attn.")[2]:
            mend = "attention with an output gate, which V3 has not"
        raise UnexpectedTensorError("is unexpected", file=self.files[name], tensor=name, mend=mend)
