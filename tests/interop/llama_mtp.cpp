// Logits of the main model and of its MTP block at every position, by llama.cpp: llama_mtp MODEL.gguf TOKEN...
// Row k of the block reads the hidden state of token k and the token behind it, as when drafts are made. Prints JSON.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "llama-ext.h"
#include "llama.h"

static llama_context* open_context(llama_model* model, llama_context_type type) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx = params.n_batch = params.n_ubatch = 256;
    params.n_threads = params.n_threads_batch = 1;
    params.type_k = params.type_v = GGML_TYPE_F32;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    params.ctx_type = type;
    return llama_init_from_model(model, params);
}

static void place(llama_batch& batch, int row, llama_token token, int position) {
    batch.token[row] = token;
    batch.pos[row] = position;
    batch.n_seq_id[row] = 1;
    batch.seq_id[row][0] = 0;
    batch.logits[row] = 1;
    batch.n_tokens = row + 1;
}

static void print_rows(const char* name, llama_context* context, int rows, int vocab, const char* end) {
    printf("\"%s\": [", name);
    for (int row = 0; row < rows; row++) {
        const float* logits = llama_get_logits_ith(context, row);
        for (int i = 0; i < vocab; i++) printf("%s%.9g", i ? ", " : "[", logits[i]);
        printf("]%s", row + 1 < rows ? ", " : "");
    }
    printf("]%s", end);
}

int main(int count, char** words) {
    llama_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
    llama_backend_init();
    llama_model_params params = llama_model_default_params();
    params.n_gpu_layers = 0;
    params.load_mtp = true;
    llama_model* model = llama_model_load_from_file(words[1], params);
    if (!model) return 1;
    const int n = count - 2, width = llama_model_n_embd(model), vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));
    llama_context* whole = open_context(model, LLAMA_CONTEXT_TYPE_DEFAULT);
    llama_context* block = open_context(model, LLAMA_CONTEXT_TYPE_MTP);
    if (!whole || !block) return 2;
    llama_set_embeddings_nextn(whole, true, false);
    llama_set_embeddings_nextn(block, true, true);
    llama_batch batch = llama_batch_init(n, 0, 1);
    for (int i = 0; i < n; i++) place(batch, i, atoi(words[i + 2]), i);
    if (llama_decode(whole, batch)) return 3;
    llama_batch pairs = llama_batch_init(n, width, 1);
    pairs.token = (llama_token*)malloc(sizeof(llama_token) * n);
    const float* hidden = llama_get_embeddings_nextn(whole);
    memcpy(pairs.embd, hidden, sizeof(float) * width * (n - 1));
    for (int i = 0; i + 1 < n; i++) place(pairs, i, atoi(words[i + 3]), i + 1);
    if (llama_decode(block, pairs)) return 4;
    printf("{");
    print_rows("main", whole, n, vocab, ", ");
    print_rows("mtp", block, n - 1, vocab, "}\n");
    return 0;
}
