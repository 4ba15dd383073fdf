// The page "In your browser": one network, the same noise through every solver. Beside this file lie network.onnx,
// solvers.json (solver files by name, noise), sampler.mjs and onnxruntime-web, which docs/_ext/browser.py writes.

const TEACHER = "Teacher";
const root = document.getElementById("sampler"), form = root.querySelector("form");
const status = root.querySelector("[role=status]"), body = root.querySelector("tbody");
const controls = root.querySelector("fieldset.controls"), offered = root.querySelector("fieldset.solvers");
const base = new URL("./", import.meta.url);

async function load(name) {
  const response = await fetch(new URL(name, base));
  if (!response.ok) throw new Error(`${name} is missing (${response.status})`);
  return response;
}

/** Standard normal numbers, by Box and Muller. */
function normal(count) {
  const radius = () => Math.sqrt(-2 * Math.log(1 - Math.random())), angle = () => 2 * Math.PI * Math.random();
  return Float32Array.from({ length: count }, () => radius() * Math.cos(angle()));
}

/** Draw images (K, side, side) in [-1, 1] beside each other. */
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

/** Add a solver to the choices. */
function offer(name) {
  const label = document.createElement("label"), box = document.createElement("input");
  Object.assign(box, { type: "checkbox", name: "solver", value: name, checked: true });
  label.append(box, ` ${name}`);
  offered.append(label);
}

/** Add a row of the table; returns what its heading and its cell are filled by. */
function addRow(name) {
  const row = body.insertRow(), heading = document.createElement("th");
  const title = document.createElement("strong"), detail = document.createElement("small");
  row.dataset.solver = title.textContent = name;
  row.classList.toggle("learned", name === "GS");
  heading.scope = "row";
  heading.append(title, detail);
  row.append(heading);
  return { detail, cell: row.insertCell() };
}

async function main() {
  const ort = await import(new URL("ort.wasm.min.mjs", base));
  const { entry, sample } = await import(new URL("sampler.mjs", base));
  ort.env.wasm.wasmPaths = base.href;
  ort.env.wasm.numThreads = 1; // more need a server that isolates the page
  const settings = await (await load("solvers.json")).json();
  const network = await (await load("network.onnx")).arrayBuffer(), size = network.byteLength;
  const session = await ort.InferenceSession.create(network);
  const { side, labels, model } = settings, count = labels.length, files = new Map(Object.entries(settings.rows));
  const label = new ort.Tensor("int64", BigInt64Array.from(labels, BigInt));
  const sampled = new Map(); // by table, until the noise changes
  let noise = Float32Array.from(settings.noise);

  async function denoise(x, t) {
    const inputs = { x: new ort.Tensor("float32", x, [count, 1, side, side]), label };
    const predictions = await session.run({ ...inputs, t: new ort.Tensor("float64", [t], [1]) });
    return Object.values(predictions)[0].data;
  }

  /** Sample by one solver and show it; returns images and seconds, or nothing where the file has no such table. */
  async function show(name, nfe, target) {
    const { detail, cell } = addRow(name), start = performance.now();
    try {
      const table = entry(files.get(name), nfe);
      if (!sampled.has(table)) {
        const images = await sample(denoise, noise.slice(), table);
        sampled.set(table, { images, seconds: (performance.now() - start) / 1000 });
      }
      const { images, seconds } = sampled.get(table);
      const error = target ? `, MSE ${mse(images, target).toPrecision(3)}` : "";
      detail.textContent = `${nfe} calls, ${seconds.toFixed(2)} s${error}`;
      cell.append(draw(images, side, count));
      root.samples.set(name, images);
      return { images, seconds };
    } catch (error) {
      detail.textContent = error.message;
      return undefined;
    }
  }

  async function run() {
    const nfe = Number(form.nfe.value), calls = files.get(TEACHER).solvers[0].nfe;
    const chosen = [...form.querySelectorAll("[name=solver]:checked")].map((box) => box.value);
    body.replaceChildren();
    root.samples = new Map();
    controls.disabled = true;
    status.textContent = "Sampling ...";
    const teacher = await show(TEACHER, calls, null);
    for (const name of chosen) {
      await new Promise((resolve) => setTimeout(resolve)); // lets the row before appear
      await show(name, nfe, teacher?.images);
    }
    body.append(body.firstChild);
    const each = (1000 * teacher?.seconds) / count / calls, learned = JSON.stringify(files.get("GS")).length;
    root.querySelector(".facts").textContent =
      `One call of the network takes ${each.toFixed(1)} ms a sample in this browser. The network has ` +
      `${(size / 1e6).toFixed(1)} MB, the file of GS ${(learned / 1e3).toFixed(0)} kB.`;
    status.textContent = "The same noise in every row; MSE is to the teacher.";
    controls.disabled = false;
  }

  /** Read a solver file of the visitor's: refuse what this network cannot run. */
  async function read(file) {
    if (file.size > 1 << 24) throw new Error("more than 16 MB are no solver file");
    const content = JSON.parse(await file.text());
    entry(content, Number(form.nfe.value));
    if (content.model?.name !== model) throw new Error(`the file is of model ${content.model?.name}, not ${model}`);
    if (content.guidance !== 1) throw new Error("the file is for guided predictions; this page has none");
    return content;
  }

  form.nfe.addEventListener("input", () => (form.calls.value = form.nfe.value));
  form.addEventListener("submit", (event) => (event.preventDefault(), run()));
  form.noise.addEventListener("click", () => ((noise = normal(noise.length)), sampled.clear(), run()));
  form.file.addEventListener("change", async () => {
    const [file] = form.file.files;
    if (!file) return;
    try {
      const content = await read(file), name = `your ${file.name}`;
      if (!files.has(name)) offer(name);
      files.set(name, content);
    } catch (error) {
      status.textContent = `${file.name}: ${error.message}`;
      return;
    }
    await run();
  });
  [...files.keys()].filter((name) => name !== TEACHER).forEach(offer);
  await run();
}

main().catch((error) => {
  status.textContent = `This page cannot compute (${error.message}): it needs onnxruntime-web, which make docs takes from npm.`;
});
