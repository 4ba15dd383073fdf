// The page "In your browser": one network, the same noise through every solver. Beside this file lie network.onnx,
// solvers.json (names, files, noise) and onnxruntime-web, which docs/_ext/browser.py writes.
import * as ort from "./ort.wasm.min.mjs";
import { entry, sample } from "./sampler.mjs";

const TEACHER = "Teacher";
const root = document.getElementById("sampler"), form = root.querySelector("form");
const status = root.querySelector("[role=status]"), body = root.querySelector("tbody");
const facts = root.querySelector(".facts");
const here = new URL("./", import.meta.url);

const fetched = async (name) => {
  const response = await fetch(new URL(name, here));
  if (!response.ok) throw new Error(`${name} is missing (${response.status})`);
  return response;
};

/** Standard normal numbers, by Box and Muller. */
function normal(count) {
  const radius = () => Math.sqrt(-2 * Math.log(1 - Math.random())), angle = () => 2 * Math.PI * Math.random();
  return Float32Array.from({ length: count }, () => radius() * Math.cos(angle()));
}

/** Draw images (K, side, side) in [-1, 1] beside each other, each pixel enlarged. */
function draw(images, side, count) {
  const canvas = document.createElement("canvas"), gap = 2;
  canvas.width = count * (side + gap) - gap;
  canvas.height = side;
  const context = canvas.getContext("2d");
  for (let k = 0; k < count; k++) {
    const pixels = context.createImageData(side, side);
    for (let i = 0; i < side * side; i++) {
      const value = 127.5 * (1 + images[k * side * side + i]);
      pixels.data.set([value, value, value, 255], 4 * i);
    }
    context.putImageData(pixels, k * (side + gap), 0);
  }
  return canvas;
}

const mse = (a, b) => a.reduce((sum, value, i) => sum + (value - b[i]) ** 2, 0) / a.length;

async function main() {
  ort.env.wasm.wasmPaths = here.href;
  ort.env.wasm.numThreads = 1; // more need a server that isolates the page
  const setup = await (await fetched("solvers.json")).json();
  const network = await (await fetched("network.onnx")).arrayBuffer(), size = network.byteLength;
  const session = await ort.InferenceSession.create(network);
  const { side, labels, rows } = setup, count = labels.length;
  const label = new ort.Tensor("int64", BigInt64Array.from(labels, BigInt));
  let noise = Float32Array.from(setup.noise);

  async function denoise(x, t) {
    const inputs = { x: new ort.Tensor("float32", x, [count, 1, side, side]) };
    const answers = await session.run({ ...inputs, t: new ort.Tensor("float64", [t], [1]), label });
    return Object.values(answers)[0].data;
  }

  const fieldset = form.querySelector("fieldset");
  function offer(name) {
    const box = document.createElement("label");
    box.innerHTML = `<input type="checkbox" name="solver" checked> <span></span>`;
    box.firstChild.value = name;
    box.lastChild.textContent = name;
    fieldset.append(box);
  }
  Object.keys(rows).filter((name) => name !== TEACHER).forEach(offer);

  /** Sample one row and show it; returns the images. */
  async function show(name, nfe, target) {
    const start = performance.now();
    const images = await sample(denoise, noise.slice(), entry(rows[name], nfe));
    const seconds = (performance.now() - start) / 1000, line = body.insertRow();
    line.dataset.solver = name;
    line.className = name === "GS" ? "learned" : "";
    const error = target ? `, MSE ${mse(images, target).toPrecision(3)}` : "";
    line.innerHTML = "<th scope=row><strong></strong><small></small></th><td></td>";
    line.querySelector("strong").textContent = name;
    line.querySelector("small").textContent = `${nfe} calls, ${seconds.toFixed(2)} s${error}`;
    line.querySelector("td").append(draw(images, side, count));
    root.samples = { ...root.samples, [name]: Array.from(images) };
    return { images, seconds };
  }

  async function run() {
    const nfe = Number(form.nfe.value), chosen = [...form.querySelectorAll("[name=solver]:checked")];
    body.replaceChildren();
    root.samples = {};
    form.run.disabled = true;
    try {
      status.textContent = `${TEACHER} ...`;
      const teacher = await show(TEACHER, rows[TEACHER].solvers[0].nfe, null);
      for (const { value } of chosen) {
        status.textContent = `${value} ...`;
        await new Promise((resolve) => setTimeout(resolve)); // lets the row before appear
        await show(value, nfe, teacher.images);
      }
      body.append(body.firstChild);
      const each = (1000 * teacher.seconds) / count / rows[TEACHER].solvers[0].nfe;
      const learned = JSON.stringify(rows.GS ?? {}).length;
      facts.textContent = `One call of the network takes ${each.toFixed(1)} ms a sample here. The network has ` +
        `${(size / 1e6).toFixed(1)} MB, the file of GS ${(learned / 1e3).toFixed(0)} kB.`;
      status.textContent = "The same noise in every row; MSE is to the teacher.";
    } catch (error) {
      status.textContent = error.message;
    }
    form.run.disabled = false;
  }

  form.nfe.addEventListener("input", () => (form.calls.value = form.nfe.value));
  form.addEventListener("submit", (event) => (event.preventDefault(), run()));
  form.noise.addEventListener("click", () => ((noise = normal(noise.length)), run()));
  form.file.addEventListener("change", async () => {
    const [file] = form.file.files;
    if (!file) return;
    try {
      if (file.size > 1 << 24) throw new Error("more than 16 MB are no solver file");
      const read = JSON.parse(await file.text());
      entry(read, Number(form.nfe.value));
      if (read.model?.name !== setup.model) throw new Error(`the file is of model ${read.model?.name}, not ${setup.model}`);
      if (!(file.name in rows)) offer(file.name);
      rows[file.name] = read;
      await run();
    } catch (error) {
      status.textContent = `${file.name}: ${error.message}`;
    }
  });
  await run();
}

main().catch((error) => (status.textContent = `This page cannot compute here: ${error.message}`));
