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
 * A run with a button that starts and pauses it, and one that makes a single step. `step` makes one, `draw` shows where it is,
 * `say` tells what happens; as many steps as take `budget` milliseconds are made before each drawing.
 */
export class Run {
  running = false;

  constructor({ turns, go, one, step, draw, say, budget = 20 }) {
    Object.assign(this, { turns, go, one, step, draw, say, budget });
    go.addEventListener("click", () => (this.running ? this.pause("Paused") : this.start()));
    one.addEventListener("click", () => {
      this.pause("One step more");
      turns.take(async () => {
        await step();
        await draw();
      });
    });
  }

  /** End the run after the step that is under way, and say why. */
  pause(why) {
    this.running = false;
    this.go.textContent = "Start";
    this.say(why);
  }

  async start() {
    if (this.running) return;
    this.running = true;
    this.go.textContent = "Pause";
    this.say("Learning");
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

/** A colour of page.css, in the theme of the moment, as it is written there: #rrggbb. */
export const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

/** Red, green and blue of a colour, from 0 to 255. */
export const rgb = (text) => [1, 3, 5].map((place) => parseInt(text.slice(place, place + 2), 16));

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
 * Curves over steps, up to the last one. Each of `lines` is {count, point, ink, faint}, where point(i) is [step, value];
 * values are cut off at `bottom` and `top`. `marks` are values that get a line, and what `format` makes of them.
 */
export function curves(canvas, { lines, last, bottom = 0, top, marks, format }) {
  const { pen, width, height } = context(canvas);
  const box = { left: 44, right: width - 10, top: 10, bottom: height - 22 };
  const x = (step) => box.left + (step / Math.max(1, last)) * (box.right - box.left);
  const y = (value) => box.bottom - ((Math.min(Math.max(value, bottom), top) - bottom) / (top - bottom)) * (box.bottom - box.top);
  Object.assign(pen, { font: "12px system-ui, sans-serif", fillStyle: colour("quiet"), strokeStyle: colour("line"), lineWidth: 1 });
  Object.assign(pen, { textAlign: "right", textBaseline: "middle" });
  for (const mark of marks) {
    pen.beginPath();
    pen.moveTo(box.left, y(mark));
    pen.lineTo(box.right, y(mark));
    pen.stroke();
    pen.fillText(format(mark), box.left - 6, y(mark));
  }
  pen.textBaseline = "alphabetic";
  pen.fillText(`step ${last.toLocaleString("en")}`, box.right, height - 6);
  for (const { count, point, ink, faint } of lines) {
    const stride = 2 ** Math.max(0, Math.ceil(Math.log2(count / (2 * width)))); // no more than two a dot
    Object.assign(pen, { strokeStyle: ink, lineWidth: faint ? 1 : 2, globalAlpha: faint ? 0.4 : 1, lineJoin: "round" });
    pen.beginPath();
    for (let i = 0; i < count; i += stride) pen.lineTo(...[point(i)].flatMap(([step, value]) => [x(step), y(value)]));
    pen.stroke();
  }
  pen.globalAlpha = 1;
}
