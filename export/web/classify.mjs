// Runs the exported file in the browser: it takes uint8 RGB images of any size and gives probabilities.
import * as ort from "./ort/ort.webgpu.min.mjs";

ort.env.wasm.wasmPaths = new URL("./ort/", import.meta.url).href;
if (!globalThis.crossOriginIsolated) ort.env.wasm.numThreads = 1; // threads need shared memory, which needs two headers

// Returns {classes, provider, classify}; prefers WebGPU and falls back to WebAssembly.
export async function load(base = new URL("./", import.meta.url), providers = ["webgpu", "wasm"]) {
  const classes = await (await fetch(new URL("classes.json", base))).json();
  const bytes = new Uint8Array(await (await fetch(new URL("model.onnx", base))).arrayBuffer());
  let failure;
  for (const provider of providers) {
    if (provider === "webgpu" && !(await navigator.gpu?.requestAdapter())) continue;
    try {
      const session = await ort.InferenceSession.create(bytes, { executionProviders: [provider] });
      const classify = (source) => probabilities(session, source);
      await classify(new OffscreenCanvas(8, 8)); // a provider that lacks an operator fails here, not at the first image
      return { classes, provider, classify };
    } catch (error) {
      failure = error;
    }
  }
  throw failure ?? new Error("no execution provider");
}

// Probabilities by class number of anything that can be drawn on a canvas.
async function probabilities(session, source) {
  const width = source.videoWidth || source.naturalWidth || source.width;
  const height = source.videoHeight || source.naturalHeight || source.height;
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white"; // behind transparent pixels
  if (!(source instanceof OffscreenCanvas)) {
    context.fillRect(0, 0, width, height);
    context.drawImage(source, 0, 0);
  }
  const rgba = context.getImageData(0, 0, width, height).data;
  const rgb = new Uint8Array(width * height * 3);
  for (let from = 0, to = 0; from < rgba.length; from += 4) {
    rgb[to++] = rgba[from];
    rgb[to++] = rgba[from + 1];
    rgb[to++] = rgba[from + 2];
  }
  const image = new ort.Tensor("uint8", rgb, [1, height, width, 3]);
  const answers = await session.run({ [session.inputNames[0]]: image });
  return Array.from(answers[session.outputNames[0]].data);
}
