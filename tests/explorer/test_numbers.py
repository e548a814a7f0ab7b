"""The explorer's FP8 against chapter 05 and ml_dtypes, code by code, and its sizes against the package's."""

import base64

import ml_dtypes
import numpy as np
import pytest
from fine_grained_quantization import dequantize, quantize
from float_formats import E4M3, E5M2

from deepseek_v3.config import ModelConfig, preset_names
from deepseek_v3.sizing import (
    cache_values,
    count_parameters,
    decoding_flops,
)

FORMATS = {"e4m3": (E4M3, ml_dtypes.float8_e4m3fn), "e5m2": (E5M2, ml_dtypes.float8_e5m2)}
TILES = {"tile": (1, 128), "block": (128, 128), "tensor": (197, 311)}
CONTEXTS = [0, 4096, 131072]


def encode_text(x: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(x, np.float32).tobytes()).decode()


def numbers() -> np.ndarray:
    """Every value of both formats, every middle between two of them, their float32 neighbours, and any other number."""
    rng = np.random.default_rng(5)
    exact = np.concatenate(
        [np.arange(256, dtype=np.uint8).view(kind).astype(np.float32) for _, kind in FORMATS.values()]
    )
    exact = np.unique(exact[np.isfinite(exact)])
    middles = ((exact[1:].astype(np.float64) + exact[:-1]) / 2).astype(np.float32)
    near = np.concatenate([exact, middles])
    drawn = rng.integers(0, 2**32, 20000, dtype=np.uint64).astype(np.uint32).view(np.float32)
    beside = [np.nextafter(near, np.float32(side)) for side in (-np.inf, np.inf)]
    odd = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 448, 449, 464, 1e30, 2**-10, -(2**-17)], np.float32)
    return np.concatenate([near, *beside, drawn, (rng.normal(0, 3, 20000)).astype(np.float32), odd])


def matrices() -> list[tuple[dict, np.ndarray]]:
    """Matrices of ragged size, with rows and columns of very different weight, a zero tile, and an outlier."""
    rng = np.random.default_rng(7)
    x = rng.normal(0, 1, (197, 311)) * np.exp(3 * rng.normal(0, 1, (197, 1))) * np.exp(rng.normal(0, 1, (1, 311)))
    x[3, :128], x[11, 200] = 0, 1e5
    x = x.astype(np.float32)
    return [
        ({"format": name, "granularity": grain, "powerOfTwo": power}, x)
        for name in FORMATS for grain in TILES for power in (False, True)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def seen(run_node):
    tasks = [{**how, "rows": len(x), "columns": x.shape[1], "data": encode_text(x)} for how, x in matrices()]
    configs = [
        {"config": ModelConfig.preset(name).to_dict(), "options": {"context": context, "cacheBytes": 2}}
        for name in preset_names() for context in CONTEXTS
    ]  # fmt: skip
    return run_node("quantize.mjs", {"numbers": encode_text(numbers()), "matrices": tasks, "configs": configs})


def test_codes_of_single_numbers_are_those_of_ml_dtypes(seen, unpack):
    x = numbers()
    for name, (fmt, kind) in FORMATS.items():
        codes = unpack(seen["codes"][name])
        clamped = np.where(np.isnan(x), x, np.clip(x, -fmt.largest, fmt.largest)).astype(np.float32)
        with np.errstate(invalid="ignore"):  # a signalling NaN turns quiet
            theirs = clamped.astype(kind).view(np.uint8)
        number = ~np.isnan(x)
        assert np.array_equal(codes[number], theirs[number])
        assert np.isnan(codes[~number].view(kind).astype(np.float32)).all()
        every = np.arange(256, dtype=np.uint8).view(kind).astype(np.float32)
        np.testing.assert_array_equal(unpack(seen["values"][name]), every)


def test_codes_scales_and_values_of_matrices_are_those_of_chapter_05(seen, unpack):
    for (how, x), made in zip(matrices(), seen["matrices"]):
        fmt = FORMATS[how["format"]][0]
        q = quantize(x, TILES[how["granularity"]], fmt, power_of_two=how["powerOfTwo"])
        assert np.array_equal(unpack(made["codes"]).reshape(x.shape), q.codes), how
        assert np.array_equal(unpack(made["scales"]), q.scales.ravel()), how
        assert np.array_equal(unpack(made["values"]).reshape(x.shape), dequantize(q)), how


def test_sizes_are_the_packages_up_to_671_b(seen):
    asked = [(name, context) for name in preset_names() for context in CONTEXTS]
    for (name, context), size in zip(asked, seen["sizes"]):
        config = ModelConfig.preset(name)
        count, cache = count_parameters(config), cache_values(config)
        layers = config.num_hidden_layers
        assert (size["parameters"], size["active"], size["mtp"]) == (count.main, count.active, count.mtp)
        assert sum(size["parts"].values()) == count.main
        assert size["flopsPerToken"] == decoding_flops(config, context)
        assert size["cacheBytesPerToken"] == 2 * layers * cache["MLA"]
        assert size["mhaBytesPerToken"] == 2 * layers * cache["MHA"]
        assert size["mqaBytesPerToken"] == 2 * layers * cache["MQA"]
        if "GQA, 8 groups" in cache:
            known = config.num_attention_heads >= 16
            assert not known or size["gqaBytesPerToken"] == 2 * layers * cache["GQA, 8 groups"]


def test_the_sizes_of_deepseek_v3_are_those_of_its_report(seen):
    size = seen["sizes"][preset_names().index("v3-671b") * len(CONTEXTS)]
    assert (size["parameters"], size["active"]) == (671_026_419_200, 37_552_297_472)  # counted from the released shapes
    assert size["cacheBytesPerToken"] == 70_272  # arXiv:2505.09343, table 1: 70.272 KB
