// What is drawn, and the probabilities that the network gives each digit, while one draws.
import { Graph, colour, context, tensor, whenLooksChange } from "common";
import { SIZE, image } from "drawing";
import { samples } from "samples";

const element = (id) => document.getElementById(id);
const sheet = element("sheet");

// --- The drawing ----------------------------------------------------------------------------------------------------------

let strokes = []; // lists of points [x, y] from 0 to 1
const before = []; // what the strokes were before each change, for undo
let isDown = false; // whether the pen is, so that the last stroke goes on

function change(next) {
  before.push(strokes);
  strokes = next;
  changed();
}

function begin(point) {
  isDown = true;
  change([...strokes, [point]]);
}

function extend(points) {
  strokes.at(-1).push(...points);
  changed();
}

function lift() {
  isDown = false;
  changed();
}

function undo() {
  isDown = false;
  strokes = before.pop() ?? [];
  changed();
}

function clear() {
  isDown = false;
  if (strokes.length) change([]);
}

function showSample(digit) {
  isDown = false;
  change(samples[digit]);
}

function changed() {
  drawSheet();
  read();
}

// --- With a pointer -------------------------------------------------------------------------------------------------------

const within = (number) => Math.min(1, Math.max(0, number));

function pointOf(event) {
  const { left, top, width, height } = sheet.getBoundingClientRect();
  return [within((event.clientX - left) / width), within((event.clientY - top) / height)];
}

let pointer = null; // the one that draws: a second finger does not

sheet.addEventListener("pointerdown", (event) => {
  if (pointer !== null || event.button !== 0) return;
  pointer = event.pointerId;
  sheet.setPointerCapture(pointer);
  cursor.isShown = false;
  begin(pointOf(event));
});
sheet.addEventListener("pointermove", (event) => {
  if (event.pointerId !== pointer || !isDown) return;
  const events = event.getCoalescedEvents?.() ?? [];
  extend((events.length ? events : [event]).map(pointOf));
});
for (const kind of ["pointerup", "pointercancel"]) {
  sheet.addEventListener(kind, (event) => {
    if (event.pointerId !== pointer) return;
    pointer = null;
    lift();
  });
}

// --- With keys ------------------------------------------------------------------------------------------------------------

const DIRECTIONS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const STEP = 0.04;
const SMALL_STEP = 0.01;
const cursor = { place: [0.5, 0.5], isShown: false };
const held = new Set(); // arrows: two of them make a slanted line

sheet.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || pointer !== null) return;
  if (event.key in DIRECTIONS) {
    held.add(event.key);
    moveCursor(event.shiftKey ? SMALL_STEP : STEP);
  } else if (event.key === " ") {
    cursor.isShown = true;
    if (isDown) lift();
    else begin(cursor.place);
  } else return;
  event.preventDefault();
});
sheet.addEventListener("keyup", (event) => held.delete(event.key));
sheet.addEventListener("blur", () => {
  held.clear();
  cursor.isShown = false;
  if (pointer === null) lift();
});

function moveCursor(step) {
  cursor.isShown = true;
  cursor.place = [0, 1].map((axis) => within([...held].reduce((at, name) => at + step * DIRECTIONS[name][axis], cursor.place[axis])));
  if (isDown) extend([cursor.place]);
  else drawSheet();
}

// Letters and digits are heard where one draws and chooses, and nowhere else, so that they are in nobody's way.
element("desk").addEventListener("keydown", (event) => {
  const isUndo = (event.ctrlKey || event.metaKey) && !event.shiftKey && event.key.toLowerCase() === "z";
  if (!isUndo && (event.ctrlKey || event.metaKey || event.altKey)) return;
  const key = event.key.toLowerCase();
  if (isUndo || key === "u" || key === "backspace") undo();
  else if (key === "c" || key === "delete") clear();
  else if (/^\d$/.test(key)) showSample(Number(key));
  else return;
  event.preventDefault();
});

// --- What is seen ---------------------------------------------------------------------------------------------------------

