"""`make bench`: every comparison in one run."""

from benchmarks import decode, engine, loading, numpy_model, products, serving, training

if __name__ == "__main__":
    training.main()
    products.main()
    decode.main()
    engine.main()
    serving.main()
    loading.main()
    numpy_model.main()
