// What the pages share: graphs and their tensors, states, files of tensors, a run that starts and pauses, drawings.
import * as ort from "onnxruntime-web";

// --- The files of the page ------------------------------------------------------------------------------------------------

const bytesOf = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
const files = JSON.parse(document.getElementById("files").textContent);

/** The bytes of a file that Python wrote for the page. */
export const file = (name) => bytesOf(files[name]);

/** What a file of JSON says. */
export const json = (name) => JSON.parse(new TextDecoder().decode(file(name)));

async function unpacked(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

let started = null;

async function start() {
  ort.env.wasm.numThreads = 1; // more take headers that a file has not, and are no quicker for what is small
  ort.env.wasm.wasmBinary = await unpacked(bytesOf(document.getElementById("machine").textContent));
}

// --- Tensors and graphs ---------------------------------------------------------------------------------------------------

const ARRAYS = { float32: Float32Array, float64: Float64Array, int64: BigInt64Array };

/** A tensor of numbers; without a shape, of one axis. */
export function tensor(dtype, numbers, shape = [numbers.length]) {
  const data = dtype === "int64" && !(numbers instanceof BigInt64Array) ? BigInt64Array.from(numbers, BigInt) : numbers;
  return new ort.Tensor(dtype, data instanceof ARRAYS[dtype] ? data : ARRAYS[dtype].from(data), shape);
}

/** A tensor of one number, without axes. */
export const scalar = (dtype, number) => tensor(dtype, [number], []);

/** The key of a seed, as fundl.key makes it: its low and its high 32 bits. */
export const key = (seed) => tensor("int64", [BigInt(seed) & 0xffffffffn, BigInt(seed) >> 32n]);

/** A function that fundl exported. Call open once, then run with all inputs by name; outputs come by name. */
export class Graph {
  static async open(name) {
    await (started ??= start());
    return new Graph(await ort.InferenceSession.create(file(name), { executionProviders: ["wasm"] }));
  }

  constructor(session) {
    this.session = session;
  }

  /** What else is among the inputs, such as the rest of a state, is left out. */
  run(inputs) {
    return this.session.run(Object.fromEntries(this.session.inputNames.map((name) => [name, inputs[name]])));
  }
}

/** The next state: what a step gives as next.NAME goes in as NAME; what it does not give stays as it is. */
export const following = (state, outputs) =>
  Object.fromEntries(Object.keys(state).map((name) => [name, outputs[`next.${name}`] ?? state[name]]));

/** What of a tree lies below a path, by the path from there: of "state.model.", "0.weight". */
export const below = (tree, path) =>
  Object.fromEntries(
    Object.entries(tree).flatMap(([name, value]) => (name.startsWith(path) ? [[name.slice(path.length), value]] : [])),
  );

// --- Files of tensors -----------------------------------------------------------------------------------------------------

/** A file as fundl.save writes it, with other numbers in it: those of a tree by the paths of its leaves, "0.weight". */
export function saved(like, tensors) {
  const length = Number(new DataView(like.buffer, like.byteOffset).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(like.subarray(8, 8 + length)));
  const numbers = like.slice(8 + length);
  for (const [name, about] of Object.entries(header)) {
    if (name === "__metadata__") continue;
    const { data } = tensors[name.replaceAll(/\[(\d+)\]/g, ".$1").replace(/^\./, "")];
    numbers.set(new Uint8Array(data.buffer, data.byteOffset, data.byteLength), about.data_offsets[0]);
  }
  delete header.__metadata__["fundl.crc32"]; // the sums are of the old numbers; a file may do without
  const text = new TextEncoder().encode(JSON.stringify(header));
  const padded = new Uint8Array(Math.ceil(text.length / 8) * 8).fill(32); // so that the numbers begin at a multiple of 8
  padded.set(text);
  const head = new Uint8Array(8);
  new DataView(head.buffer).setBigUint64(0, BigInt(padded.length), true);
  return new Blob([head, padded, numbers]);
}

/** Hand a file to whoever looks at the page. */
export function download(blob, name) {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

// --- Running --------------------------------------------------------------------------------------------------------------

/** Does one thing after the other: a step that is under way ends before what is asked for meanwhile begins. */
export class Turns {
  last = Promise.resolve();

  take(work) {
    const done = this.last.then(work);
    this.last = done.catch(() => {});
    return done;
  }
}

/**
 * A run with a button that starts and pauses it, and one that makes a single step. `step` makes one, `draw` shows where it is;
 * as many steps as take `budget` milliseconds are made before each drawing.
 */
export class Run {
  running = false;

  constructor({ turns, go, one, step, draw, budget = 20 }) {
    Object.assign(this, { turns, go, one, step, draw, budget });
    go.addEventListener("click", () => (this.running ? this.pause() : this.start()));
    one.addEventListener("click", () => {
      this.pause();
      turns.take(async () => {
        await step();
        await draw();
      });
    });
  }

  pause() {
    this.running = false;
    this.go.textContent = "Start";
  }

  async start() {
    if (this.running) return;
    this.running = true;
    this.go.textContent = "Pause";
    while (this.running) {
      await this.turns.take(async () => {
        const began = performance.now();
        while (this.running && performance.now() - began < this.budget) await this.step();
        await this.draw();
      });
      await new Promise(requestAnimationFrame);
    }
  }
}

// --- Drawing --------------------------------------------------------------------------------------------------------------

const painted = document.body.appendChild(document.createElement("i")); // the browser says what light-dark() is of an element

/** The value of a colour of page.css, in the theme of the moment. */
export function colour(name) {
  painted.style.color = `var(--${name})`;
  return getComputedStyle(painted).color;
}

/** Call when all must be drawn anew: the theme or the width has changed. */
export function whenLooksChange(redraw) {
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  addEventListener("resize", redraw);
}

/** A canvas with as many dots as the screen has, to be drawn on in CSS pixels. */
export function context(canvas) {
  const scale = devicePixelRatio || 1;
  const { clientWidth: width, clientHeight: height } = canvas;
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  const pen = canvas.getContext("2d");
  pen.setTransform(scale, 0, 0, scale, 0, 0);
  pen.clearRect(0, 0, width, height);
  return { pen, width, height };
}

/**
 * Curves over steps: each of `lines` is {points: [[step, value], ...], colour, faint}. Values below 0 and above `top` are cut
 * off at the edges. `marks` are values that get a line and a word each.
 */
export function curves(canvas, { lines, top, marks, format = String }) {
  const { pen, width, height } = context(canvas);
  const left = 40, bottom = height - 20, right = width - 8, upper = 8;
  const last = Math.max(1, ...lines.flatMap(({ points }) => (points.length ? [points.at(-1)[0]] : [])));
  const x = (step) => left + (step / last) * (right - left);
  const y = (value) => bottom - (Math.min(Math.max(value, 0), top) / top) * (bottom - upper);
  pen.font = "12px system-ui, sans-serif";
  pen.fillStyle = colour("quiet");
  pen.strokeStyle = colour("line");
  pen.lineWidth = 1;
  pen.textAlign = "right";
  pen.textBaseline = "middle";
  for (const mark of marks) {
    pen.beginPath();
    pen.moveTo(left, y(mark));
    pen.lineTo(right, y(mark));
    pen.stroke();
    pen.fillText(format(mark), left - 6, y(mark));
  }
  pen.textBaseline = "alphabetic";
  pen.fillText(`step ${last.toLocaleString("en")}`, right, height - 4);
  pen.textAlign = "left";
  pen.fillText("0", left, height - 4);
  pen.lineJoin = "round";
  for (const { points, colour: ink, faint } of lines) {
    pen.strokeStyle = ink;
    pen.globalAlpha = faint ? 0.35 : 1;
    pen.lineWidth = faint ? 1 : 2;
    pen.beginPath();
    for (const [step, value] of points) pen.lineTo(x(step), y(value));
    pen.stroke();
  }
  pen.globalAlpha = 1;
}