function drawSheet() {
  const { pen, width, height } = context(sheet);
  pen.strokeStyle = colour("ink");
  pen.lineWidth = 0.055 * width;
  pen.lineCap = pen.lineJoin = "round";
  for (const stroke of strokes) {
    pen.beginPath();
    for (const [x, y] of [stroke[0], ...stroke]) pen.lineTo(x * width, y * height); // the first one twice: a point is a dot
    pen.stroke();
  }
  if (cursor.isShown) drawCursor(pen, cursor.place[0] * width, cursor.place[1] * height);
}

/** A cross where the pen is, and a ring around it if it is down. */
function drawCursor(pen, x, y) {
  pen.strokeStyle = colour("accent");
  pen.lineWidth = 2;
  pen.beginPath();
  for (const [dx, dy] of [[12, 0], [0, 12]]) {
    pen.moveTo(x - dx, y - dy);
    pen.lineTo(x + dx, y + dy);
  }
  if (isDown) {
    pen.moveTo(x + 8, y);
    pen.arc(x, y, 8, 0, 2 * Math.PI);
  }
  pen.stroke();
}

function drawSeen(pixels) {
  const pen = element("seen").getContext("2d");
  const picture = pen.createImageData(SIZE, SIZE);
  pixels.forEach((ink, place) => picture.data.set([255 * ink, 255 * ink, 255 * ink, 255], 4 * place));
  pen.putImageData(picture, 0, 0);
}

const bars = samples.map((_, digit) => {
  const row = document.createElement("li");
  row.innerHTML = `<b>${digit}</b><span class="track"><span></span></span><span class="share"></span>`;
  element("bars").append(row);
  return { row, bar: row.querySelector(".track span"), share: row.querySelector(".share") };
});

/** Show what was read; without probabilities, that there is nothing to read. */
function show(pixels, probabilities) {
  const best = probabilities === null ? null : probabilities.indexOf(Math.max(...probabilities));
  bars.forEach(({ row, bar, share }, digit) => {
    const percent = 100 * (probabilities?.[digit] ?? 0);
    row.className = digit === best ? "best" : "";
    bar.style.width = `${percent}%`;
    share.textContent = `${percent.toFixed(1)} %`;
  });
  drawSeen(pixels);
  element("answer").setAttribute("aria-busy", String(isDown)); // it is read out when the stroke ends
  element("answer").textContent = best === null ? "Draw a digit" : words(best, probabilities[best]);
}

function words(digit, probability) {
  if (probability > 0.9) return `It is a ${digit}`;
  return probability > 0.5 ? `It may be a ${digit}` : `It is hard to read: a ${digit}?`;
}

// --- Reading --------------------------------------------------------------------------------------------------------------

const opened = Graph.open("digits.onnx");
let isReading = false;
let isStale = false; // the drawing has changed since the reading began

async function read() {
  isStale = true;
  if (isReading) return;
  isReading = true;
  while (isStale) {
    isStale = false;
    const drawn = strokes.map((stroke) => [...stroke]); // the last one may go on meanwhile
    const pixels = image(drawn);
    const probabilities = drawn.length ? await probabilitiesOf(pixels) : null;
    window.reading = { strokes: drawn, pixels, probabilities }; // for whoever looks at the numbers
    show(pixels, probabilities);
  }
  isReading = false;
}

async function probabilitiesOf(pixels) {
  const { output } = await (await opened).run({ x: tensor("float32", pixels, [1, 1, SIZE, SIZE]) });
  return output.data;
}

for (const digit of samples.keys()) {
  const button = Object.assign(document.createElement("button"), { type: "button", textContent: digit, ariaLabel: `A drawing of ${digit}` });
  button.addEventListener("click", () => showSample(digit));
  element("samples").append(button);
}
element("undo").addEventListener("click", undo);
element("clear").addEventListener("click", clear);
whenLooksChange(drawSheet);
opened.then(changed, (error) => {
  element("answer").textContent = "This browser is too old for it";
  throw error;
});
