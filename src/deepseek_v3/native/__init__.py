"""The package's own CPU kernels in C++: compiled once by the machine's compiler, for that machine's processor."""
