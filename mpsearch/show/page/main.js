// What is chosen, and what follows from it.

class State {
  constructor(runs) {
    this.runs = runs;
    this.run = runs[0];
    this.across = this.run.costs.find((cost) => cost.objective).name;
    this.limits = { ...this.run.budgets };
    this.pinned = null;
    this.chosen = pointOf(this.run, this.run.best);
    this.plot = new Plot(this);
    this.layers = new Layers(this);
    this.panel = new Chosen(this);
  }

  sentence(point) {
    const shown = point.run.costs.filter((cost) => cost.objective || cost.name in this.limits);
    const costs = shown.filter((cost) => cost.name in point.costs).map((cost) => costText(cost, point.costs[cost.name], true));
    const loss = point.loss === null ? [] : [`predicted loss ${lossText(point.loss)}`];
    const measured = point.finished ? [`finished: ${point.finished.figures.map((figure) => `${figure.title} ${figure.values[2]}`).join(", ")}`] : [];
    return [nameOf(point), ...costs, ...loss, ...measured].join(", ");
  }

  drawAll() {
    const { run } = this;
    byId("about").textContent = `${this.runs.length > 1 ? `${run.name}, ${run.title}: ` : ""}${whole(run.count)} configurations of ${run.layers.length} layers, ${whole(run.weights)} weights${run.device ? `, on ${run.device}` : ""}`;
    this.drawAcross();
    this.drawBudgets();
    this.drawKey();
    drawFinished(this);
    drawSearch(run);
    this.plot.draw();
    this.drawChoice();
  }

  drawChoice() {
    this.plot.show();
    this.layers.draw();
    this.panel.draw();
  }

  choose(run, index) {
    if (this.chosen.run === run && this.chosen.index === index) return;
    this.take(pointOf(run, index));
  }

  chooseFinished(run, finished) {
    this.take(finishedPoint(run, finished));
    byId("chosen").scrollIntoView({ block: "nearest" });
  }

  take(point) {
    this.chosen = point;
    if (point.run !== this.run) this.enter(point.run);
    else this.drawChoice();
  }

  // Goes to another run, with the limits that it shares and its own for the rest.
  enter(run) {
    this.run = run;
    const kept = Object.entries(this.limits).filter(([name]) => run.cost(name));
    this.limits = { ...run.budgets, ...Object.fromEntries(kept) };
    if (!run.cost(this.across)) this.across = run.costs.find((cost) => cost.objective).name;
    for (const input of byId("runs").querySelectorAll("input")) input.checked = Number(input.value) === run.number;
    this.drawAll();
  }

  chooseBest() {
    const { best } = inside(this.run, this.limits);
    const over = Object.keys(this.limits).map((name) => this.run.cost(name)).filter((cost) => cost && !withinLimit(Math.min(...extremes(cost.total)), this.limits[cost.name]));
    const least = over.map((cost) => `${cost.title} is at least ${costText(cost, extremes(cost.total)[0], true)}`);
    byId("within").textContent = best !== null ? "" : `No configuration is within: ${least.join(", ") || "the limits exclude each other"}.`;
    for (const input of byId("budgets").querySelectorAll("input")) input.setAttribute("aria-invalid", String(best === null));
    if (best === null) return;
    this.take(pointOf(this.run, best));
    this.say(this.sentence(this.chosen));
  }

  pin() {
    this.pinned = this.pinned ? null : this.chosen;
    this.say(this.pinned ? `Comparing with ${nameOf(this.pinned)}: now choose another.` : "Not comparing any more.");
    this.drawChoice();
  }

  save() {
    const { chosen } = this;
    const name = `${chosen.run.name}-${nameOf(chosen).replace(" ", "-")}`.replace(/[^\w.-]+/g, "-");
    const link = tag("a", { href: URL.createObjectURL(new Blob([bitsText(chosen)], { type: "application/json" })), download: `${name}.json` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    this.say(`Saved ${name}.json.`);
  }

  say(text) {
    byId("said").textContent = text;
  }

  drawAcross() {
    const options = this.run.costs.map((cost) => {
      const option = tag("option", { value: cost.name }, cost.title);
      option.selected = cost.name === this.across;
      return option;
    });
    byId("across").replaceChildren(...options);
    byId("across").onchange = (event) => {
      this.across = event.target.value;
      this.plot.draw();
    };
  }

  drawBudgets() {
    const fields = this.run.costs.filter((cost) => cost.objective || cost.name in this.limits).map((cost) => {
      const input = tag("input", { type: "number", step: "any", min: "0", inputmode: "decimal", id: `at-most-${cost.name}`, "aria-label": `${cost.title} at most, ${cost.unit}` });
      if (cost.name in this.limits) input.value = Number((this.limits[cost.name] * cost.scale).toPrecision(12));
      input.addEventListener("input", () => {
        if (input.value === "") delete this.limits[cost.name];
        else this.limits[cost.name] = Number(input.value) / cost.scale;
        this.chooseBest();
        this.plot.draw();
      });
      return tag("label", {}, cost.title, input, cost.unit);
    });
    byId("budgets").replaceChildren(byId("budgets").querySelector("legend"), ...fields);
  }

  drawKey() {
    const mark = (draw, text) => {
      const picture = document.createElementNS(NAMESPACE, "svg");
      picture.setAttribute("viewBox", "0 0 14 14");
      picture.setAttribute("aria-hidden", "true");
      draw(picture);
      return tag("span", {}, picture, text);
    };
    const marks = [mark((root) => svg(root, "circle", { cx: 7, cy: 7, r: 3, style: `fill: ${this.run.colour}` }), "predicted; pale: over the limits")];
    if (this.runs.some((run) => run.finished.length)) marks.push(mark((root) => svg(root, "path", { class: "finished", ...(this.runs.length > 1 ? { style: "fill: var(--dim)" } : {}), d: "M7 1l6 6l-6 6l-6 -6z" }), `finished and measured${this.runs[0].headline ? `, with ${this.runs[0].headline}` : ""}`));
    if (this.run.references.length) marks.push(mark((root) => svg(root, "rect", { class: "reference", x: 3, y: 3, width: 8, height: 8 }), "the same bits everywhere"));
    byId("key-of-marks").replaceChildren(...marks);
  }

  drawRuns() {
    byId("runs").hidden = this.runs.length < 2;
    for (const run of this.runs) {
      const radio = tag("input", { type: "radio", name: "run", value: run.number });
      radio.checked = run === this.run;
      radio.addEventListener("change", () => {
        this.chosen = pointOf(run, inside(run, { ...run.budgets, ...this.limits }).best ?? run.best);
        this.enter(run);
      });
      byId("runs").append(tag("label", { style: `color: ${run.colour}` }, radio, run.name));
    }
  }
}

function extremes(values) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return [low, high];
}

function setTheme(name) {
  document.documentElement.dataset.theme = name;
  byId("theme").textContent = name === "dark" ? "Light" : "Dark";
  byId("theme").setAttribute("aria-label", name === "dark" ? "Use light colours" : "Use dark colours");
}

async function main() {
  setTheme(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  const data = JSON.parse(byId("data").textContent);
  const state = new State(await Promise.all(data.runs.map(loadRun)));
  byId("theme").addEventListener("click", () => {
    setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
    state.plot.draw();
  });
  state.drawRuns();
  state.drawAll();
}

main().catch((error) => {
  byId("fault").textContent = typeof DecompressionStream === "undefined"
    ? "This browser is too old for the page: Chrome or Edge 80, Firefox 113 or Safari 16.4 at least."
    : `The page cannot be drawn: ${error.message}`;
  byId("fault").hidden = false;
  throw error;
});
