// Log-probabilities of the next token at every position, by llama.cpp: node llama_logprobs.mjs MODEL.gguf '[1, 2, 3]'
// One thread and an F32 cache, so that the sums are comparable to 1e-4. Prints one JSON array of arrays.
import {getLlama, LlamaLogLevel} from "node-llama-cpp";

const [path, text] = process.argv.slice(2);
const tokens = JSON.parse(text);
const llama = await getLlama({gpu: false, build: "never", skipDownload: true, progressLogs: false, logLevel: LlamaLogLevel.error});
const model = await llama.loadModel({modelPath: path, gpuLayers: 0});
const context = await model.createContext({
    contextSize: 256,
    batchSize: 256,
    threads: 1,
    flashAttention: false,
    experimentalKvCacheKeyType: "F32",
    experimentalKvCacheValueType: "F32",
});
const sequence = context.getSequence();
const options = {temperature: 1, topK: 0, topP: 1, minP: 0};
const wanted = tokens.map((token) => [token, {generateNext: {probabilities: true, options}}]);
const output = await sequence.controlledEvaluate(wanted);
const rows = output.map(({next}) => {
    const row = [];
    for (const [token, probability] of next.probabilities) row[token] = Math.log(probability);
    return row;
});
process.stdout.write(JSON.stringify(rows) + "\n", () => process.exit(0));
