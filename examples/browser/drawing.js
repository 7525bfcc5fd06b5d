// What is drawn, as MNIST shows digits: lines as thick as a pen, fitted into 20 x 20 pixels, with their centre of mass in the
// middle of 28 x 28. A stroke is a list of points [x, y], x to the right and y down: what one draws on is 1 wide.

export const SIZE = 28;
const BOX = 20; // pixels that a digit fits into, pen and all
const PEN = 2.6; // pixels across
const CENTRE = 14.5; // of the mass, in both directions: the middle of the fifteenth pixel, as in MNIST
const SMALLEST = 0.1; // what is smaller is not made larger than this would be: a dot remains one

/** The image of some strokes: 28 x 28 numbers, row by row, from 0 (nothing) to 1 (ink); all 0 if there are none. */
export function image(strokes) {
  const lines = fitted(strokes.filter((stroke) => stroke.length));
  if (!lines.length) return new Float32Array(SIZE * SIZE);
  const [x, y] = centreOfMass(inked(lines));
  return Float32Array.from(inked(moved(lines, CENTRE - x, CENTRE - y)));
}

/** The strokes in the middle of 28 x 28 pixels, as large as the box allows. */
function fitted(strokes) {
  const points = strokes.flat();
  const [left, right] = range(points.map((point) => point[0]));
  const [top, bottom] = range(points.map((point) => point[1]));
  const scale = (BOX - PEN) / Math.max(right - left, bottom - top, SMALLEST);
  const place = (at, low, high) => SIZE / 2 + scale * (at - (low + high) / 2);
  return strokes.map((stroke) => stroke.map(([x, y]) => [place(x, left, right), place(y, top, bottom)]));
}

function range(numbers) {
  return numbers.reduce(([low, high], number) => [Math.min(low, number), Math.max(high, number)], [Infinity, -Infinity]);
}

function moved(strokes, right, down) {
  return strokes.map((stroke) => stroke.map(([x, y]) => [x + right, y + down]));
}

/** How much ink is on each pixel: 1 within the pen's reach of a stroke, 0 a pixel further away, and even between. */
function inked(strokes) {
  const ink = new Float64Array(SIZE * SIZE);
  for (const stroke of strokes) {
    stroke.forEach((end, index) => draw(ink, stroke[Math.max(0, index - 1)], end)); // the first point is a line by itself
  }
  return ink;
}

/** Add one line to the ink, where it leaves more than there is. */
function draw(ink, from, to) {
  const reach = PEN / 2 + 0.5;
  const pixels = (a, b) => [Math.max(0, Math.floor(Math.min(a, b) - reach)), Math.min(SIZE, Math.ceil(Math.max(a, b) + reach))];
  const [left, right] = pixels(from[0], to[0]);
  const [top, bottom] = pixels(from[1], to[1]);
  for (let row = top; row < bottom; row++) {
    for (let column = left; column < right; column++) {
      const near = reach - distance(column + 0.5, row + 0.5, from, to);
      ink[row * SIZE + column] = Math.max(ink[row * SIZE + column], Math.min(1, near));
    }
  }
}

/** How far a point is from a line that ends at both its ends. */
function distance(x, y, from, to) {
  const [dx, dy] = [to[0] - from[0], to[1] - from[1]];
  const length = dx * dx + dy * dy;
  const along = length ? Math.min(1, Math.max(0, ((x - from[0]) * dx + (y - from[1]) * dy) / length)) : 0;
  return Math.hypot(x - from[0] - along * dx, y - from[1] - along * dy);
}

function centreOfMass(ink) {
  let [mass, x, y] = [0, 0, 0];
  ink.forEach((amount, place) => {
    mass += amount;
    x += amount * ((place % SIZE) + 0.5);
    y += amount * (Math.floor(place / SIZE) + 0.5);
  });
  return [x / mass, y / mass];
}
