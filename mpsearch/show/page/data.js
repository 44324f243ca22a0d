// Runs as the page holds them: columns are unpacked, and every cost of every configuration is summed over the layers.

const COLUMNS = { u1: Uint8Array, f4: Float32Array, f8: Float64Array };

async function unpacked(column) {
  const packed = Uint8Array.from(atob(column.data), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new COLUMNS[column.type](await new Response(stream).arrayBuffer());
}

async function loadRun(data, number) {
  const layers = data.layers.length;
  const loss = await unpacked(data.loss);
  const columns = await unpacked(data.bits); // layer by layer: the choices of all configurations
  const count = loss.length;
  const costs = [];
  for (const cost of data.costs) {
    const by = await unpacked(cost.by_layer);
    const total = new Float64Array(count).fill(cost.fixed);
    for (let l = 0; l < layers; l++) {
      for (let i = 0; i < count; i++) total[i] += by[l * data.precisions.length + columns[l * count + i]];
    }
    costs.push({ ...cost, by, total });
  }
  const alone = await unpacked(data.alone); // layer by layer: predicted loss without interactions
  const run = { ...data, alone, number, colour: `var(--run${number % 8})`, loss, columns, count, costs, orders: {} };
  run.weights = data.layers.reduce((sum, layer) => sum + layer.weights, 0);
  run.finishedAt = new Map(data.finished.filter((f) => f.index !== null).reverse().map((f) => [f.index, f]));
  run.cost = (name) => costs.find((cost) => cost.name === name);
  return run;
}

// A configuration, of the front or finished beside it: its precisions as text and what it costs by name.
function pointOf(run, index) {
  const precisions = run.layers.map((_, l) => run.precisions[run.columns[l * run.count + index]]);
  const costs = Object.fromEntries(run.costs.map((cost) => [cost.name, cost.total[index]]));
  return { run, index, precisions, costs, loss: run.loss[index], finished: run.finishedAt.get(index) || null };
}

function finishedPoint(run, finished) {
  if (finished.index !== null) return pointOf(run, finished.index);
  return { run, index: null, precisions: finished.precisions, costs: finished.costs, loss: null, finished };
}

function nameOf(point) {
  return point.index === null ? point.finished.name : `point ${point.index}`;
}

// `W4A8`, or `R2.5A8` where weights are entropy-coded: bits of a weight and of inputs, and whether the former is a rate.
function widthsOf(text) {
  const [, kind, weights, inputs] = text.match(/^([WR])([\d.]+)A(\d+)$/);
  return [Number(weights), Number(inputs), kind === "R"];
}

// The colour of a number of bits, whole or not.
const shadeOf = (bits) => (bits > 8 ? 32 : Math.min(8, Math.max(2, Math.round(bits))));

// What layers can be compared by. The value of a layer is undefined where the run knows none for its precision.
function measuresOf(run) {
  const at = (point, layer) => point.run.precisions.indexOf(point.precisions[layer]);
  const found = (by, point, layer) => (at(point, layer) < 0 ? undefined : by[layer * point.run.precisions.length + at(point, layer)]);
  const costs = run.costs.filter((cost) => cost.name !== "mean_bits").map((cost) => ({
    name: cost.name,
    title: cost.name === "size_bytes" ? "bytes" : cost.title,
    unit: cost.name === "size_bytes" ? "" : cost.unit,
    scale: cost.name === "size_bytes" ? 1 : cost.scale,
    value: (point, layer) => {
      const own = point.run.cost(cost.name);
      return own && found(own.by, point, layer);
    },
    text: (value) => costText(cost, value, true),
  }));
  return [
    { name: "bits", title: "bits", unit: "", scale: 1, value: (point, layer) => widthsOf(point.precisions[layer])[0], text: (value) => `${value} bits` },
    ...costs,
    { name: "alone", title: "loss alone", unit: "nats", scale: 1, value: (point, layer) => found(point.run.alone, point, layer), text: (value) => `predicted loss alone ${lossText(value)}` },
  ];
}

// Configurations by ascending cost, among equals by falling loss, and where each of them stands.
function orderBy(run, cost) {
  if (!run.orders[cost]) {
    const { total } = run.cost(cost);
    const sorted = Uint32Array.from({ length: run.count }, (_, i) => i).sort((a, b) => total[a] - total[b] || run.loss[b] - run.loss[a]);
    const place = new Uint32Array(run.count);
    sorted.forEach((index, at) => (place[index] = at));
    run.orders[cost] = { sorted, place };
  }
  return run.orders[cost];
}

const withinLimit = (value, limit) => value <= limit * (1 + 1e-12);

// Which configurations are within all limits, 1 each, and the one with the least loss of them; null where there is none.
function inside(run, limits) {
  const key = JSON.stringify(limits);
  if (run.inside?.key !== key) {
    const fits = new Uint8Array(run.count).fill(1);
    for (const { name, total } of run.costs.filter((cost) => cost.name in limits)) {
      for (let i = 0; i < run.count; i++) if (!withinLimit(total[i], limits[name])) fits[i] = 0;
    }
    let best = null;
    for (let i = 0; i < run.count; i++) if (fits[i] && (best === null || run.loss[i] < run.loss[best])) best = i;
    run.inside = { key, fits, best };
  }
  return run.inside;
}

// The assignment as mpsearch reads it. Written by hand: an object would put names that are numbers first.
function bitsText(point) {
  const lines = point.run.layers.map((layer, l) => ` ${JSON.stringify(layer.name)}: ${JSON.stringify(point.precisions[l])}`);
  return `{\n${lines.join(",\n")}\n}\n`;
}
