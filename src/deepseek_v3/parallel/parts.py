"""Tensors that are cut over processes, written and read by all at once: PyTorch's distributed checkpoints (DCP).

    written = PartsWriter(tensors, folder, group)       a copy is made, on the CPU
    written.write()                                     in any thread: it talks through a group of its own
    read_parts(tensors, folder)                         into tensors that may be cut in any other way

Each process writes one .safetensors file, whose header says where its parts lie; nothing is pickled.
"""

import warnings
from pathlib import Path

import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save


class PartsWriter:
    """What all processes are about to write."""

    def __init__(self, tensors: dict[str, Tensor], folder: Path, group: dist.ProcessGroup) -> None:
        self.group = group
        self.writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
        self.tensors = self.writer.stage(tensors)

    def write(self) -> None:
        """Write; every process enters, and learns what any of them met.

        Raises:
            OSError: in all processes, naming those that could not write.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                save(self.tensors, storage_writer=self.writer, process_group=self.group)
        except CheckpointException as error:  # no Exception: it would end the thread unseen
            raise OSError(describe_failures(error)) from None


def read_parts(tensors: dict[str, Tensor], folder: Path) -> None:
    """Fill tensors by their names; every process enters.

    Raises:
        OSError: in all processes, naming those that could not read.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)))
    except CheckpointException as error:
        raise OSError(describe_failures(error)) from None


def describe_failures(error: CheckpointException) -> str:
    """Say which processes met what."""
    met = {rank: getattr(cause, "strerror", None) or str(cause) for rank, (cause, _) in error.failures.items()}
    return "; ".join(f"process {rank}: {problem}" for rank, problem in sorted(met.items()))
