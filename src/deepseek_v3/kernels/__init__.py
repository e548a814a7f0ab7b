"""Triton kernels for GPUs with FP8 units. Every file but this one imports Triton."""
