// The page "In your browser": one network, the same noise through every solver. Beside this file lie sampler.mjs and
// onnxruntime-web, and for each model a folder with network.onnx and solvers.json (solver files by name, noise), and
// decoder.onnx if it samples latents: docs/_ext/browser.py writes them.

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

/** Tokens of a prompt, as the tokenizer of `emoji` has them: an end, a start, an unknown word, then the known ones. */
function tokenize(prompt, vocabulary, length) {
  const words = prompt.toLowerCase().replaceAll("'", "").split(/[^a-z0-9]+/).filter(Boolean);
  const known = words.map((word) => Math.max(vocabulary.indexOf(word), 2)).slice(0, length - 2);
  return Object.assign(new Array(length).fill(0), [1, ...known]).map(BigInt);
}

/** Draw images (K, channels, side, side) in [-1, 1], gray or in color, beside each other. */
function draw({ data, dims: [count, channels, side] }) {
  const canvas = document.createElement("canvas"), gap = 2, area = side * side;
  canvas.width = count * (side + gap) - gap;
  canvas.height = side;
  const context = canvas.getContext("2d");
  for (let k = 0; k < count; k++) {
    const pixels = context.createImageData(side, side);
    for (let i = 0; i < area; i++) {
      const color = [0, 1, 2].map((c) => 127.5 * (1 + data[(k * channels + Math.min(c, channels - 1)) * area + i]));
      pixels.data.set([...color, 255], 4 * i);
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

/** Return a function that counts the bytes of WebAssembly made from now on: onnxruntime-web does not report it. */
function watchMemory() {
  const memories = [];
  WebAssembly.Memory = class extends WebAssembly.Memory {
    constructor(descriptor) {
      memories.push(super(descriptor));
    }
  };
  return () => memories.reduce((bytes, memory) => bytes + memory.buffer.byteLength, 0);
}

/** A model of the page: its network, its solver files by name, and the noise that all of them start from. */
class Model {
  constructor(ort, settings, sessions, bytes) {
    Object.assign(this, settings, { ort, bytes }, sessions);
    this.files = new Map(Object.entries(settings.rows));
    this.renew(Float32Array.from(settings.noise));
  }

  static async open(ort, name) {
    const settings = await (await load(`${name}/solvers.json`)).json(), sessions = {};
    let bytes = 0;
    for (const part of settings.prompts ? ["network", "decoder"] : ["network"]) {
      const graph = await (await load(`${name}/${part}.onnx`)).arrayBuffer();
      bytes += graph.byteLength;
      sessions[part] = await ort.InferenceSession.create(graph);
    }
    return new Model(ort, settings, sessions, bytes);
  }

  renew(noise) {
    const { prompts, vocabulary, tokens, count } = this;
    const numbers = prompts ? prompts.flatMap((text) => tokenize(text, vocabulary, tokens)) : this.conditions.map(BigInt);
    this.condition = new this.ort.Tensor("int64", BigInt64Array.from(numbers), prompts ? [count, tokens] : [count]);
    this.noise = noise;
    this.sampled = new Map(); // by table, until noise or prompts change
  }

  get count() {
    return (this.prompts ?? this.conditions).length;
  }

  /** Take as many prompts as there are pictures, from the first on again where they are fewer; return those in use. */
  prompt(text) {
    const prompts = text.split(",").map((part) => part.trim()).filter(Boolean);
    if (prompts.length) this.prompts = this.prompts.map((_, k) => prompts[k % prompts.length]);
    this.renew(this.noise);
    return [...new Set(this.prompts)].join(", ");
  }

  async denoise(x, t) {
    const { Tensor } = this.ort, { condition } = this;
    const inputs = { x: new Tensor("float32", x, [this.count, ...this.shape]), t: new Tensor("float64", [t], [1]) };
    return Object.values(await this.network.run({ ...inputs, condition }))[0].data;
  }

  /** Return samples, the pictures of them and the seconds that they took, by one table. */
  async sample(sampler, table) {
    if (!this.sampled.has(table)) {
      const start = performance.now();
      const samples = await sampler((x, t) => this.denoise(x, t), this.noise.slice(), table);
      const seconds = (performance.now() - start) / 1000;
      const x = new this.ort.Tensor("float32", samples, [this.count, ...this.shape]);
      const pictures = this.decoder ? Object.values(await this.decoder.run({ x }))[0] : x;
      this.sampled.set(table, { samples, pictures, seconds });
    }
    return this.sampled.get(table);
  }
}

async function main() {
  const memory = watchMemory();
  const ort = await import(new URL("ort.wasm.min.mjs", base));
  const { entry, sample } = await import(new URL("sampler.mjs", base));
  ort.env.wasm.wasmPaths = base.href;
  ort.env.wasm.numThreads = 1; // more need a server that isolates the page
  const models = new Map();
  let model;

  /** Sample by one solver and show it; returns samples and seconds, or nothing where the file has no such table. */
  async function show(name, nfe, target) {
    const { detail, cell } = addRow(name);
    try {
      const { samples, pictures, seconds } = await model.sample(sample, entry(model.files.get(name), nfe));
      const error = target ? `, MSE ${mse(samples, target).toPrecision(3)}` : "";
      detail.textContent = `${nfe} calls, ${seconds.toFixed(2)} s${error}`;
      cell.append(draw(pictures));
      root.samples.set(name, samples);
      return { samples, seconds };
    } catch (error) {
      detail.textContent = error.message;
      return undefined;
    }
  }

  /** Choose a model, which is fetched the first time. */
  async function choose(name) {
    controls.disabled = true;
    status.textContent = `Loading the network ${name} ...`;
    if (!models.has(name)) models.set(name, await Model.open(ort, name));
    model = models.get(name);
    const { nfes, prompts } = model;
    Object.assign(form.nfe, { min: Math.min(...nfes), max: Math.max(...nfes) });
    form.calls.value = form.nfe.value;
    root.querySelector(".prompts").hidden = !prompts;
    form.prompts.value = prompts?.join(", ") ?? "";
    offered.querySelectorAll("label").forEach((label) => label.remove());
    [...model.files.keys()].filter((file) => file !== TEACHER).forEach(offer);
    await run();
  }

  async function run() {
    const nfe = Number(form.nfe.value), calls = model.files.get(TEACHER).solvers[0].nfe;
    const chosen = [...form.querySelectorAll("[name=solver]:checked")].map((box) => box.value);
    body.replaceChildren();
    root.samples = new Map();
    controls.disabled = true;
    status.textContent = "Sampling ...";
    const teacher = await show(TEACHER, calls, null);
    for (const name of chosen) {
      await new Promise((resolve) => setTimeout(resolve)); // lets the row before appear
      await show(name, nfe, teacher?.samples);
    }
    body.append(body.firstChild);
    const each = (1000 * teacher?.seconds) / model.count / calls;
    const learned = JSON.stringify(model.files.get("GS")).length;
    const guided = model.guidance === 1 ? "" : `, of two forward passes at guidance ${model.guidance},`;
    root.querySelector(".facts").textContent =
      `One call of the network${guided} takes ${each.toFixed(1)} ms a sample in this browser. The network has ` +
      `${(model.bytes / 1e6).toFixed(1)} MB, the file of GS ${(learned / 1e3).toFixed(0)} kB; ` +
      `onnxruntime-web holds ${(memory() / 1e6).toFixed(0)} MB of memory for all networks loaded.`;
    const compared = model.decoder ? "MSE of latents" : "MSE";
    status.textContent = `The same noise in every row; ${compared} is to the teacher.`;
    controls.disabled = false;
  }

  /** Read a solver file of the visitor's: refuse what this network cannot run. */
  async function read(file) {
    if (file.size > 1 << 24) throw new Error("more than 16 MB are no solver file");
    const content = JSON.parse(await file.text());
    entry(content, Number(form.nfe.value));
    const { name } = content.model ?? {};
    if (name !== model.model) throw new Error(`the file is of model ${name}, not ${model.model}`);
    if (content.guidance !== model.guidance)
      throw new Error(`the file is for guidance ${content.guidance}; the page samples at ${model.guidance}`);
    return content;
  }

  form.nfe.addEventListener("input", () => (form.calls.value = form.nfe.value));
  form.model.addEventListener("change", async () => {
    try {
      await choose(form.model.value);
    } catch (error) {
      status.textContent = `${form.model.value} cannot be loaded: ${error.message}`;
      form.model.value = model.model;
      controls.disabled = false;
    }
  });
  form.prompts.addEventListener("change", () => (form.prompts.value = model.prompt(form.prompts.value)));
  form.addEventListener("submit", (event) => (event.preventDefault(), run()));
  form.noise.addEventListener("click", () => (model.renew(normal(model.noise.length)), run()));
  form.file.addEventListener("change", async () => {
    const [file] = form.file.files;
    if (!file) return;
    controls.disabled = true;
    try {
      const content = await read(file), name = `your ${file.name}`;
      if (!model.files.has(name)) offer(name);
      model.files.set(name, content);
    } catch (error) {
      status.textContent = `${file.name}: ${error.message}`;
      controls.disabled = false;
      return;
    }
    await run();
  });
  await choose(form.model.value);
}

main().catch((error) => {
  status.textContent = `This page cannot compute (${error.message}): it needs onnxruntime-web, which make docs takes from npm.`;
});
