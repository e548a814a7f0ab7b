"""Triton's kernels compiled for an H100 without one: what it is asked to do, and what that takes: `make test-kernels`.

The FP8 units' own instruction (`wgmma` on E4M3) and no older one, whose sums are others; no number that leaves the
registers; no more shared memory than there is; conversions that saturate.
"""

import os
import re
import subprocess
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the compiler wants a process of its own"),
]
SHARED_MEMORY = 227 * 1024
E4M3, BF16, FP32, INT = "*fp8e4nv", "*bf16", "*fp32", "i32"
PRODUCT = {
    "a": E4M3, "b": E4M3, "c": BF16, "a_scale": FP32, "b_scale": FP32, "rows": INT, "columns": INT, "k_width": INT,
    "a_stride": INT, "b_stride": INT, "c_stride": INT, "a_scale_across": INT, "a_scale_along": INT,
    "b_scale_across": INT, "b_scale_along": INT,
}  # fmt: skip
LISTS = dict.fromkeys(("block_expert", "block_row", "block_end"), "*i32")
EXPERTS = {**PRODUCT, **LISTS, "b_expert": INT, "b_scale_expert": INT}
QUANTIZER = {"x": BF16, "code": E4M3, "scale": FP32, "rows": INT, "columns": INT, "floor": "fp32"}
ATTENTION = {
    "query": BF16, "cache": BF16, "tables": "*i64", "lengths": "*i64", "part_out": FP32, "part_log": FP32,
    "scale": "fp32", "heads": INT, "table_stride": INT, "block_size": INT,
}  # fmt: skip
SCALES = {"a_scale_across", "a_scale_along", "b_scale_across", "b_scale_along", "b_scale_expert"}
RAGGED = {"rows", "table_stride", "heads", "block_size", *SCALES}  # whole numbers that are no multiples of 16


def compile_kernel(kernel, types: dict[str, str], constants: dict, warps: int, stages: int):
    """The kernel for sm_90a; widths and addresses are multiples of 16, as tensors of any real size have them."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types[name] for name in names}
    even = [
        i for i, name in enumerate(names) if name not in constants and name not in RAGGED and signature[name] != "fp32"
    ]
    attributes = {(i,): [["tt.divisibility", 16]] for i in even}
    source = ASTSource(
        kernel, signature, {(names.index(name),): value for name, value in constants.items()}, attributes
    )
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps, "num_stages": stages})


def spilled_bytes(compiled, folder: Path) -> int:
    """Local memory of a program: what does not fit into its registers."""
    import triton

    binary = folder / "kernel.cubin"
    binary.write_bytes(compiled.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    said = subprocess.run([tool, "--dump-resource-usage", binary], check=True, capture_output=True, text=True).stdout
    return sum(map(int, re.findall(r"(?:STACK|LOCAL):(\d+)", said)))


@pytest.mark.parametrize(("height", "block", "warps"), [(128, (64, 128), 4), (128, (128, 128), 8), (1, (64, 128), 4)])
def test_a_product_runs_on_the_fp8_units_within_registers_and_memory(height, block, warps, tmp_path):
    pytest.importorskip("triton")
    from deepseek_v3.kernels.multiply import multiply_kernel

    constants = {"HIGH": block[0], "WIDE": block[1], "B_HEIGHT": height, "PROMOTE": True, "BAND": 8, "a_scale_along": 1}
    check_product(compile_kernel(multiply_kernel, PRODUCT, constants, warps, 4), tmp_path)


def test_products_of_experts_run_on_the_fp8_units_within_registers_and_memory(tmp_path):
    pytest.importorskip("triton")
    from deepseek_v3.kernels.multiply import multiply_experts_kernel

    constants = {"HIGH": 64, "WIDE": 128, "B_HEIGHT": 128, "a_scale_along": 1}
    check_product(compile_kernel(multiply_experts_kernel, EXPERTS, constants, 4, 4), tmp_path)


def check_product(compiled, folder: Path) -> None:
    text = compiled.asm["ptx"]
    assert ".target sm_90a" in text
    assert re.search(r"wgmma\.mma_async\S*\.f32\.e4m3\.e4m3", text)
    assert "mma.sync" not in text  # keeps 25 bits, not 14, and is slower
    assert compiled.metadata.shared <= SHARED_MEMORY
    assert spilled_bytes(compiled, folder) == 0


@pytest.mark.parametrize("ue8m0", [False, True])
def test_quantizers_saturate_and_stay_in_registers(ue8m0, tmp_path):
    pytest.importorskip("triton")
    from deepseek_v3.kernels.quantize import quantize_both_kernel, quantize_rows_kernel

    both = {**QUANTIZER, "turned": E4M3, "turned_scale": FP32, "turned_stride": INT}
    for kernel, types, constants, warps in (
        (quantize_rows_kernel, QUANTIZER, {"UE8M0": ue8m0, "HIGH": 16}, 4),
        (quantize_both_kernel, both, {"UE8M0": ue8m0}, 8),
    ):
        compiled = compile_kernel(kernel, types, constants, warps, 2)
        text = compiled.asm["ptx"]
        assert "cvt.rn.satfinite.e4m3x2" in text
        assert "div.rn.f32" in text  # rounded to nearest, as in the chapter; `div.full` is not
        assert compiled.metadata.shared <= SHARED_MEMORY
        assert spilled_bytes(compiled, tmp_path) == 0


@pytest.mark.parametrize(("heads", "tokens", "warps"), [(64, 32, 8), (16, 32, 4)])
def test_attention_of_a_decoding_step_fits_at_the_released_widths(heads, tokens, warps, tmp_path):
    pytest.importorskip("triton")
    from deepseek_v3.kernels.latent_attention import attend_part_kernel

    constants = {"HEADS": heads, "TOKENS": tokens, "C": 512, "R": 64, "PARTS": 8}
    compiled = compile_kernel(attend_part_kernel, ATTENTION, constants, warps, 2)
    assert re.search(r"(wgmma\.mma_async|mma\.sync)\S*\.bf16\.bf16", compiled.asm["ptx"])
    assert compiled.metadata.shared <= SHARED_MEMORY
    assert spilled_bytes(compiled, tmp_path) == 0
