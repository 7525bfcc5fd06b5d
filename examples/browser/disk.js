// The disk network: its points, what it makes of the square, and how it learns.
import { Graph, Run, Turns, below, colour, context, curves, download, file, following, json, key, rgb } from "common";
import { saved, scalar, tensor, whenLooksChange } from "common";

const $ = (id) => document.getElementById(id);
const about = json("about.json");
const turns = new Turns();
const networks = {}; // by name, once they were asked for
const say = (what) => ($("status").textContent = what);
const needed = (name) =>
  Graph.open(name).catch((error) => {
    say("This browser is too old for it");
    throw error;
  });
const shared = { data: await needed("data.onnx"), order: await needed("order.onnx") };
const MOST = 2000; // points: the order of an epoch is of no more
const OFTEN = 10; // steps between two points of the curves of accuracy
const NODES = 49; // of the grid that is drawn, along each side

// --- Settings -------------------------------------------------------------------------------------------------------------

const NAMES = { linear: "none" };
const SETTINGS = {
  rate: [[0.001, 0.003, 0.01, 0.03, 0.1, 0.3], 0.01, String],
  batch: [[1, 5, 10, 25, 50, 100, 250], 50, String],
  network: [about.networks, about.networks.at(-1), (name) => NAMES[name] ?? name.replaceAll("-", ", ")],
  noise: [[0, 0.02, 0.05, 0.1, 0.2], 0, (noise) => (noise ? String(noise) : "none")],
};
for (const [id, [values, first, text]] of Object.entries(SETTINGS)) {
  $(id).replaceChildren(...values.map((value) => new Option(text(value), value, value === first, value === first)));
}
const seed = () => Math.min(2 ** 32 - 1, Math.max(0, Math.trunc(Number($("seed").value) || 0)));

// --- What there is --------------------------------------------------------------------------------------------------------

let points = []; // {x, y, label}
let drawn = false; // whether somebody drew points, or erased some
let test = null; // {x, labels}, of the disk
let state = null;
let graphs = null;
let epoch = null; // {order, place, points}, of the epoch that is under way
let history = null;

async function open(name) {
  networks[name] ??= {
    start: await Graph.open(`start-${name}.onnx`),
    step: await Graph.open(`step-${name}.onnx`),
    answer: await Graph.open(`answer-${name}.onnx`),
  };
  return networks[name];
}

/** The points of the seed, with the noise. */
async function takeDisk() {
  const made = await shared.data.run({ key: key(seed()), noise: scalar("float32", Number($("noise").value)) });
  const [x, labels] = [made["train.0"].data, made["train.1"].data];
  points = Array.from(labels, (label, i) => ({ x: x[2 * i], y: x[2 * i + 1], label: Number(label) }));
  test = { x: made["test.0"].data, labels: Array.from(made["test.1"].data, Number) };
  drawn = false;
  epoch = null;
}

/** The network as the seed has it, before its first step. */
async function restart() {
  graphs = await open($("network").value);
  state = await graphs.start.run({ key: key(seed()) });
  epoch = null;
  history = { losses: [], means: [], sum: 0, train: [], test: [], times: [] };
  await evaluate();
  if (!run.running) say("Before the first step");
}

// --- Learning -------------------------------------------------------------------------------------------------------------

const steps = () => history.losses.length;

/** The points in the order of the next epoch, which `fundl.epochs` has as well. */
async function nextEpoch() {
  const { order } = await shared.order.run({ key: state["state.key"], began: scalar("int64", steps()) });
  return { points, order: Array.from(order.data, Number).filter((place) => place < points.length), place: 0 };
}

function batchOf(rows) {
  const two = rows.length === 1 ? [rows[0], rows[0]] : rows; // a graph is for two rows or more, and their mean is the same
  return {
    "batch.0": tensor("float32", two.flatMap(({ x, y }) => [x, y]), [two.length, 2]),
    "batch.1": tensor("int64", two.map(({ label }) => label)),
  };
}

