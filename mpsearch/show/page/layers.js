// Who got which bits: bars in network order, and the same as a table.

const BARS = { height: 172, bottom: 8, top: 22, left: 26 };
const MOST_BITS = 8;

class Layers {
  constructor(state) {
    this.state = state;
    this.root = byId("bars");
    this.svg = this.root.querySelector("svg");
    this.at = 0;
    this.root.addEventListener("keydown", (event) => this.key(event));
    this.root.addEventListener("pointermove", (event) => this.point(event));
    this.root.addEventListener("pointerdown", (event) => this.point(event));
    new ResizeObserver(() => this.drawBars()).observe(byId("scroll"));
  }

  draw() {
    this.at = Math.min(this.at, this.state.run.layers.length - 1);
    this.drawBars();
    this.drawShares();
    this.drawTable();
  }

  drawBars() {
    const { chosen } = this.state;
    const count = chosen.precisions.length;
    this.step = Math.max(7, (byId("scroll").clientWidth - BARS.left) / count);
    const width = BARS.left + this.step * count;
    this.root.style.width = `${width}px`;
    this.svg.replaceChildren();
    this.svg.setAttribute("width", width);
    const scale = (BARS.height - BARS.top - BARS.bottom) / MOST_BITS;
    const y = (bits) => BARS.height - BARS.bottom - scale * Math.min(bits, MOST_BITS);
    for (const bits of [2, 4, 6, 8]) {
      svg(this.svg, "line", { class: "grid", x1: BARS.left, x2: width, y1: y(bits), y2: y(bits) });
      svg(this.svg, "text", { x: BARS.left - 8, y: y(bits) + 4, "text-anchor": "end" }, bits);
    }
    this.here = svg(this.svg, "rect", { class: "here", y: 4, height: BARS.height - 4, width: this.step });
    const before = this.partner();
    const gap = this.step > 10 ? 2 : 1;
    chosen.precisions.forEach((text, layer) => {
      const [weights, inputs] = widthsOf(text);
      const x = BARS.left + this.step * layer;
      const box = { x: x + gap / 2, width: this.step - gap, rx: 1.5 };
      svg(this.svg, "rect", { class: `bits${weights}`, ...box, y: y(weights), height: BARS.height - BARS.bottom - y(weights) });
      if (inputs < 32) svg(this.svg, "line", { class: "inputs", x1: x + gap / 2, x2: x + this.step - gap / 2, y1: y(inputs), y2: y(inputs) });
      if (before && before[layer] !== undefined && before[layer] !== text) {
        const was = widthsOf(before[layer])[0];
        svg(this.svg, "rect", { class: "before", ...box, y: y(was), height: BARS.height - BARS.bottom - y(was) });
      }
      if (this.step >= 13) svg(this.svg, "text", { class: "count", x: x + this.step / 2, y: y(weights) - 4 }, weights);
    });
    this.mark();
  }

  // The precisions of the configuration that it is compared with, layer by layer; undefined where it has no such layer.
  partner() {
    const { chosen, pinned } = this.state;
    if (!pinned) return null;
    if (pinned.run === chosen.run) return pinned.precisions;
    const known = new Map(pinned.run.layers.map((layer, l) => [layer.name, pinned.precisions[l]]));
    return chosen.run.layers.map((layer) => known.get(layer.name));
  }

  drawShares() {
    const { chosen } = this.state;
    const weights = new Map();
    chosen.run.layers.forEach((layer, l) => {
      const bits = widthsOf(chosen.precisions[l])[0];
      weights.set(bits, (weights.get(bits) || 0) + layer.weights);
    });
    const total = chosen.run.weights;
    const parts = [tag("span", {}, "share of the weights:")];
    for (const [bits, count] of [...weights].sort((a, b) => a[0] - b[0])) {
      const colour = tag("i", { style: `background: var(--b${bits})`, "aria-hidden": "true" });
      parts.push(tag("span", {}, colour, `${bits} bits: ${shareText(count / total)}`));
    }
    if (chosen.precisions.some((text) => widthsOf(text)[1] < 32)) parts.push(tag("span", {}, tag("i", { class: "stroke", "aria-hidden": "true" }), "bits of inputs"));
    if (this.state.pinned) parts.push(tag("span", {}, tag("i", { class: "outline", "aria-hidden": "true" }), "the other configuration"));
    byId("shares").replaceChildren(...parts);
  }

