// A solver file needs no library: this samples from one in plain JavaScript, in Node.js and in browsers.
//
// `node sampler.mjs digits.json` runs every solver of a file of gas.save. To use it elsewhere, import `entry` and
// `sample` and hand over your network: `denoise(x, t)` takes and returns a Float32Array or Float64Array of any length. A
// solver with branches calls `denoise(x, t, branch)`, one forward pass. One with residuals calls `correct(row, history)`,
// which returns the residual of the row, as `gas export --residual` writes it, of the arrays in `history`. A file of a range
// of guidance scales runs its own `guidance` here: `terms` are not read (`gas.load(path).at(scale)` has another scale's).

/** Return the entry of one NFE of a parsed solver file, or of as many forward passes if `branched`: its times, and its
 * weights of past states and predictions. */
export function entry(file, nfe, branched = false) {
  if (file?.format !== "gas-solver" || file.version !== 1) throw new Error("not a solver file of version 1");
  const table = file.solvers.find((solver) => solver.nfe === nfe && "branches" in solver === branched);
  const name = (count, branches) => (branches ? `${count} forward passes` : `NFE ${count}`);
  const has = file.solvers.map((solver) => name(solver.nfe, solver.branches)).join(", ");
  if (!table) throw new Error(`the solver file has no table for ${name(nfe, branched)}; it has ${has}`);
  return table;
}

/** sum_j weights[j] history[j] into `out`; terms of weight zero are skipped. */
function accumulate(out, weights, history) {
  weights.forEach((weight, j) => {
    if (weight !== 0) for (let i = 0; i < out.length; i++) out[i] += weight * history[j][i];
  });
}

/** Add the residual of a row, if it has one, of the first states and the newest predictions that it reads. */
async function lift(next, row, solver, correct, states, outputs) {
  const residual = solver.residuals?.find((each) => each.row === row)?.config;
  if (!residual) return;
  if (!correct) throw new Error("this solver has residuals: pass correct(row, history)");
  const history = [...states.slice(0, residual.states), ...outputs.slice(outputs.length - residual.outputs)];
  (await correct(row, history)).forEach((value, i) => (next[i] += value));
}

/** Run one entry from the start `x`: row n calls the network once and sums all states and predictions so far, in float64. */
export async function sample(denoise, x, solver, correct) {
  const states = [x.slice()], outputs = [];
  await lift(states[0], -1, solver, correct, [x], []);
  for (let n = 0; n < solver.nfe; n++) {
    // Copies: the network may overwrite its input, and its next prediction this one.
    const output = Float64Array.from(await denoise(states[n].slice(), solver.times[n], solver.branches?.[n]));
    if (output.length !== x.length) throw new Error(`denoise must return ${x.length} numbers, got ${output.length}`);
    outputs.push(output);
    const next = new Float64Array(x.length);
    accumulate(next, solver.states[n], states);
    accumulate(next, solver.outputs[n], outputs);
    await lift(next, n, solver, correct, states, outputs);
    states.push(x.constructor.from(next));
  }
  return states[solver.nfe];
}

// Run as a program: with a denoiser of one picture, which every solver must reach.
const program = globalThis.process?.argv[1];
if (program && import.meta.url === (await import("node:url")).pathToFileURL(program).href) {
  const file = JSON.parse((await import("node:fs")).readFileSync(process.argv[2], "utf8"));
  const picture = Float64Array.of(-1, -0.5, 0, 0.5, 1), noise = Float64Array.of(0.3, -1.2, 0.8, 2.1, -0.4);
  for (const { nfe, branches } of file.solvers) {
    const x = await sample(() => picture, noise, entry(file, nfe, Boolean(branches)));
    const farthest = Math.max(...x.map((value, i) => Math.abs(value - picture[i])));
    console.log(`NFE ${nfe}: farthest from the picture by ${farthest.toExponential(1)}`);
  }
}
