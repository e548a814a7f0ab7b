"""`make bench`: every comparison in one run."""

from benchmarks import decode, training

if __name__ == "__main__":
    training.main()
    decode.main()
