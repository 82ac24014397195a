// Runs the exported file in the browser, on images prepared as zoo's predictor prepares them in Python.
import * as ort from "./ort/ort.webgpu.min.mjs";

ort.env.wasm.wasmPaths = new URL("./ort/", import.meta.url).href;
if (!globalThis.crossOriginIsolated) ort.env.wasm.numThreads = 1; // threads need shared memory, which needs two headers

// Returns {classes, provider, classify}; prefers WebGPU and falls back to WebAssembly.
export async function load(base = new URL("./", import.meta.url), providers = ["webgpu", "wasm"]) {
  const { classes, resize, size } = await (await fetch(new URL("model.json", base))).json();
  const bytes = new Uint8Array(await (await fetch(new URL("model.onnx", base))).arrayBuffer());
  let failure;
  for (const provider of providers) {
    if (provider === "webgpu" && !(await navigator.gpu?.requestAdapter())) continue;
    try {
      const session = await ort.InferenceSession.create(bytes, { executionProviders: [provider] });
      const classify = (source) => probabilities(session, pixels(source), resize, size);
      await probabilities(session, new ImageData(8, 8), resize, size); // what it lacks shows here, not at the first image
      return { classes, provider, classify };
    } catch (error) {
      failure = error;
    }
  }
  throw failure ?? new Error("no execution provider");
}

// ImageData of anything that can be drawn on a canvas; transparent parts are black, as in zoo predict.
function pixels(source) {
  const width = source.videoWidth || source.naturalWidth || source.width;
  const height = source.videoHeight || source.naturalHeight || source.height;
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.fillStyle = "black";
  context.fillRect(0, 0, width, height);
  context.drawImage(source, 0, 0);
  return context.getImageData(0, 0, width, height);
}

// Probabilities by class number.
async function probabilities(session, image, resize, size) {
  const bytes = square(image, resize);
  const edge = Math.floor((resize - size) / 2);
  const values = new Float32Array(3 * size * size);
  for (let channel = 0, to = 0; channel < 3; channel++)
    for (let row = 0; row < size; row++)
      for (let column = 0; column < size; column++)
        values[to++] = bytes[3 * ((row + edge) * resize + column + edge) + channel] / 255;
  const answers = await session.run({ [session.inputNames[0]]: new ort.Tensor("float32", values, [1, 3, size, size]) });
  return Array.from(answers[session.outputNames[0]].data);
}

const ONE = 2 ** 22; // weights are whole numbers of this size, as in Pillow: ties are then rounded the same way

// RGB bytes (side, side, 3): the shorter side resized to `side`, the centre cut out. Rows and columns are filtered one after the
// other, each rounded to bytes, as Pillow's antialiased BILINEAR does.
export function square({ data, width, height }, side) {
  const scale = side / Math.min(width, height);
  const across = taps(width, Math.max(side, even(width * scale)), side);
  const down = taps(height, Math.max(side, even(height * scale)), side);
  const lines = new Uint8ClampedArray(height * side * 3);
  for (let row = 0; row < height; row++)
    for (let column = 0; column < side; column++)
      for (let channel = 0; channel < 3; channel++) {
        const { first, weights } = across[column];
        let sum = 0;
        for (let tap = 0; tap < weights.length; tap++) sum += weights[tap] * data[4 * (row * width + first + tap) + channel];
        lines[3 * (row * side + column) + channel] = Math.floor(sum / ONE + 0.5);
      }
  const found = new Uint8ClampedArray(side * side * 3);
  for (let row = 0; row < side; row++)
    for (let at = 0; at < 3 * side; at++) {
      const { first, weights } = down[row];
      let sum = 0;
      for (let tap = 0; tap < weights.length; tap++) sum += weights[tap] * lines[3 * side * (first + tap) + at];
      found[3 * side * row + at] = Math.floor(sum / ONE + 0.5);
    }
  return found;
}

// For each of `side` output pixels the first input pixel and the weights from there on: a triangle as wide as the reduction.
// Pillow holds the part that is resized in single precision.
function taps(length, resized, side) {
  const left = ((resized - side) / 2 / resized) * length;
  const start = Math.fround(left), end = Math.fround(left + (side / resized) * length);
  const step = Math.fround(end - start) / side, reach = Math.max(step, 1);
  return Array.from({ length: side }, (_, at) => {
    const centre = start + (at + 0.5) * step;
    const first = Math.max(0, Math.floor(centre - reach + 0.5)), last = Math.min(length, Math.floor(centre + reach + 0.5));
    const weights = Array.from({ length: last - first }, (_, tap) => Math.max(0, 1 - Math.abs(first + tap + 0.5 - centre) / reach));
    const sum = weights.reduce((a, b) => a + b, 0);
    return { first, weights: weights.map((weight) => Math.floor((weight / sum) * ONE + 0.5)) };
  });
}

// Rounded half to even, as Python rounds.
function even(value) {
  const nearest = Math.round(value);
  return nearest - value === 0.5 && nearest % 2 ? nearest - 1 : nearest;
}
