"""DeepSeek-V3 in PyTorch."""
