"""Run by torchrun: cut a checkpoint over all processes and write it as a training does; then one has a full disk.

place_and_save.py SOURCE RUN
"""

import resource
import signal
import sys
from pathlib import Path

import torch

from deepseek_v3.data.tokenizer import Tokenizer
from deepseek_v3.model.transformer import DeepseekV3
from deepseek_v3.parallel.mesh import Mesh, leave
from deepseek_v3.training.sharded_state import save_training
from deepseek_v3.training.training_state import checkpoint_folder
from deepseek_v3.weights.load import stream_weights
from deepseek_v3.weights.opening import read_stored_config

source, run = sys.argv[1], Path(sys.argv[2])
mesh = Mesh(1, ep=2)
with torch.device("meta"):
    model = DeepseekV3(read_stored_config(source))
model, tokenizer = mesh.place(model, stream_weights(model, source)), Tokenizer.from_file(source)


def save(step: int) -> None:
    """Write the checkpoint of a step, and wait for it."""
    pending = save_training(mesh, checkpoint_folder(run, step), model, tokenizer, {}, {"step": step}, keep=2)
    assert pending is not None
    pending.finish()


save(1)
if mesh.rank == 1:  # as on a full disk: writing fails, whatever was written before stays
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    save(2)
except OSError as error:
    sys.stdout.write(f"REFUSED on {mesh.rank}: {error}\n")
    sys.stdout.flush()
mesh.close()
leave(0)
