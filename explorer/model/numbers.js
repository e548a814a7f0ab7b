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

/** y = W x. */
export const multiply = (weight, x) => multiplyRows(weight, 0, weight.rows, x);

/** y = W x of `count` rows of W from `first` on, four at a time: x is then read once for four sums. */
export function multiplyRows({values: w, columns}, first, count, x) {
  const y = new Float32Array(count);
  let o = 0, at = first * columns;
  for (; o + 3 < count; o += 4, at += 4 * columns) {
    const second = at + columns, third = second + columns, fourth = third + columns;
    let a = 0, b = 0, c = 0, d = 0;
    for (let i = 0; i < columns; i++) {
      const v = x[i];
      a += w[at + i] * v;
      b += w[second + i] * v;
      c += w[third + i] * v;
      d += w[fourth + i] * v;
    }
    y[o] = a, y[o + 1] = b, y[o + 2] = c, y[o + 3] = d;
  }
  for (; o < count; o++, at += columns) y[o] = dot(w, at, x, 0, columns);
  return y;
}

/** W x and W z, of two rows of a text: what is read of W then serves twice. */
function multiplyPair({values: w, rows, columns}, x, z) {
  const y = new Float32Array(rows), u = new Float32Array(rows);
  let o = 0, at = 0;
  for (; o + 3 < rows; o += 4, at += 4 * columns) {
    const second = at + columns, third = second + columns, fourth = third + columns;
    let ax = 0, bx = 0, cx = 0, dx = 0, az = 0, bz = 0, cz = 0, dz = 0;
    for (let i = 0; i < columns; i++) {
      const v = x[i], t = z[i], a = w[at + i], b = w[second + i], c = w[third + i], d = w[fourth + i];
      ax += a * v, bx += b * v, cx += c * v, dx += d * v;
      az += a * t, bz += b * t, cz += c * t, dz += d * t;
    }
    y[o] = ax, y[o + 1] = bx, y[o + 2] = cx, y[o + 3] = dx;
    u[o] = az, u[o + 1] = bz, u[o + 2] = cz, u[o + 3] = dz;
  }
  for (; o < rows; o++, at += columns) [y[o], u[o]] = [dot(w, at, x, 0, columns), dot(w, at, z, 0, columns)];
  return [y, u];
}

/** Apply a matrix to every row of a text, two rows at a time. */
export function project(weight, rows) {
  const out = [];
  for (let t = 0; t + 1 < rows.length; t += 2) out.push(...multiplyPair(weight, rows[t], rows[t + 1]));
  if (rows.length % 2) out.push(multiply(weight, rows.at(-1)));
  return out;
}

/** y = W^T x, of the rows of W from `first` on, as many as x has numbers. */
export function multiplyTurned({values: w, columns}, first, x) {
  const sums = new Float64Array(columns);
  for (let k = 0; k < x.length; k++) {
    const v = x[k], row = (first + k) * columns;
    for (let i = 0; i < columns; i++) sums[i] += v * w[row + i];
  }
  return new Float32Array(sums);
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
