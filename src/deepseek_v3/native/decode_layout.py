"""The structures of decode.hpp and rows.hpp as ctypes: the same fields in the same order, eight bytes each."""

import ctypes

POINTER, INTEGER, FRACTION = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double


class WeightAddress(ctypes.Structure):
    """`Weight` of rows.hpp: without a scale numbers, else FP8 codes."""

    _fields_ = (("data", POINTER), ("scale", POINTER))


def fields(**kinds: str) -> list[tuple[str, type]]:
    """Lay out a structure: names by the kind that they are of; keyword order is the order in memory."""
    kind_of = {"pointers": POINTER, "weights": WeightAddress, "integers": INTEGER, "fractions": FRACTION}
    return [(name, kind_of[kind.rstrip("_")]) for kind, names in kinds.items() for name in names.split()]


class LayerAddresses(ctypes.Structure):
    """`Layer` of decode.hpp."""

    _fields_ = fields(
        pointers="input_norm query_norm latent_norm post_norm router bias",
        weights="query_down query_up latent_down key_value_up out expert_gate_up expert_down gate up down",
        integers="dense_width wide_router",
    )


class ModelSizes(ctypes.Structure):
    """`Model` of decode.hpp."""

    _fields_ = fields(
        pointers="embedding",
        integers="D V H K R U C Q E A F groups kept_groups dense_width bfloat16 sigmoid normalise",
        fractions="eps latent_eps softmax_scale routed_scale",
    )


class StackAddresses(ctypes.Structure):
    """`Stack` of decode.hpp."""

    _fields_ = fields(
        pointers="layers", integers="count", pointers_="norm embedding_norm hidden_norm join", weights="head"
    )


class CallAddresses(ctypes.Structure):
    """`Call` of decode.hpp."""

    _fields_ = fields(
        pointers="tokens lengths counts tables wanted below cache hidden logits cos sin choices",
        integers="N B M blocks block_size bfloat16_cache threads foreign",
    )
