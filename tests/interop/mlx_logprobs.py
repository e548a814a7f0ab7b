"""Log-probabilities of the next token at every position, by mlx-lm on the CPU: mlx_logprobs.py FOLDER '[1, 2, 3]'."""

import json
import sys
from pathlib import Path

import mlx.core as mx
from mlx_lm.utils import load_model

mx.set_default_device(mx.cpu)
model, _ = load_model(Path(sys.argv[1]))
logits = model(mx.array([json.loads(sys.argv[2])])).astype(mx.float32)
print(json.dumps((logits - mx.logsumexp(logits, -1, keepdims=True))[0].tolist()))
