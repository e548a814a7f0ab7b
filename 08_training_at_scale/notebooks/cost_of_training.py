# %% [markdown]
# # The cost of training
#
# **The question.** DeepSeek-V3 cost 5.576 million dollars: a number that went round the world. Where does it come from,
# and could it have come out differently?
#
# A builder can tell you what a wall costs in three ways. He *counts* the bricks: that is exact, and says nothing of the
# hours. He looks up what his last wall took and divides, he *calibrates*: that fits his last wall by construction. Or
# he takes both, *predicts* what another wall will take, and can be wrong. Only the third way can be wrong, so only the
# third can be right. For each number below we shall say which of the three it is.
#
# Words: an *operation* (FLOP) is one multiplication or one addition of numbers, a GFLOP is $10^9$ of them; a *rate* is
# operations a second (TFLOP/s: $10^{12}$); a *GPU hour* is one GPU for one hour; *MFU* is the share of the GPU's peak
# rate that went into operations which the model needs.

# %%
from cost_of_training import TABLE_1, ModelSizes, active_parameters, flops_per_token, score_flops, total_parameters

from utils.drawings_07 import plot_bars, plot_curves

# %% [markdown]
# ## Numbers to follow with a pencil
#
# Training on one token costs **6 operations a weight**: forward a multiplication and an addition; backward the same
# again for the gradient of the inputs, and again for that of the weights. So with 36.6 billion weights that a token
# meets: $6 \cdot 36.6 = 220$ billion. Attention's scores have no weights, they are counted apart.
#
# At 180,000 GPU hours a trillion tokens (the report's sentence), a GPU second holds $10^{12} / (180{,}000 \cdot 3600) =
# 1543$ tokens. 2,048 GPUs do 3.16 million tokens a second, a trillion in 3.7 days.
#
# ## Build it: counting bricks
#
# Letters: $D$ is the width of the model, $F$ that of an expert, $K$, $R$, $U$ the widths of a head's content key,
# rotary key and value (chapter 02).
#
# Which weights does a token *meet*? All matrices of attention, the router, 8 of 256 experts and the shared one, the
# head. Not the other 248 experts, and not the embedding, which is a row in a table.


# %%
def naive_count(D=7168, F=2048, layers=61):
    """The matrices of one token's way, written out for V3."""
    attention = D * 1536 + 1536 * 128 * (128 + 64)  # queries, down and up
    attention += D * (512 + 64) + 512 * 128 * (128 + 128)  # latent and rotary key; keys and values from it
    attention += 128 * 128 * D  # heads joined
    expert = 3 * D * F
    moe = (8 + 1) * expert + 256 * D
    dense = 3 * D * 18432
    return layers * attention + 58 * moe + 3 * dense + 129280 * D


# %%
s = ModelSizes()
parts = active_parameters(s)
assert naive_count() == sum(parts.values()) - parts["norms and biases"]
print(
    f"a token meets {sum(parts.values()):,} of {total_parameters(s):,} weights: {naive_count() / 1e9:.2f} B in matrices"
)


# %% [markdown]
# Scores: a token at place $t$ looks at $t$ keys. For each key, head and layer: a product of width $K + R$ for the
# score, and $U$ for its part of the mean; two operations each. On average over a sequence of $T$, half of $T$ keys.


# %%
def naive_scores(T, layers=61, heads=128):
    """Row by row, forward only, mean over the rows."""
    total = 0
    for t in range(1, T + 1):
        total += layers * heads * t * 2 * ((128 + 64) + 128)
    return total / T


T = 4096
assert abs(naive_scores(T) / score_flops(s, T) - 1) < 1.01 / T  # T / 2 for (T + 1) / 2
flops = flops_per_token(s, T)
print(f"weights {6 * sum(parts.values()) / 1e9:.1f}, scores {3 * score_flops(s, T) / 1e9:.1f}: {flops / 1e9:.1f} GFLOP")

