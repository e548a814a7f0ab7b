// Rows of numbers: the few operations that all the rest is made of (chapters 00 and 01).
//
//   y = W x        RMSNorm: x / sqrt(mean(x^2) + eps) * weight        softmax: e^(x_i - max) / sum        SwiGLU
//
// A matrix of the checkpoint is {values, rows, columns}: [out, in], row after row. A text is an array of rows, one
// Float32Array a token. Sums run in JavaScript's own float64; what is stored is float32, as in the package.

/** Multiply part of two rows and add up: sum over i < n of a[i + from] * b[i + start]. */
export function dot(a, from, b, start, n) {
  let sum = 0;
  for (let i = 0; i < n; i++) sum += a[from + i] * b[start + i];
  return sum;
}

/** y = W x, four rows of W at a time: x is then read once for four sums. */
export function multiply({values: w, rows, columns}, x) {
  const y = new Float32Array(rows);
  let o = 0;
  for (; o + 3 < rows; o += 4) {
    const first = o * columns, second = first + columns, third = second + columns, fourth = third + columns;
    let a = 0, b = 0, c = 0, d = 0;
    for (let i = 0; i < columns; i++) {
      const v = x[i];
      a += w[first + i] * v;
      b += w[second + i] * v;
      c += w[third + i] * v;
      d += w[fourth + i] * v;
    }
    y[o] = a, y[o + 1] = b, y[o + 2] = c, y[o + 3] = d;
  }
  for (; o < rows; o++) y[o] = dot(w, o * columns, x, 0, columns);
  return y;
}

/** Apply a matrix to every row of a text. */
export const project = (weight, rows) => rows.map((x) => multiply(weight, x));

/** y = W^T x, of the rows of W from `first` on, as many as x has numbers. */
export function multiplyTurned({values: w, columns}, first, x) {
  const sums = new Float64Array(columns);
  for (let k = 0; k < x.length; k++) {
    const v = x[k], row = (first + k) * columns;
    for (let i = 0; i < columns; i++) sums[i] += v * w[row + i];
  }
  return Float32Array.from(sums);
}

/** y = x / sqrt(mean(x^2) + eps) * weight. */
export function rmsNorm(x, weight, eps) {
  const scale = 1 / Math.sqrt(dot(x, 0, x, 0, x.length) / x.length + eps);
  return x.map((v, i) => v * scale * weight[i]);
}

/** e^(x_i - max x) / sum over j < n, zeros behind. */
export function softmax(x, n = x.length) {
  const y = new Float32Array(x.length);
  let top = -Infinity, sum = 0;
  for (let i = 0; i < n; i++) top = Math.max(top, x[i]);
  for (let i = 0; i < n; i++) sum += y[i] = Math.exp(x[i] - top);
  for (let i = 0; i < n; i++) y[i] /= sum;
  return y;
}

export const sigmoid = (x) => 1 / (1 + Math.exp(-x));

/** a + b, row by row. */
export const addRows = (a, b) => a.map((row, t) => row.map((v, i) => v + b[t][i]));

/** down(silu(gate x) * up x), for every row. */
export function swiglu({gate, up, down}, rows, linear) {
  const gates = linear(gate, rows), ups = linear(up, rows);
  return linear(down, gates.map((row, t) => row.map((g, i) => g * sigmoid(g) * ups[t][i])));
}

/** Indices of the `count` largest values, the largest first; of equals the first one. */
export function best(values, count) {
  const order = Array.from(values, (_, i) => i);
  return order.sort((i, j) => values[j] - values[i] || i - j).slice(0, count);
}

/** The index of the largest value; of equals the first one. */
export function argmax(values) {
  let top = 0;
  for (let i = 1; i < values.length; i++) if (values[i] > values[top]) top = i;
  return top;
}
