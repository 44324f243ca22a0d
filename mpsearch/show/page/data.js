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
  const run = { ...data, number, colour: `var(--run${number % 8})`, loss, columns, count, costs, orders: {} };
  run.widths = data.precisions.map((text) => text.match(/^W(\d+)A(\d+)$/).slice(1).map(Number));
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

const widthsOf = (text) => text.match(/^W(\d+)A(\d+)$/).slice(1).map(Number);

// What a layer costs at a precision; undefined where the run did not price that.
function layerCost(point, cost, layer) {
  const at = point.run.precisions.indexOf(point.precisions[layer]);
  return at < 0 ? undefined : cost.by[layer * point.run.precisions.length + at];
}

// Configurations by ascending cost, and among equals by falling loss.
function orderBy(run, cost) {
  const total = run.cost(cost).total;
  run.orders[cost] ||= Uint32Array.from({ length: run.count }, (_, i) => i).sort(
    (a, b) => total[a] - total[b] || run.loss[b] - run.loss[a],
  );
  return run.orders[cost];
}

const withinLimit = (value, limit) => value <= limit * (1 + 1e-12);

function fits(run, limits, index) {
  return run.costs.every((cost) => !(cost.name in limits) || withinLimit(cost.total[index], limits[cost.name]));
}

// The configuration with the least loss within all limits; null where there is none.
function bestWithin(run, limits) {
  let best = null;
  for (let i = 0; i < run.count; i++) {
    if ((best === null || run.loss[i] < run.loss[best]) && fits(run, limits, i)) best = i;
  }
  return best;
}

// The assignment as mpsearch reads it. Written by hand: an object would put names that are numbers first.
function bitsText(point) {
  const lines = point.run.layers.map((layer, l) => ` ${JSON.stringify(layer.name)}: ${JSON.stringify(point.precisions[l])}`);
  return `{\n${lines.join(",\n")}\n}\n`;
}
