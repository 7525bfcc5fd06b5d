import { Graph, key } from "common";

const start = await Graph.open("start-25-25-25.onnx");
window.state = await start.run({ key: key(0) });
document.getElementById("status").textContent = "Ready";
