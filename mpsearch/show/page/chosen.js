// The chosen configuration in words and numbers, beside the one that it is compared with, and what has been finished.

class Chosen {
  constructor(state) {
    this.state = state;
    byId("save").addEventListener("click", () => state.save());
    byId("pin").addEventListener("click", () => state.pin());
  }

  draw() {
    const { chosen, pinned, runs } = this.state;
    const { run } = chosen;
    const several = runs.length > 1;
    byId("chosen-title").textContent = chosen.index === null ? `Configuration ${chosen.finished.name}` : `Configuration ${chosen.index}`;
    const of = chosen.index === null ? "beside the front" : `of ${whole(run.count)}${several ? ` in ${run.name}` : ""}`;
    const tags = [tag("span", { class: "tag" }, of)];
    if (chosen.index !== null && chosen.index === inside(run, this.state.limits).best) tags.push(tag("span", { class: "tag" }, "best within the limits"));
    if (chosen.index === run.knee) tags.push(tag("span", { class: "tag" }, "knee"));
    if (chosen.finished) tags.push(tag("span", { class: "tag finished" }, "finished"));
    byId("named").replaceChildren(...tags);
    this.drawFigures(chosen, pinned);
    this.drawMeasured(chosen.finished);
    this.drawBoxes(chosen.finished);
    byId("command").textContent = run.command.replace("POINT", chosen.index === null ? chosen.finished.name : chosen.index);
    byId("command").parentElement.hidden = chosen.finished !== null || !run.command;
    byId("pin").textContent = pinned ? "Stop comparing" : "Compare with this one";
    byId("pin").setAttribute("aria-pressed", String(Boolean(pinned)));
  }

  drawFigures(chosen, pinned) {
    const { limits } = this.state;
    const rows = chosen.run.costs.filter((cost) => cost.name in chosen.costs).map((cost) => {
      const value = chosen.costs[cost.name];
      const over = cost.name in limits && !withinLimit(value, limits[cost.name]);
      const other = pinned && pinned.costs[cost.name];
      return [cost.title, costText(cost, value, true), over, other, other !== undefined && other !== null ? costText(cost, other, true) : "", value];
    });
    if (chosen.loss !== null) {
      const other = pinned ? pinned.loss : null;
      rows.push(["predicted loss", lossText(chosen.loss), false, other, other === null ? "" : lossText(other), chosen.loss]);
    }
    byId("figures").classList.toggle("compared", Boolean(pinned));
    const head = pinned ? ["", "this one", nameIn(pinned, chosen), "change"] : [];
    byId("figures").tHead.replaceChildren(...(pinned ? [tag("tr", {}, ...head.map((text, k) => tag("th", { scope: "col", class: k === 2 ? "number pinned" : "number" }, text)))] : []));
    byId("figures").tBodies[0].replaceChildren(...rows.map(([title, text, over, other, otherText, value]) => {
      const cells = [tag("th", { scope: "row" }, title), tag("td", { class: over ? "number over" : "number" }, text, ...(over ? [tag("small", {}, "over the limit")] : []))];
      if (pinned) cells.push(tag("td", { class: "number other pinned" }, otherText), tag("td", { class: "number other" }, otherText ? changeText(value, other) : ""));
      return tag("tr", {}, ...cells);
    }));
    if (pinned) this.drawDifference(chosen, pinned);
  }

  drawDifference(chosen, pinned) {
    const known = new Map(pinned.run.layers.map((layer, l) => [layer.name, pinned.precisions[l]]));
    const shared = chosen.run.layers.map((layer, l) => [known.get(layer.name), chosen.precisions[l]]).filter(([other]) => other !== undefined);
    const changed = shared.filter(([other, own]) => other !== own).length;
    const cells = [tag("th", { scope: "row" }, "other bits"), tag("td", { class: "number", colspan: "3" }, `in ${changed} of ${shared.length} layers`)];
    byId("figures").tBodies[0].append(tag("tr", {}, ...cells));
  }

