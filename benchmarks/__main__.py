"""`make bench`: every comparison in one run."""

from benchmarks import decode, loading, numpy_model, training

if __name__ == "__main__":
    training.main()
    decode.main()
    loading.main()
    numpy_model.main()