async function step() {
  if (!points.length) return run.pause("There is no point to learn from: draw some.");
  if (!epoch || epoch.place >= epoch.order.length) epoch = await nextEpoch();
  const places = epoch.order.slice(epoch.place, epoch.place + Number($("batch").value));
  epoch.place += places.length;
  const batch = batchOf(places.map((place) => epoch.points[place]));
  const began = performance.now();
  const outputs = await graphs.step.run({ ...state, ...batch, [about.rate]: scalar("float64", Number($("rate").value)) });
  history.times = [...history.times.slice(-49), performance.now() - began];
  const loss = outputs["report.loss"].data[0];
  if (!Number.isFinite(loss)) return run.pause("The loss is no number any more. Take a smaller learning rate, and reset.");
  state = following(state, outputs);
  history.losses.push(loss);
  history.sum = 0.95 * history.sum + 0.05 * loss;
  history.means.push(history.sum / (1 - 0.95 ** steps()));
  if (steps() % OFTEN === 0) await evaluate();
}

/** The scores of points [x, y, x, y, ...]: inside less outside. */
async function scores(x) {
  const two = x.length === 2 ? [...x, ...x] : x;
  const found = await graphs.answer.run({ ...below(state, "state."), x: tensor("float32", two, [two.length / 2, 2]) });
  return Array.from({ length: x.length / 2 }, (_, i) => found.scores.data[2 * i + 1] - found.scores.data[2 * i]);
}

async function accuracy(x, labels) {
  const found = await scores(x);
  return found.filter((score, i) => score > 0 === (labels[i] === 1)).length / labels.length;
}

/** How many of the points, and of the test points, are where the network sees them, after so many steps. */
async function measure() {
  if (history.measured?.step === steps() && history.measured.points === points) return history.measured;
  const xs = points.flatMap(({ x, y }) => [x, y]);
  history.measured = {
    step: steps(),
    points,
    train: points.length ? await accuracy(xs, points.map(({ label }) => label)) : NaN,
    test: drawn ? NaN : await accuracy(test.x, test.labels),
  };
  return history.measured;
}

async function evaluate() {
  const { train, test } = await measure();
  if (points.length) history.train.push([steps(), train]);
  if (!drawn) history.test.push([steps(), test]);
}

// --- Drawing --------------------------------------------------------------------------------------------------------------

const places = Array.from({ length: NODES }, (_, i) => i / (NODES - 1));
const grid = Float32Array.from(places.flatMap((y) => places.flatMap((x) => [x, y])));
const heat = Object.assign(document.createElement("canvas"), { width: NODES, height: NODES });
let seen = null; // the scores at the grid, of the last drawing
const cross = { x: 0.5, y: 0.5, shown: false };

async function draw() {
  seen = await scores(grid);
  const { train, test } = await measure();
  drawSquare();
  drawCurves();
  const percent = (part) => (Number.isNaN(part) ? "–" : `${(100 * part).toFixed(1)} %`);
  const mean = history.times.reduce((sum, time) => sum + time, 0) / history.times.length;
  $("step").textContent = steps().toLocaleString("en");
  $("loss").textContent = steps() ? history.losses.at(-1).toFixed(4) : "–";
  $("train").textContent = percent(train);
  $("test").textContent = percent(test);
  $("time").textContent = steps() ? `${mean.toFixed(1)} ms` : "–";
}

function drawSquare() {
  if (!seen) return; // it is still loading
  const { pen, width } = context($("square"));
  const colours = Object.fromEntries(["sheet", "inside", "outside", "ink", "quiet"].map((name) => [name, colour(name)]));
  drawHeat(pen, width, colours);
  drawBoundary(pen, width, colours.ink);
  if (!drawn) drawTruth(pen, width, colours.quiet);
  const radius = Math.min(5, Math.max(2, (0.15 * width) / Math.sqrt(points.length + 1)));
  for (const { x, y, label } of points) drawPoint(pen, x * width, (1 - y) * width, label, radius, colours);
  if (cross.shown) drawCross(pen, width, colours.ink);
}

