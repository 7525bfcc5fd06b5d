// Digits to try, as if somebody had drawn them: of each its strokes, of each stroke some points that a smooth line goes through.

const POINTS = [
  [[[0.56, 0.13], [0.4, 0.2], [0.3, 0.5], [0.38, 0.8], [0.54, 0.88], [0.68, 0.76], [0.73, 0.46], [0.66, 0.2], [0.53, 0.12]]],
  [[[0.55, 0.1], [0.53, 0.5], [0.49, 0.9]]],
  [[[0.29, 0.29], [0.38, 0.15], [0.54, 0.11], [0.68, 0.22], [0.64, 0.44], [0.46, 0.67], [0.27, 0.85]], [[0.27, 0.85], [0.5, 0.85], [0.76, 0.84]]],
  [[[0.28, 0.19], [0.45, 0.1], [0.65, 0.17], [0.65, 0.35], [0.45, 0.46]], [[0.45, 0.46], [0.67, 0.55], [0.71, 0.74], [0.52, 0.89], [0.26, 0.82]]],
  [[[0.35, 0.11], [0.28, 0.34], [0.25, 0.55]], [[0.25, 0.55], [0.5, 0.54], [0.78, 0.52]], [[0.66, 0.13], [0.62, 0.5], [0.59, 0.91]]],
  [[[0.71, 0.12], [0.53, 0.12], [0.36, 0.14]], [[0.36, 0.14], [0.34, 0.28], [0.31, 0.43]], [[0.31, 0.43], [0.5, 0.4], [0.69, 0.53], [0.69, 0.74], [0.51, 0.89], [0.27, 0.83]]],
  [[[0.62, 0.1], [0.43, 0.28], [0.31, 0.55], [0.33, 0.8], [0.5, 0.89], [0.67, 0.78], [0.64, 0.59], [0.47, 0.54], [0.33, 0.68]]],
  [[[0.25, 0.15], [0.5, 0.14], [0.74, 0.13]], [[0.74, 0.13], [0.6, 0.46], [0.46, 0.9]]],
  [[[0.66, 0.2], [0.51, 0.1], [0.35, 0.21], [0.42, 0.4], [0.61, 0.58], [0.67, 0.76], [0.5, 0.89], [0.33, 0.77], [0.4, 0.57], [0.6, 0.4], [0.66, 0.21]]],
  [[[0.66, 0.28], [0.51, 0.12], [0.34, 0.25], [0.38, 0.44], [0.54, 0.46], [0.66, 0.28]], [[0.66, 0.28], [0.64, 0.6], [0.58, 0.9]]],
];

const STEPS = 8; // lines between two of the points

/** The strokes of the samples, those of 0 first. */
export const samples = POINTS.map((strokes) => strokes.map(smooth));

/** A stroke through the points, by the splines of Catmull and Rom. */
function smooth(points) {
  const at = (index) => points[Math.min(points.length - 1, Math.max(0, index))];
  const stroke = [points[0]];
  for (let index = 0; index + 1 < points.length; index++) {
    const [a, b, c, d] = [-1, 0, 1, 2].map((step) => at(index + step));
    for (let step = 1; step <= STEPS; step++) stroke.push([0, 1].map((axis) => between(a[axis], b[axis], c[axis], d[axis], step / STEPS)));
  }
  return stroke;
}

/** Between b, at 0, and c, at 1, on the cubic whose slopes there are those from a to c and from b to d. */
function between(a, b, c, d, t) {
  return b + (t / 2) * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)));
}