# %%
shares = {name: round(6 * n / 1e9, 1) for name, n in parts.items() if n > 2e8} | {
    "scores at 4,096": round(3 * score_flops(s, T) / 1e9, 1)
}
kinds = {"attention": "content", "scores at 4,096": "content", "experts": "routed"}
experts, attending = shares["experts"], shares["attention"] + shares["scores at 4,096"]
parted = f"experts {1e9 * experts / flops:.0%}, attention with its scores {1e9 * attending / flops:.0%}"
title = f"Of {flops / 1e9:.1f} GFLOP a token: {parted}"
colors = [kinds.get(name, "ink") for name in shares]
plot_bars(list(shares), list(shares.values()), colors, title, "GFLOP of training, a token")

# %% [markdown]
# If the whole model were one dense network, every token would meet all 671 billion weights: 16 times as many.

# %%
dense = 6 * total_parameters(s) + 3 * score_flops(s, T)
print(f"dense of the same size: {dense / 1e9:,.0f} GFLOP a token, {dense / flops:.0f} times as many")

# %%
lengths = [2**k for k in range(10, 18)]
curves = {
    "weights and scores": (lengths, [flops_per_token(s, n) / 1e9 for n in lengths]),
    "weights": (lengths, [6 * sum(parts.values()) / 1e9 for _ in lengths]),
}
share = 3 * score_flops(s, 2**17) / flops_per_token(s, 2**17)
title = f"Scores are {3 * score_flops(s, T) / flops:.0%} at 4K and {share:.0%} at 128K"
plot_curves(curves, ["content", "ink"], title, "length of the sequence, tokens", "GFLOP a token")

# %% [markdown]
# ## The derivation: calibrating, or what the hours imply
#
# 1. Hours are operations over rate: $h = \text{flops} \cdot \text{tokens} / (\text{rate} \cdot 3600)$.
# 2. The report gives $h$ for a trillion tokens: 180K. We counted the operations. So the rate follows.
# 3. Whoever puts this rate back in gets the 180K out. That is no confirmation of anything.
#
# (The MTP module's 10 GFLOP are left out, as in the published MFU: they train, but the model can do without.)

# %%
from cost_of_training import HOURS_PER_TRILLION, PEAK_FLOPS_S, dollars, rate_from_hours

rate = rate_from_hours(flops * 1e12, HOURS_PER_TRILLION)
print(f"{rate / 1e12:.1f} TFLOP/s, {rate / PEAK_FLOPS_S:.1%} of the BF16 peak of an H800")
for phase, hours in TABLE_1.items():
    print(f"{phase:<18} {hours / 1e3:6,.0f}K hours   ${dollars(hours) / 1e6:.3f} M")
print(f"{'together':<18} {sum(TABLE_1.values()) / 1e3:6,.0f}K hours   ${dollars(sum(TABLE_1.values())) / 1e6:.3f} M")
print(f"180K times 14.8: {HOURS_PER_TRILLION * 14.8 / 1e3:,.0f}K: the first row of Table 1 is this product")

# %% [markdown]
# Two dollars an hour is the report's own assumption. Earlier research and trials are not in it, as the report says; nor
# are people and buildings.
#
# ## Predicting: what could have come out wrong
#
# **A step.** 15,360 sequences of 4,096 tokens on 2,048 GPUs, at the calibrated rate. Another paper of the same authors
# (2505.09343) measured it.

# %%
from cost_of_training import GPUS, SEQUENCES, StepParts, calibrate_chunks, predict_extension, predict_step

measured = StepParts()
seconds = SEQUENCES * T * flops / rate / GPUS
apart = abs(seconds / measured.step - 1)
print(f"predicted {seconds:.2f} s, measured {measured.step} s: two publications agree to {apart:.1%}")

# %% [markdown]
# **A step from its pieces.** (A *chunk* is a rank's work on one micro-batch: its stage's forward or backward.) The same
# paper says how many seconds of a step went to forwards alone (1.13), backwards
# alone (1.99), weights' parts alone (0.48), pairs (13.95). Divide by how many of each a rank does, and simulate
# DualPipe with 16 stages and 120 micro-batches: the bubble is then a prediction.

