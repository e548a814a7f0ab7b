// Rotary position embedding on interleaved pairs, with YaRN (chapter 02).
//
//   (x_2i, x_2i+1)  <-  turned by the angle  position * theta_i        theta_i = base^(-2i / R)
//
// YaRN slows the pairs that turn less than beta_slow times within the trained length by `factor`, leaves those that
// turn more than beta_fast times, blends in between, and sharpens the softmax of the whole score by mscale^2.

const mscale = (factor, weight) => (factor > 1 ? 0.1 * weight * Math.log(factor) + 1 : 1);

/** Angle per position of every pair, R / 2 numbers. */
export function ropeFrequencies(config) {
  const R = config.qk_rope_head_dim, base = config.rope_theta, yarn = config.rope_scaling;
  const plain = Array.from({length: R / 2}, (_, i) => base ** ((-2 * i) / R));
  if (!yarn) return plain;
  const pairThatTurns = (times) =>
    (R * Math.log(yarn.original_max_position_embeddings / (times * 2 * Math.PI))) / (2 * Math.log(base));
  let low = pairThatTurns(yarn.beta_fast || 32), high = pairThatTurns(yarn.beta_slow || 1);
  if (yarn.truncate ?? true) [low, high] = [Math.floor(low), Math.ceil(high)];
  [low, high] = [Math.max(low, 0), Math.min(high, R - 1)];
  const span = high === low ? 0.001 : high - low;
  return plain.map((theta, i) => {
    const slowed = Math.min(Math.max((i - low) / span, 0), 1);
    return (theta / yarn.factor) * slowed + theta * (1 - slowed);
  });
}

/** What multiplies cos and sin under YaRN: 1 for every released model, whose two mscales are equal. */
export function ropeMagnitude({rope_scaling: yarn}) {
  if (!yarn) return 1;
  if (yarn.attention_factor != null) return yarn.attention_factor;
  if (!yarn.mscale || !yarn.mscale_all_dim) return mscale(yarn.factor, 1);
  return mscale(yarn.factor, yarn.mscale) / mscale(yarn.factor, yarn.mscale_all_dim);
}

/** The one scale of content and rope score together: (K + R)^-1/2, times mscale^2 under YaRN. */
export function softmaxScale(config) {
  const scale = (config.qk_nope_head_dim + config.qk_rope_head_dim) ** -0.5, yarn = config.rope_scaling;
  return yarn?.mscale_all_dim ? scale * mscale(yarn.factor, yarn.mscale_all_dim) ** 2 : scale;
}

/** Turn every pair of x by its angle at a position; x is left as it is. */
export function rotate(x, position, {frequencies, magnitude}) {
  const y = new Float32Array(x.length);
  frequencies.forEach((theta, i) => {
    const cos = Math.cos(position * theta) * magnitude, sin = Math.sin(position * theta) * magnitude;
    y[2 * i] = x[2 * i] * cos - x[2 * i + 1] * sin;
    y[2 * i + 1] = x[2 * i] * sin + x[2 * i + 1] * cos;
  });
  return y;
}