/** The more certain the network is, the more of a class's colour. */
function drawHeat(pen, width, colours) {
  const [sheet, inside, outside] = [colours.sheet, colours.inside, colours.outside].map(rgb);
  const picture = heat.getContext("2d").createImageData(NODES, NODES);
  seen.forEach((score, i) => {
    const certainty = Math.tanh(score / 2); // probability of inside less that of outside
    const part = 0.32 * Math.abs(certainty);
    const full = certainty > 0 ? inside : outside;
    const at = 4 * ((NODES - 1 - Math.floor(i / NODES)) * NODES + (i % NODES)); // y points upwards
    picture.data.set([...sheet.map((value, j) => value + part * (full[j] - value)), 255], at);
  });
  heat.getContext("2d").putImageData(picture, 0, 0);
  const cell = width / (NODES - 1);
  pen.imageSmoothingQuality = "high";
  pen.drawImage(heat, -cell / 2, -cell / 2, NODES * cell, NODES * cell); // a dot's middle is at its node
}

/** Where both scores are the same: in each cell of the grid, between the edges whose ends are of two classes. */
function drawBoundary(pen, width, ink) {
  const cell = width / (NODES - 1);
  pen.beginPath();
  for (let row = 0; row < NODES - 1; row++) {
    for (let column = 0; column < NODES - 1; column++) {
      const corners = [[0, 0], [1, 0], [1, 1], [0, 1]].map(([right, up]) => [column + right, row + up]);
      const values = corners.map(([x, y]) => seen[y * NODES + x]);
      const crossings = [];
      for (let from = 0; from < 4; from++) {
        const to = (from + 1) % 4;
        if (values[from] > 0 === values[to] > 0) continue;
        const part = values[from] / (values[from] - values[to]);
        crossings.push([0, 1].map((axis) => corners[from][axis] + part * (corners[to][axis] - corners[from][axis])));
      }
      for (let i = 0; i + 1 < crossings.length; i += 2) {
        pen.moveTo(crossings[i][0] * cell, width - crossings[i][1] * cell);
        pen.lineTo(crossings[i + 1][0] * cell, width - crossings[i + 1][1] * cell);
      }
    }
  }
  pen.strokeStyle = ink;
  pen.lineWidth = 2;
  pen.stroke();
}

/** The disk itself. */
function drawTruth(pen, width, ink) {
  pen.beginPath();
  pen.arc(width / 2, width / 2, width / Math.sqrt(2 * Math.PI), 0, 2 * Math.PI);
  pen.setLineDash([5, 5]);
  pen.strokeStyle = ink;
  pen.lineWidth = 1.5;
  pen.stroke();
  pen.setLineDash([]);
}

/** A disk inside, a ring outside: not the colour alone tells them apart. */
function drawPoint(pen, x, y, label, radius, colours) {
  pen.beginPath();
  pen.arc(x, y, radius, 0, 2 * Math.PI);
  pen.lineWidth = 1.3;
  pen.fillStyle = label ? colours.inside : colours.sheet;
  pen.strokeStyle = label ? colours.inside : colours.outside;
  pen.fill();
  pen.stroke();
}

function drawCross(pen, width, ink) {
  const [x, y] = [cross.x * width, (1 - cross.y) * width];
  pen.beginPath();
  for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
    pen.moveTo(x + 4 * dx, y + 4 * dy);
    pen.lineTo(x + 14 * dx, y + 14 * dy);
  }
  pen.strokeStyle = ink;
  pen.lineWidth = 2;
  pen.stroke();
}

function drawCurves() {
  const { losses, means } = history;
  const top = Math.max(0.8, Math.ceil(5 * Math.min(5, Math.max(0, ...means.slice(0, 200)))) / 5);
  curves($("losses"), {
    lines: [
      { count: losses.length, point: (i) => [i + 1, losses[i]], ink: colour("quiet"), faint: true },
      { count: means.length, point: (i) => [i + 1, means[i]], ink: colour("accent") },
    ],
    last: steps(),
    top,
    marks: [0, top / 2, top],
    format: (mark) => mark.toFixed(1),
  });
  curves($("accuracies"), {
    lines: [
      { count: history.train.length, point: (i) => history.train[i], ink: colour("accent") },
      { count: history.test.length, point: (i) => history.test[i], ink: colour("test") },
    ],
    last: steps(),
    bottom: 0.4,
    top: 1,
    marks: [0.4, 0.6, 0.8, 1],
    format: (mark) => `${Math.round(100 * mark)} %`,
  });
}

// --- Buttons and fields ---------------------------------------------------------------------------------------------------

const run = new Run({ turns, go: $("go"), one: $("one"), step, draw, say });

