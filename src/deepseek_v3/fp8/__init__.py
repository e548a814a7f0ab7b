"""FP8: number formats and block-scaled products."""
