"""Checkpoints of a training on many processes: each writes its parts, beside the training, and any number reads them.

    RUN/checkpoints/step-00000500/   config.json  tokenizer.json  manifest.json  training_state.json
                                     shards/...     weights, moments, averaged weights (weights/sharded.py)

The leading process holds the folder open while all write into it, then renames it: a checkpoint that is there is whole.
"""

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from torch import Tensor, nn

from deepseek_v3.parallel.layout import led
from deepseek_v3.training.optimizer import AveragedWeights, empty_moments, restore_moments
from deepseek_v3.training.training_state import STATE, check_state, drop_old, read_checkpoint, write_checkpoint
from deepseek_v3.weights.errors import CheckpointError, MissingTensorError, SaveError
from deepseek_v3.weights.folder import atomic_folder
from deepseek_v3.weights.load import first_difference
from deepseek_v3.weights.manifest import SHARDS, verify_manifest
from deepseek_v3.weights.save import released_config
from deepseek_v3.weights.sharded import MODEL, is_sharded, list_stored
from deepseek_v3.weights.stored import read_config

PATIENCE_S = 60.0


class ShardedSave:
    """A checkpoint on its way: begun by all processes, then written while they go on."""

    def __init__(
        self,
        mesh: Any,
        target: Path,
        tensors: dict[str, Tensor],
        finish_folder: Callable[[Path], None],
        keep: int,
    ) -> None:
        """Copy what is to be written, and begin.

        Args:
            mesh: the layout of many processes.
            finish_folder: writes what is no tensor; the leading process does.
        Raises:
            OSError: the folder cannot be opened; in all processes.
        """
        self.mesh, self.target, self.finish_folder, self.keep = mesh, target, finish_folder, keep
        self.problem: BaseException | None = None
        self.folder = ExitStack()
        n_bytes = sum(tensor.numel() * tensor.dtype.itemsize for tensor in tensors.values())
        opened = led(mesh, lambda: self.folder.enter_context(atomic_folder(target, n_bytes=n_bytes)), SaveError)
        self.beside: Path = mesh.agree(opened)
        self.parts = mesh.stage(tensors, self.beside / SHARDS)
        self.thread = Thread(target=self._write, daemon=True)
        self.thread.start()

    def _write(self) -> None:
        try:
            with self.folder:
                self.parts.write()
                if self.mesh.leads:
                    self.finish_folder(self.beside)
            if self.mesh.leads:
                drop_old(self.target, self.keep)
        except BaseException as error:
            self.problem = error

    def finish(self) -> None:
        """Wait until it is on disk; all processes.

        Raises:
            OSError: it is not; in all processes, and the older checkpoints still stand.
        """
        self.thread.join()
        if self.mesh.any(self.problem is not None):
            said = self.mesh.agree(None if self.problem is None else str(self.problem))
            raise SaveError(said or str(self.problem), file=self.target)

    def abandon(self) -> None:
        """Wait a while, without a word to the others: the training ends for another reason."""
        self.thread.join(PATIENCE_S)


def save_training(
    layout: Any, target: Path, model: Any, tokenizer: Any, tensors: dict[str, Tensor], state: dict[str, Any], keep: int
) -> ShardedSave | None:
    """Write a checkpoint of the model and the `tensors` and `state` of its training; many processes begin to.

    Raises:
        OSError: no room or no permission; in all processes.
    """
    if not layout.shares:
        tensors = {name: layout.whole(value) for name, value in tensors.items()}
        run, step = target.parent.parent, state["step"]
        write_checkpoint(run, step, layout.whole_model(model), tokenizer, tensors, state, keep=keep)
        return None

    def finish_folder(folder: Path) -> None:
        released_config(model.config, torch.float32, fp8=False).to_json(folder / "config.json")
        tokenizer.save(folder)
        (folder / f"{STATE}.json").write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")

    return ShardedSave(layout, target, {**name_weights(model), **tensors}, finish_folder, keep)


def read_training(
    layout: Any, folder: Path, model: Any, optimizer: torch.optim.Optimizer, averaged: AveragedWeights | None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Fill model, moments and averages from a checkpoint of either form.

    Returns:
        what else was kept; and the state.
    Raises:
        CheckpointError: damaged, or of another config; ResumeError: weights without the state of a training.
    """
    if layout.shares and is_sharded(folder):
        return read_sharded(layout, folder, model, optimizer, averaged)
    plain = layout.plain_model(model)
    tensors, state = read_checkpoint(plain, folder)
    layout.take(model, plain)
    restore_moments(model, optimizer, tensors, layout.part)
    if averaged is not None:
        averaged.restore(model, tensors, layout.part)
    return tensors, state


def name_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return every stored weight and bias by its stored name; what two modules share once."""
    stored = model.state_dict().keys()
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {MODEL + name: tensor.detach() for name, tensor in tensors if name in stored}


@torch.no_grad()
def read_sharded(
    mesh: Any, folder: Path, model: Any, optimizer: torch.optim.Optimizer, averaged: AveragedWeights | None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Fill model, moments and averages, each process its parts, however they were cut when they were written.

    Returns:
        the other tensors that were kept, whole; and the state.
    Raises:
        CheckpointError: damaged, or of another config; ResumeError: weights without the state of a training.
    """
    check_state(folder)
    led(mesh, lambda: verify_manifest(folder), CheckpointError)  # one reads all bytes
    if difference := first_difference(read_config(folder), model.config):
        raise CheckpointError(f"{difference}; build the model from this config", file=folder / "config.json")
    stored = list_stored(folder)
    wanted = name_weights(model)
    if absent := wanted.keys() - stored.keys():
        raise MissingTensorError("is missing", file=folder / SHARDS, tensor=min(absent))
    wanted |= empty_moments(model, optimizer, stored)
    if averaged is not None:
        wanted |= {f"averaged.{name}": value for name, value in averaged.shadow.items() if f"averaged.{name}" in stored}
    rest = ("exp_avg.", "exp_avg_sq.", "step.", "averaged.", MODEL)
    further = {name: shape for name, shape in stored.items() if not name.startswith(rest)}
    kept = {name: torch.empty(shape, dtype=_dtype_of(name)) for name, shape in further.items()}
    mesh.read({**wanted, **kept}, folder / SHARDS)
    if averaged is not None:
        for name, value in averaged.shadow.items():
            if f"averaged.{name}" not in stored:
                value.copy_(model.get_parameter(name).detach())
    return kept, json.loads((folder / f"{STATE}.json").read_text(encoding="utf-8"))


def _dtype_of(name: str) -> torch.dtype:
    return torch.uint8 if name == "random_state" else torch.float32