/** Do something between two steps, and show what came of it. */
const now = (work) =>
  turns.take(async () => {
    await work();
    await draw();
  });

$("reset").addEventListener("click", () => {
  run.pause("Going back");
  now(restart);
});
$("network").addEventListener("change", () => now(restart).then(showCode));
for (const id of ["seed", "noise"]) {
  $(id).addEventListener("change", () =>
    now(async () => {
      if (!drawn) await takeDisk();
      await restart();
    }),
  );
}
$("again").addEventListener("click", () => now(takeDisk));
$("clear").addEventListener("click", () => change(() => []));
$("download").addEventListener("click", () => {
  const like = file(`model-${$("network").value}.safetensors`);
  turns.take(() => download(saved(like, below(state, "state.model.")), "disk.safetensors"));
});

function showCode() {
  const hidden = $("network").value === "linear" ? [] : $("network").value.split("-");
  const sizes = [2, ...hidden, 2];
  const layers = sizes.slice(1).map((size, i) => `    linear(${sizes[i]}, ${size}),`).join(" ReLU(),\n");
  $("code").textContent = `from fundl import ReLU, apply, compose, linear, load

model = load("disk.safetensors", compose(
${layers}
))
scores = apply(model, points)  # outside, inside`;
}

// --- Points by pointer and keyboard ---------------------------------------------------------------------------------------

const tool = () => document.querySelector("input[name=tool]:checked").value;
const NEAR = 0.025; // of the square's side: what the eraser reaches, and the least way between two points of a stroke

/** Learn from other points from the next step on. */
const change = (edit) =>
  now(() => {
    points = edit(points).slice(-MOST);
    drawn = true;
    epoch = null;
  });

function use(x, y) {
  const chosen = tool();
  if (chosen === "erase") return change((all) => all.filter((point) => Math.hypot(point.x - x, point.y - y) > NEAR));
  return change((all) => [...all, { x, y, label: Number(chosen) }]);
}

const square = $("square");
let stroke = null; // where its last point is

function along(event) {
  const box = square.getBoundingClientRect();
  const within = (part) => Math.min(1, Math.max(0, part));
  const x = within((event.clientX - box.left) / box.width);
  const y = within(1 - (event.clientY - box.top) / box.height);
  if (stroke && Math.hypot(x - stroke.x, y - stroke.y) < NEAR) return;
  stroke = { x, y };
  use(x, y);
}

square.addEventListener("pointerdown", (event) => {
  if (event.button !== 0) return;
  square.setPointerCapture(event.pointerId);
  cross.shown = false;
  along(event);
});
square.addEventListener("pointermove", (event) => stroke && along(event));
for (const end of ["pointerup", "pointercancel"]) square.addEventListener(end, () => (stroke = null));

const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
const TOOLS = { i: "1", o: "0", e: "erase" };

square.addEventListener("keydown", (event) => {
  const pressed = event.key;
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (pressed in MOVES) {
    const far = event.shiftKey ? 0.1 : 0.02;
    [cross.x, cross.y] = [cross.x, cross.y].map((place, axis) => Math.min(1, Math.max(0, place + far * MOVES[pressed][axis])));
    cross.shown = true;
  } else if (pressed === " " || pressed === "Enter") {
    cross.shown = true;
    use(cross.x, cross.y);
  } else if (pressed.toLowerCase() in TOOLS) {
    document.querySelector(`input[name=tool][value="${TOOLS[pressed.toLowerCase()]}"]`).checked = true;
  } else {
    return;
  }
  event.preventDefault();
  drawSquare();
});
square.addEventListener("focus", () => {
  cross.shown = square.matches(":focus-visible");
  drawSquare();
});
square.addEventListener("blur", () => {
  cross.shown = false;
  drawSquare();
});

// --- The beginning --------------------------------------------------------------------------------------------------------

showCode();
await now(async () => {
  await takeDisk();
  await restart();
});
for (const id of ["go", "one", "reset", "download"]) $(id).disabled = false;
say("Ready");
whenLooksChange(() => {
  drawSquare();
  drawCurves();
});
Object.defineProperty(window, "disk", { get: () => ({ points, state, history, idle: () => now(() => {}) }) }); // for the console
