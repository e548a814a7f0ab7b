#include "numbers.hpp"
EXPORT int deepseek_v3_kernels() { return LANES; }