  drawTable() {
    const { chosen } = this.state;
    const { run } = chosen;
    const before = this.partner();
    const costs = run.costs.filter((cost) => cost.name !== "mean_bits");
    const head = ["layer", "kind", "weights", "bits", ...costs.map((cost) => (cost.name === "size_bytes" ? "bytes" : `${cost.title}, ${cost.unit}`))];
    byId("table").tHead.replaceChildren(tag("tr", {}, ...head.map((text, k) => tag("th", { scope: "col", ...(k > 1 && k !== 3 ? { class: "number" } : {}) }, text))));
    const rows = run.layers.map((layer, l) => {
      const text = chosen.precisions[l];
      const changed = before && before[l] !== undefined && before[l] !== text;
      const values = costs.map((cost) => {
        const value = layerCost(chosen, cost, l);
        if (value === undefined) return "";
        return cost.name === "size_bytes" ? whole(value) : digits(value * cost.scale, 3);
      });
      return tag("tr", changed ? { class: "changed" } : {},
        tag("th", { scope: "row" }, layer.name),
        tag("td", {}, layer.shape),
        tag("td", { class: "number" }, whole(layer.weights)),
        tag("td", {}, changed ? `${text}, other ${before[l]}` : text),
        ...values.map((value) => tag("td", { class: "number" }, value)));
    });
    byId("table").tBodies[0].replaceChildren(...rows);
  }

  // Says everything about the layer that is pointed at.
  mark() {
    const { chosen } = this.state;
    const { run } = chosen;
    const layer = run.layers[this.at];
    const [weights, inputs] = widthsOf(chosen.precisions[this.at]);
    const before = this.partner()?.[this.at];
    const parts = [`${layer.shape}, ${whole(layer.weights)} weights at ${weights} bits`, inputs < 32 ? `inputs at ${inputs} bits` : "float inputs"];
    for (const cost of run.costs.filter((one) => one.name !== "mean_bits" && one.name !== "bops")) {
      const value = layerCost(chosen, cost, this.at);
      if (value !== undefined) parts.push(`${costText(cost, value, true)} (${((100 * value) / chosen.costs[cost.name]).toFixed(1)} %)`);
    }
    if (before !== undefined && before !== chosen.precisions[this.at]) parts.push(`${before} in the other configuration`);
    byId("one").replaceChildren(tag("strong", {}, layer.name), `: ${parts.join(", ")}`);
    this.here.setAttribute("x", BARS.left + this.step * this.at);
    this.root.setAttribute("aria-valuemin", 1);
    this.root.setAttribute("aria-valuemax", run.layers.length);
    this.root.setAttribute("aria-valuenow", this.at + 1);
    this.root.setAttribute("aria-valuetext", `${layer.name}: ${parts.join(", ")}`);
  }

  point(event) {
    const x = event.clientX - this.root.getBoundingClientRect().left - BARS.left;
    this.at = Math.min(Math.max(Math.floor(x / this.step), 0), this.state.run.layers.length - 1);
    this.mark();
  }

  key(event) {
    const last = this.state.run.layers.length - 1;
    const steps = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, PageUp: 10, PageDown: -10, Home: -last, End: last };
    if (!(event.key in steps) || event.ctrlKey || event.altKey || event.metaKey) return;
    this.at = Math.min(Math.max(this.at + steps[event.key], 0), last);
    this.mark();
    const left = BARS.left + this.step * this.at;
    const view = byId("scroll");
    if (left < view.scrollLeft || left + this.step > view.scrollLeft + view.clientWidth) view.scrollLeft = left - view.clientWidth / 2;
    event.preventDefault();
  }
}
