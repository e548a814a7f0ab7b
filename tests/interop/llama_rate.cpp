// Seconds of every greedy decoding step of many rows by llama.cpp:
// llama_rate MODEL.gguf ROWS PROMPT NEW THREADS FLASH LIBRARIES, where FLASH is 0 or 1.
// Every row reads a prompt of PROMPT tokens of its own, then NEW tokens are chosen, one a row and step. Prints JSON.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "ggml-backend.h"
#include "llama.h"

static void place(llama_batch& batch, llama_token token, int position, int row, bool wanted) {
    const int i = batch.n_tokens++;
    batch.token[i] = token;
    batch.pos[i] = position;
    batch.n_seq_id[i] = 1;
    batch.seq_id[i][0] = row;
    batch.logits[i] = wanted;
}

static llama_token likeliest(const float* logits, int vocab) {
    int best = 0;
    for (int i = 1; i < vocab; i++)
        if (logits[i] > logits[best]) best = i;
    return best;
}

int main(int count, char** words) {
    if (count != 8) return 64;
    const int rows = atoi(words[2]), prompt = atoi(words[3]), wanted = atoi(words[4]), threads = atoi(words[5]);
    llama_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
    ggml_backend_load_all_from_path(words[7]);  // the form of the kernels that this processor runs fastest
    llama_backend_init();
    llama_model_params how = llama_model_default_params();
    how.n_gpu_layers = 0;
    llama_model* model = llama_model_load_from_file(words[1], how);
    if (!model) return 1;
    llama_context_params params = llama_context_default_params();
    params.n_ctx = rows * (prompt + wanted);
    params.n_batch = params.n_ubatch = 512;
    params.n_seq_max = rows;
    params.flash_attn_type = atoi(words[6]) ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
    params.n_threads = params.n_threads_batch = threads;
    llama_context* context = llama_init_from_model(model, params);
    if (!context) return 2;
    const int vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));
    llama_batch batch = llama_batch_init(prompt > rows ? prompt : rows, 0, 1);
    std::vector<llama_token> newest(rows);
    for (int row = 0; row < rows; row++) {
        batch.n_tokens = 0;
        for (int i = 0; i < prompt; i++) place(batch, (row * 131 + i * 17 + 3) % vocab, i, row, i + 1 == prompt);
        if (llama_decode(context, batch)) return 3;
        newest[row] = likeliest(llama_get_logits_ith(context, prompt - 1), vocab);
    }
    printf("[");
    for (int step = 0; step + 1 < wanted; step++) {
        const auto start = std::chrono::steady_clock::now();
        batch.n_tokens = 0;
        for (int row = 0; row < rows; row++) place(batch, newest[row], prompt + step, row, true);
        if (llama_decode(context, batch)) return 4;
        for (int row = 0; row < rows; row++) newest[row] = likeliest(llama_get_logits_ith(context, row), vocab);
        printf("%s%.9f", step ? ", " : "", std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
    printf("]\n");
    return 0;
}
