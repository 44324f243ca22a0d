// Numbers and elements.

const NAMESPACE = "http://www.w3.org/2000/svg";
const byId = (id) => document.getElementById(id);

function svg(parent, name, attributes, text) {
  const element = document.createElementNS(NAMESPACE, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  parent.append(element);
  return element;
}

function tag(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

const digits = (value, count = 4) => Number(value.toPrecision(count)).toLocaleString("en", { maximumSignificantDigits: count });
const whole = (value) => Math.round(value).toLocaleString("en");

// A number where there is little room.
function brief(value) {
  if (value !== 0 && Math.abs(value) < 1e-3) return value.toExponential(1).replace(".0e", "e");
  return Math.abs(value) >= 1e4 ? `${digits(value / 1e3, 3)}k` : digits(value, 3);
}

function lossText(value) {
  if (value !== 0 && Math.abs(value) < 1e-3) return `${value.toExponential(2)} nats`;
  return `${digits(value, 3)} nats`;
}

// A cost in its unit; sizes to the byte where there is room.
function costText(cost, value, exact = false) {
  if (exact && cost.name === "size_bytes") return `${whole(value)} bytes`;
  return `${digits(value * cost.scale)} ${cost.unit}`;
}

function shareText(share) {
  if (share < 0.001) return "< 0.1 %";
  return `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`;
}

function changeText(now, before) {
  if (before === 0) return "";
  const percent = (100 * (now - before)) / Math.abs(before);
  if (Math.abs(percent) < 0.05) return "same";
  if (now >= 10 * before && before > 0) return `${digits(now / before, 2)} ×`;
  return `${percent > 0 ? "+" : "−"}${Math.abs(percent).toFixed(Math.abs(percent) < 10 ? 1 : 0)} %`;
}

// Round numbers from low to high, about `count` of them.
function ticks(low, high, count) {
  if (!(high > low)) return [low];
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
  const found = [];
  for (let value = Math.ceil(low / step); value * step <= high * (1 + 1e-9); value++) found.push(Number((value * step).toPrecision(12)));
  return found;
}

// Decades, with 2 and 5 between them where there are few.
function logTicks(low, high) {
  const few = Math.log10(high / low) < 2.5;
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) {
    for (const factor of few ? [1, 2, 5] : [1]) {
      const value = Number(`${factor}e${power}`);
      if (value >= low && value <= high) found.push(value);
    }
  }
  return found;
}