  drawBoxes(finished) {
    const picture = finished ? finished.boxes : null;
    byId("boxes").hidden = !picture;
    if (!picture) return;
    const image = byId("boxes").querySelector("img");
    image.src = `data:image/webp;base64,${picture}`;
    image.alt = `Validation images with the boxes of the float network, of plain rounding and of ${finished.name}`;
  }

  drawMeasured(finished) {
    if (!finished) return byId("measured").replaceChildren();
    const head = tag("tr", {}, ...["", "float", "plain rounding", "finished"].map((text) => tag("th", { scope: "col", class: "number" }, text)));
    const rows = finished.figures.map((figure) => tag("tr", {}, tag("th", { scope: "row" }, figure.title), ...figure.values.map((text) => tag("td", { class: "number" }, text))));
    const samples = tag("p", { class: "dim" }, `on ${whole(finished.samples)} validation samples`);
    byId("measured").replaceChildren(tag("h3", {}, `Measured (${finished.name})`), tag("table", {}, tag("thead", {}, head), tag("tbody", {}, ...rows)), samples);
  }
}

function nameIn(point, chosen) {
  return point.run === chosen.run ? nameOf(point) : `${nameOf(point)} in ${point.run.name}`;
}

// The table of everything that was finished, in all runs; its names choose.
function drawFinished(state) {
  const found = state.runs.flatMap((run) => run.finished.map((finished) => [run, finished]));
  byId("finished").hidden = !found.length;
  if (!found.length) return;
  const several = state.runs.length > 1;
  const titles = [...new Set(found.flatMap(([, one]) => one.figures.map((figure) => figure.title)))];
  const head = ["name", ...(several ? ["run"] : []), "bytes", "predicted, nats", ...titles];
  const table = byId("finished").querySelector("table");
  table.tHead.replaceChildren(tag("tr", {}, ...head.map((text, k) => tag("th", { scope: "col", class: k > (several ? 1 : 0) ? "number" : "" }, text))));
  table.tBodies[0].replaceChildren(...found.map(([run, one]) => {
    const button = tag("button", { type: "button", class: "link" }, one.name);
    button.addEventListener("click", () => state.chooseFinished(run, one));
    const figures = titles.map((title) => {
      const figure = one.figures.find((known) => known.title === title);
      return tag("td", { class: "number" }, ...(figure ? [figure.values[2], tag("small", {}, `plain rounding ${figure.values[1]}`)] : []));
    });
    const predicted = one.index === null ? "" : brief(run.loss[one.index]);
    return tag("tr", {}, tag("th", { scope: "row" }, button), ...(several ? [tag("td", {}, run.name)] : []),
      tag("td", { class: "number" }, whole(one.costs.size_bytes)), tag("td", { class: "number" }, predicted), ...figures);
  }));
}

// The share of its box that the front dominates, generation by generation.
function drawSearch(run) {
  const values = run.history;
  byId("search").hidden = values.length < 3;
  if (values.length < 3) return;
  byId("course").textContent = `Hypervolume by generation: ${digits(values[0], 3)} at first, ${digits(values.at(-2), 3)} after ${values.length - 1} generations, ${digits(values.at(-1), 3)} once the front was filled; ${whole(run.evaluations)} configurations were looked at.`;
  const root = byId("search").querySelector("svg");
  const draw = () => {
    const [width, height] = [root.clientWidth, 180];
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const x = (k) => 52 + (k / (values.length - 1)) * (width - 66);
    const y = (value) => 150 - ((value - low) / (high - low || 1)) * 136;
    root.replaceChildren();
    for (const value of ticks(low, high, 4)) {
      svg(root, "line", { class: "grid", x1: 52, x2: width - 14, y1: y(value), y2: y(value) });
      svg(root, "text", { x: 46, y: y(value) + 4, "text-anchor": "end" }, digits(value, 4));
    }
    for (const value of ticks(0, values.length - 1, 6)) svg(root, "text", { x: x(value), y: 170, "text-anchor": "middle" }, value);
    svg(root, "polyline", { class: "curve", points: values.map((value, k) => `${x(k).toFixed(1)},${y(value).toFixed(1)}`).join(" ") });
  };
  byId("search").ontoggle = draw;
  if (byId("search").open) draw();
}
