"""Side-by-side timings against what a user would pick instead, as ratios of one run: `make bench`."""
