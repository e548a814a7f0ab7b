// llama.cpp's own Q8_0 of a model in F32: llama_eight_bits FROM.gguf TO.gguf LIBRARIES.
#include "ggml-backend.h"
#include "llama.h"

int main(int count, char** words) {
    if (count != 4) return 64;
    llama_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
    ggml_backend_load_all_from_path(words[3]);
    llama_backend_init();
    llama_model_quantize_params how = llama_model_quantize_default_params();
    how.ftype = LLAMA_FTYPE_MOSTLY_Q8_0;
    how.nthread = 1;
    return llama_model_quantize(words[1], words[2], &how) ? 1 : 0;
}
