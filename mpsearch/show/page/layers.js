// Who got which bits and what that costs: bars in network order, and a table.

const BARS = { height: 172, bottom: 8, top: 22, left: 46 };
const MOST_BITS = 8;

class Layers {
  constructor(state) {
    this.state = state;
    this.root = byId("bars");
    this.svg = this.root.querySelector("svg");
    this.at = 0;
    this.name = "bits";
    byId("measure").addEventListener("change", (event) => {
      this.name = event.target.value;
      this.drawBars();
    });
    this.details = byId("table").closest("details");
    this.details.addEventListener("toggle", () => this.details.open && this.drawTable());
    this.root.addEventListener("keydown", (event) => this.key(event));
    this.root.addEventListener("pointermove", (event) => this.point(event));
    this.root.addEventListener("pointerdown", (event) => this.point(event));
    new ResizeObserver(() => this.drawBars()).observe(byId("scroll"));
  }

  draw() {
    const { run } = this.state;
    this.at = Math.min(this.at, run.layers.length - 1);
    this.measures = measuresOf(run);
    if (!this.measures.some((one) => one.name === this.name)) this.name = "bits";
    byId("measure").replaceChildren(...this.measures.map((one) => tag("option", { value: one.name }, one.title)));
    byId("measure").value = this.name;
    this.drawBars();
    this.drawShares();
    if (this.details.open) this.drawTable();
  }

  drawBars() {
    const { chosen } = this.state;
    const count = chosen.precisions.length;
    this.step = Math.max(7, (byId("scroll").clientWidth - BARS.left) / count);
    const width = BARS.left + this.step * count;
    this.root.style.width = `${width}px`;
    this.svg.replaceChildren();
    this.svg.setAttribute("width", width);
    const measure = this.measures.find((one) => one.name === this.name);
    const bits = this.name === "bits";
    const before = this.partner();
    const values = chosen.precisions.map((_, layer) => measure.value(chosen, layer) ?? 0);
    const others = before ? before.map((at) => (at ? measure.value(...at) : undefined)) : [];
    const most = bits ? MOST_BITS : Math.max(...values, ...others.filter((value) => value !== undefined)) || 1;
    const floor = BARS.height - BARS.bottom;
    const y = (value) => floor - ((floor - BARS.top) * Math.min(Math.max(value, 0), most)) / most;
    for (const value of bits ? [2, 4, 6, 8] : ticks(0, most * measure.scale, 4)) {
      const at = y(value / measure.scale);
      svg(this.svg, "line", { class: "grid", x1: BARS.left, x2: width, y1: at, y2: at });
      svg(this.svg, "text", { x: BARS.left - 6, y: at + 4, "text-anchor": "end" }, bits ? value : brief(value));
    }
    this.here = svg(this.svg, "rect", { class: "here", y: 4, height: BARS.height - 4, width: this.step });
    const gap = this.step > 10 ? 2 : 1;
    chosen.precisions.forEach((text, layer) => {
      const [weights, inputs] = widthsOf(text);
      const x = BARS.left + this.step * layer;
      const box = { x: x + gap / 2, width: this.step - gap, rx: 1.5 };
      const top = y(values[layer]);
      svg(this.svg, "rect", { class: `bits${shadeOf(weights)}`, ...box, y: top, height: floor - top });
      if (bits && inputs < 32) svg(this.svg, "line", { class: "inputs", x1: box.x, x2: box.x + box.width, y1: y(inputs), y2: y(inputs) });
      if (others[layer] !== undefined && others[layer] !== values[layer]) {
        svg(this.svg, "rect", { class: "before", ...box, y: y(others[layer]), height: floor - y(others[layer]) });
      }
      if (this.step >= 13) svg(this.svg, "text", { class: "count", x: x + this.step / 2, y: top - 4 }, weights);
    });
    this.mark();
  }

  // Where the configuration that it is compared with has these layers: itself and a number; undefined where it has not.
  partner() {
    const { chosen, pinned } = this.state;
    if (!pinned) return null;
    const known = new Map(pinned.run.layers.map((layer, l) => [layer.name, [pinned, l]]));
    return chosen.run.layers.map((layer) => known.get(layer.name));
  }

  // The other configuration's precision of a layer where it is another one.
  other(layer) {
    const at = this.partner()?.[layer];
    const text = at && at[0].precisions[at[1]];
    return text === this.state.chosen.precisions[layer] ? undefined : text;
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
      const colour = tag("i", { style: `background: var(--b${shadeOf(bits)})`, "aria-hidden": "true" });
      parts.push(tag("span", {}, colour, `${bits} bits: ${shareText(count / total)}`));
    }
    if (chosen.precisions.some((text) => widthsOf(text)[1] < 32)) parts.push(tag("span", {}, tag("i", { class: "stroke", "aria-hidden": "true" }), "bits of inputs"));
    if (this.state.pinned) parts.push(tag("span", {}, tag("i", { class: "outline", "aria-hidden": "true" }), "the other configuration"));
    byId("shares").replaceChildren(...parts);
  }

  drawTable() {
    const { chosen } = this.state;
    const { run } = chosen;
    const measures = this.measures.filter((one) => one.name !== "bits");
    const head = ["layer", "kind", "weights", "bits", ...measures.map((one) => `${one.title}${one.unit && `, ${one.unit}`}`)];
    byId("table").tHead.replaceChildren(tag("tr", {}, ...head.map((text, k) => tag("th", { scope: "col", ...(k > 1 && k !== 3 ? { class: "number" } : {}) }, text))));
    const rows = run.layers.map((layer, l) => {
      const other = this.other(l);
      const values = measures.map((one) => {
        const value = one.value(chosen, l);
        return value === undefined ? "" : one.name === "size_bytes" ? whole(value) : brief(value * one.scale);
      });
      return tag("tr", other ? { class: "changed" } : {},
        tag("th", { scope: "row" }, layer.name),
        tag("td", {}, layer.shape),
        tag("td", { class: "number" }, whole(layer.weights)),
        tag("td", {}, other ? `${chosen.precisions[l]}, other ${other}` : chosen.precisions[l]),
        ...values.map((value) => tag("td", { class: "number" }, value)));
    });
    byId("table").tBodies[0].replaceChildren(...rows);
  }

  // Says everything about the layer that is pointed at.
  mark() {
    const { chosen } = this.state;
    const { run } = chosen;
    const layer = run.layers[this.at];
    const [weights, inputs, coded] = widthsOf(chosen.precisions[this.at]);
    const other = this.other(this.at);
    const parts = [`${layer.shape}, ${whole(layer.weights)} weights at ${weights} bits${coded ? " each, entropy-coded" : ""}`, inputs < 32 ? `inputs at ${inputs} bits` : "float inputs"];
    for (const one of this.measures.filter(({ name }) => name !== "bits" && name !== "bops")) {
      const value = one.value(chosen, this.at);
      const share = chosen.costs[one.name] ? ` (${shareText(value / chosen.costs[one.name])})` : "";
      if (value !== undefined) parts.push(`${one.text(value)}${share}`);
    }
    if (other) parts.push(`${other} in the other configuration`);
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
