"""`make bench`: every comparison in one run; python -m benchmarks decode serving: those alone."""

from benchmarks import asking, decode, engine, llama, load, loading, numpy_model, products, serving, streaming, training

PARTS = {
    part.__name__.split(".")[-1]: part.main
    for part in (training, products, decode, engine, serving, streaming, load, llama, loading, numpy_model)
}

if __name__ == "__main__":
    for chosen in asking.read_values(__doc__, "PART", asking.one_of(list(PARTS))) or PARTS:
        PARTS[chosen]()