# %%
times = calibrate_chunks(measured, 16, 120)
print(f"a chunk: F {times.forward * 1e3:.0f}, B {times.backward * 1e3:.0f}, W {times.weights * 1e3:.0f} ms", end="")
print(f", a pair {times.pair * 1e3:.0f} instead of {(times.forward + times.backward) * 1e3:.0f} ms")
end, bubble = predict_step(times, 16, 120, measured.optimizer)
print(f"step {end:.2f} s for {measured.step}, bubble {bubble:.2f} s for {measured.bubble}")

# %%
names = ["bubble, predicted", "bubble, measured", "step, predicted", "step, measured"]
values = [round(v, 2) for v in (bubble, measured.bubble, end, measured.step)]
title = f"Predicted {1 - end / measured.step:.0%} short: {measured.bubble / bubble:.1f} times the waiting was measured"
plot_bars(names, values, ["content", "ink", "content", "ink"], title, "seconds")

# %% [markdown]
# What the simulation does not know: stages that are not alike (the head and the MTP module on one of them), GPUs that
# are not alike, the network of the day. Micro-batches of one sequence are our assumption as well.
#
# **The context extension.** 1,000 steps at 32K and 1,000 at 128K, as many tokens a step as before. Table 1 says 119K
# hours.

# %%
extension = predict_extension(s, rate)
assert 1.4 < TABLE_1["context extension"] / extension < 1.8  # it fails, by this much
names = ["predicted at the rate of 4K", "Table 1"]
values = [round(extension / 1e3), TABLE_1["context extension"] / 1e3]
title = f"Long contexts cost {TABLE_1['context extension'] / extension:.1f} times what their operations say"
plot_bars(names, values, ["content", "ink"], title, "thousand GPU hours")

# %% [markdown]
# That fails, and by how much is the information: at 128K the rate was not that of 4K, or the phase holds more than
# 2,000 steps. The report does not say which.
#
# So which of the three is 5.576 million? The hours of pre-training are what the wall took for a trillion tokens, times
# 14.8; the dollars are hours times two, an assumed rent. Nothing in it was predicted, so nothing could have come out
# wrong. And it is the last wall only: the report says itself that earlier research and trials are not in it.
#
# ## Change this, predict, run
#
# Experts of a quarter of the width, four times as many of them, four times as many active. Chapter 03 says that the
# bill is the same. Is it? Predict operations and total weights, then count.
#
# <details><summary>Afterwards</summary>
#
# Nearly: 252.4 GFLOP for 250.5, and 671.3 billion weights for 671.0. Experts cost the same, to the last product. The
# *router* has four times as many rows, and every token reads all of it, in 58 layers. With 256 experts that is a
# quarter of a percent of the bill; whoever cuts experts ever finer ends up paying for the reception.
#
# </details>

# %%
fine = ModelSizes(F=512, A=32, E=1024, n_shared=4)
print(f"{flops_per_token(fine, T) / 1e9:.1f} GFLOP for {flops / 1e9:.1f},", end=" ")
print(f"{total_parameters(fine) / 1e9:.1f} B weights for {total_parameters(s) / 1e9:.1f}: only the routers grew")

# %% [markdown]
# ## What you can now do
#
# Count the operations of any config; turn hours into a rate and back, and know that this proves nothing; name the part
# of a cost estimate that could have come out wrong. The model is trained. How is it served? `deployment`.
#
# ## Exercises
#
# Graded: `training_hours` (`make check CH=08`). By thought alone:
#
# **1.** How many tokens does the whole cluster see in a day?
#
# <details><summary>Solution</summary>
#
# $2048 \cdot 24 / 180{,}000$ trillion $= 273$ billion. The other paper has 272.8.
#
# </details>
#
# **2.** Counted without the mask, MFU is 43.8 % instead of 39.1 %. Which is right?
#
# <details><summary>Solution</summary>
#
# Both, of different things: the second counts the operations that the model needs; the first counts the masked half as
# well, which a good kernel does not compute. Compare only like with like.
#
# </details>
#
# **3.** What would the pre-training cost at the FP8 peak (twice BF16) and the same MFU?
#
# <details><summary>Solution</summary>
#
# Half, but V3 *is* trained in FP8: its 39 % of the BF16 peak are 20 % of the FP8 peak. The peak one divides by is a
# convention.
#
# </details>
