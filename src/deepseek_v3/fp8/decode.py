"""E4M3 to BF16 or FP32 on the CPU without a cast: shift the codes into FP16's bits, ten times as fast.

    E4M3  s eeee mmm   (bias 7)    ->    FP16  s 0eeee mmm0000000   (bias 15)    =    value * 2^-8, subnormals too

PyTorch's own conversion from E4M3 takes one element at a time on a CPU; three integer steps on 16-bit words do the same
for 32 at once, and the factor 2^8 goes into the scale, where it is exact. Strips of blocks are shared between threads.
The result is bit for bit float32(code) * scale, rounded once. `python -m deepseek_v3.fp8.decode` measures it.

Letters: O rows (out), I columns (in).
"""

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from deepseek_v3.fp8.quantize import BLOCK, E4M3_NAN

STEP_ELEMENTS = 2**19  # decoded at a time: fewer steps cost more cache, more steps more calls
FP16_BITS = 0xBF80 - 0x10000  # the sign, and the seven bits of exponent and mantissa, as an int16
WORTH_THREADS = 2**23  # elements from which sharing the strips between threads pays for starting them
LARGEST_SCALE = 2.0**100  # beyond, 2^8 * scale might overflow


def dequantize_on_cpu(code_OI: Tensor, scale: Tensor, out_OI: Tensor) -> None:
    """float32(code) * scale, rounded to the dtype of `out_OI`, which it fills."""
    strips = len(scale)
    workers = min(torch.get_num_threads(), strips)
    scale = scale.float()
    if workers < 2 or code_OI.numel() < WORTH_THREADS:
        _decode_strips(code_OI, scale, out_OI, range(strips))
        return
    threads = torch.get_num_threads()
    # A worker's operations are too small to be shared out again among threads of their own.
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        shares = [range(i, strips, workers) for i in range(workers)]
        list(pool.map(lambda share: _decode_strips(code_OI, scale, out_OI, share), shares))
    torch.set_num_threads(threads)


@torch.no_grad()
def _decode_strips(code_OI: Tensor, scale: Tensor, out_OI: Tensor, strips: range) -> None:
    rows, columns = code_OI.shape
    step = min(max(STEP_ELEMENTS // columns, 1), BLOCK)
    byte_OI = code_OI.view(torch.int8)
    words = torch.empty((step, columns), dtype=torch.int16)  # buffers are allocated once: fresh memory is slow
    numbers, spare = torch.empty((step, columns)), torch.empty((step, columns), dtype=torch.int8)
    scales = scale.repeat_interleave(BLOCK, 1)[:, :columns]
    scales_256 = scales * 256.0
    exact = float(scale.amax()) <= LARGEST_SCALE
    for i in strips:
        for start in range(i * BLOCK, min((i + 1) * BLOCK, rows), step):
            stop = min(start + step, (i + 1) * BLOCK, rows)
            word, number = words[: stop - start], numbers[: stop - start]
            byte = byte_OI[start:stop]
            payload = torch.bitwise_and(byte, E4M3_NAN, out=spare[: stop - start])
            if exact and int(payload.amax()) < E4M3_NAN:
                word.copy_(byte).mul_(128).bitwise_and_(FP16_BITS)
                number.copy_(word.view(torch.float16)).mul_(scales_256[i])
            else:  # NaN has no place in the shifted form
                number.copy_(code_OI[start:stop]).mul_(scales[i])
            out_OI[start:stop].copy_(number)


def main(rows: int = 4096, columns: int = 7168, repeats: int = 12) -> None:
    """Print the rate of decoding to BF16 beside that of copying and of PyTorch's cast, in bytes read and written."""
    import time

    from deepseek_v3.fp8.quantize import quantize_weight

    code, scale = quantize_weight(torch.randn(rows, columns))
    out, source = torch.ones(rows, columns, dtype=torch.bfloat16), torch.ones(rows, columns, dtype=torch.bfloat16)
    target = torch.empty_like(source)
    blocks = (rows // BLOCK, BLOCK, columns // BLOCK, BLOCK)
    spread = scale.view(blocks[0], 1, blocks[2], 1)
    ways = {
        "copy": (4, lambda: target.copy_(source)),
        "decode": (3, lambda: dequantize_on_cpu(code, scale, out)),
        "cast": (3, lambda: (code.float().view(blocks) * spread).bfloat16()),
    }
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(repeats):  # in turns: a busy machine is busy for all
        for name, (_, way) in ways.items():
            started = time.perf_counter()
            way()
            best[name] = min(best[name], time.perf_counter() - started)
    rate = {name: n_bytes * rows * columns / best[name] / 1e9 for name, (n_bytes, _) in ways.items()}
    print("  ".join(f"{name} {r:.2f} GB/s ({r / rate['copy']:.2f} of copy)" for name, r in rate.items()))


if __name__ == "__main__":
    main()
