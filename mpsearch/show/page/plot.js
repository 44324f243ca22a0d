// The front: points on a canvas, and over it what moves, as SVG.

const MARGIN = { left: 62, right: 16, top: 14, bottom: 44 };
const DOT = 1.6;

class Plot {
  constructor(state) {
    this.state = state;
    this.root = byId("plot");
    this.canvas = this.root.querySelector("canvas");
    this.svg = this.root.querySelector("svg");
    this.hint = byId("hint");
    this.root.addEventListener("pointerdown", (event) => this.press(event));
    this.root.addEventListener("pointermove", (event) => this.move(event));
    this.root.addEventListener("pointerleave", () => this.leave());
    this.root.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.draw()).observe(this.root.parentElement);
  }

  // Where everything stands: scales, and the points of all runs in pixels.
  layout() {
    const { runs, across } = this.state;
    this.width = this.root.clientWidth;
    this.height = Math.round(Math.min(460, Math.max(280, this.width * 0.6)));
    this.root.style.height = `${this.height}px`;
    const shown = runs.filter((run) => run.cost(across));
    let [low, high, least, most] = [Infinity, -Infinity, Infinity, 0];
    const extend = (x, y) => {
      if (x < low) low = x;
      if (x > high) high = x;
      if (y > 0 && y < least) least = y;
      if (y > most) most = y;
    };
    for (const run of shown) {
      const total = run.cost(across).total;
      for (let i = 0; i < run.count; i++) extend(total[i], run.loss[i]);
      for (const one of this.drawn(run)) extend(one.costs[across], one.kl);
    }
    if (least === Infinity) least = 1e-9;
    const pad = (high - low) * 0.02 || Math.abs(high) * 0.02 || 1;
    Object.assign(this, { low: low - pad, high: high + pad, least: least / 1.25, most: Math.max(most, least) * 1.25 });
    const inner = { x: this.width - MARGIN.left - MARGIN.right, y: this.height - MARGIN.top - MARGIN.bottom };
    const logs = [Math.log(this.least), Math.log(this.most)];
    this.x = (value) => MARGIN.left + ((value - this.low) / (this.high - this.low)) * inner.x;
    this.y = (value) => MARGIN.top + ((logs[1] - Math.log(Math.max(value, this.least))) / (logs[1] - logs[0])) * inner.y;
    this.placed = shown.map((run) => {
      const total = run.cost(across).total;
      return { run, xs: Float32Array.from(total, this.x), ys: Float32Array.from(run.loss, this.y) };
    });
  }

  // What is finished and has a place here.
  drawn(run) {
    return run.finished.filter((one) => this.state.across in one.costs && one.kl !== null);
  }

  draw() {
    this.layout();
    this.drawPoints();
    this.svg.replaceChildren();
    this.drawAxes();
    this.drawMarks();
    this.moving = svg(this.svg, "g", {});
    this.near = svg(this.svg, "circle", { class: "near", r: 6, visibility: "hidden" });
    this.show();
  }

  drawPoints() {
    const { run: active, limits } = this.state;
    const ratio = window.devicePixelRatio || 1;
    this.canvas.width = this.width * ratio;
    this.canvas.height = this.height * ratio;
    const context = this.canvas.getContext("2d");
    context.scale(ratio, ratio);
    const styles = getComputedStyle(document.documentElement);
    const colour = (name) => styles.getPropertyValue(name).trim();
    const order = [...this.placed].sort((a, b) => (a.run === active) - (b.run === active));
    const fits = new Map(order.map(({ run }) => [run, inside(run, limits).fits]));
    for (const within of [0, 1]) {
      for (const { run, xs, ys } of order) {
        context.fillStyle = colour(`--run${run.number % 8}`);
        for (let i = 0; i < run.count; i++) {
          if (fits.get(run)[i] === within) context.fillRect(xs[i] - DOT, ys[i] - DOT, 2 * DOT, 2 * DOT);
        }
      }
      if (within) continue;
      context.globalAlpha = 0.68; // a veil over what is beyond the limits
      context.fillStyle = colour("--card");
      context.fillRect(0, 0, this.width, this.height);
      context.globalAlpha = 1;
    }
  }

  drawAxes() {
    const cost = this.state.run.cost(this.state.across);
    const bottom = this.height - MARGIN.bottom;
    for (const value of logTicks(this.least, this.most)) {
      svg(this.svg, "line", { class: "grid", x1: MARGIN.left, x2: this.width - MARGIN.right, y1: this.y(value), y2: this.y(value) });
      svg(this.svg, "text", { x: MARGIN.left - 7, y: this.y(value) + 4, "text-anchor": "end" }, value < 1e-3 ? value.toExponential(0) : String(value));
    }
    for (const value of ticks(this.low * cost.scale, this.high * cost.scale, this.width < 480 ? 4 : 8)) {
      const x = this.x(value / cost.scale);
      svg(this.svg, "line", { class: "axis", x1: x, x2: x, y1: bottom, y2: bottom + 5 });
      svg(this.svg, "text", { x, y: bottom + 19, "text-anchor": "middle" }, String(value));
    }
    svg(this.svg, "line", { class: "axis", x1: MARGIN.left, x2: this.width - MARGIN.right, y1: bottom, y2: bottom });
    svg(this.svg, "text", { x: (this.width + MARGIN.left) / 2, y: this.height - 6, "text-anchor": "middle" }, cost.axis);
    const middle = (bottom + MARGIN.top) / 2;
    svg(this.svg, "text", { x: 14, y: middle, transform: `rotate(-90 14 ${middle})`, "text-anchor": "middle" }, "KL divergence, nats");
  }

  drawMarks() {
    const { runs, across, limits, run: active } = this.state;
    if (across in limits && limits[across] >= this.low && limits[across] <= this.high) {
      const x = this.x(limits[across]);
      svg(this.svg, "line", { class: "limit", x1: x, x2: x, y1: MARGIN.top, y2: this.height - MARGIN.bottom });
    }
    for (const { name, costs, loss } of active.references) {
      const [x, y] = [this.x(costs[across]), this.y(loss)];
      if (!(x >= MARGIN.left && x <= this.width - MARGIN.right && loss <= this.most)) continue;
      svg(this.svg, "rect", { class: "reference", x: x - 4, y: y - 4, width: 8, height: 8 });
      svg(this.svg, "text", { class: "reference-name", x, y: y - 8, "text-anchor": "middle" }, name);
    }
    for (const run of runs) {
      for (const one of this.drawn(run)) {
        const [x, y] = [this.x(one.costs[across]), this.y(one.kl)];
        const line = runs.length > 1 ? { style: `stroke: ${run.colour}` } : {};
        if (one.index !== null) svg(this.svg, "line", { class: "from", ...line, x1: x, x2: x, y1: this.y(run.loss[one.index]), y2: y });
        const own = runs.length > 1 ? { style: `fill: ${run.colour}` } : {};
        svg(this.svg, "path", { class: "finished", ...own, d: `M${x} ${y - 7}l7 7l-7 7l-7 -7z` });
        const room = x > MARGIN.left + 70; // fronts fall to the right: there is room below and left
        if (one.label) svg(this.svg, "text", { class: "value", ...own, x: room ? x - 10 : x, y: room ? y + 6 : y + 21, "text-anchor": room ? "end" : "middle" }, one.label);
      }
    }
  }

  // Marks the chosen configuration and the one that it is compared with.
  show() {
    const { chosen, pinned, across } = this.state;
    this.moving.replaceChildren();
    for (const [point, name] of [[pinned, "pinned"], [chosen, "chosen"]]) {
      const loss = point && (point.loss ?? point.finished.kl);
      if (!point || loss === null || !(across in point.costs)) continue;
      const at = { cx: this.x(point.costs[across]), cy: this.y(loss) };
      svg(this.moving, "circle", { class: name, r: 9, ...at });
      if (name === "chosen") svg(this.moving, "circle", { class: "chosen-dot", r: 2.5, ...at });
    }
    const { run } = chosen;
    this.root.setAttribute("aria-valuemin", 0);
    this.root.setAttribute("aria-valuemax", run.count - 1);
    this.root.setAttribute("aria-valuenow", chosen.index === null ? 0 : orderBy(run, across).place[chosen.index]);
    this.root.setAttribute("aria-valuetext", this.state.sentence(chosen));
  }

  nearest(event) {
    const box = this.root.getBoundingClientRect();
    const [px, py] = [event.clientX - box.left, event.clientY - box.top];
    let best = null;
    let distance = Infinity;
    for (const { run, xs, ys } of this.placed) {
      for (let i = 0; i < run.count; i++) {
        const d = (xs[i] - px) ** 2 + 0.3 * (ys[i] - py) ** 2; // fronts are steep: across counts more
        if (d < distance) [distance, best] = [d, { run, index: i, x: xs[i], y: ys[i] }];
      }
    }
    return best;
  }

  press(event) {
    if (event.button) return;
    this.root.focus({ preventScroll: true });
    this.root.setPointerCapture(event.pointerId);
    this.leave();
    const { run, index } = this.nearest(event);
    this.state.choose(run, index);
  }

  // Pointers move more often than pictures are shown: the last place before each picture counts.
  move(event) {
    if (!this.moved) requestAnimationFrame(() => this.follow());
    this.moved = event;
  }

  follow() {
    const event = this.moved;
    if (!event) return;
    this.moved = null;
    const { run, index, x, y } = this.nearest(event);
    if (event.buttons) return this.state.choose(run, index);
    if (event.pointerType !== "mouse") return;
    this.near.setAttribute("visibility", "visible");
    this.near.setAttribute("cx", x);
    this.near.setAttribute("cy", y);
    const cost = run.cost(this.state.across);
    this.hint.textContent = `${costText(cost, cost.total[index])}, ${lossText(run.loss[index])}`;
    this.hint.hidden = false;
    const width = this.hint.offsetWidth;
    this.hint.style.left = `${Math.min(Math.max(0, x + 12), this.width - width)}px`;
    this.hint.style.top = `${Math.max(0, y - 34)}px`;
  }

  leave() {
    this.moved = null;
    this.near.setAttribute("visibility", "hidden");
    this.hint.hidden = true;
  }

  key(event) {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const { run, chosen, across } = this.state;
    const { sorted, place } = orderBy(run, across);
    const at = chosen.index === null ? 0 : place[chosen.index];
    const far = Math.max(1, Math.round(run.count / 20));
    const steps = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, PageUp: far, PageDown: -far, Home: -run.count, End: run.count };
    const actions = { b: () => this.state.chooseBest(), c: () => this.state.pin(), s: () => this.state.save() };
    if (event.key in steps) this.state.choose(run, sorted[Math.min(Math.max(at + steps[event.key], 0), run.count - 1)]);
    else if (event.key.toLowerCase() in actions) actions[event.key.toLowerCase()]();
    else return;
    event.preventDefault();
  }
}
