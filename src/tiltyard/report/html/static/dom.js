"use strict";
// Elements are made with createElement and text nodes alone: no text of a run is ever parsed as markup.
const SVG = "http://www.w3.org/2000/svg";
const COLOURS = 8;
const DASHES = ["", "7 4", "2 3", "9 3 2 3"];

function put(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false || child === "") continue;
    element.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return element;
}
const h = (tag, attributes, ...children) => put(document.createElement(tag), attributes, children);
const s = (tag, attributes, ...children) => put(document.createElementNS(SVG, tag), attributes, children);

// ------------------------------------------------------------------------------------------------------------ numbers
const minus = (text) => text.replace("-", "−");
function num(x, digits = 3) {
  if (x === null || x === undefined) return "–";
  return minus(plain(x, digits));
}
function plain(x, digits) {
  const size = Math.abs(x);
  if (size >= 1e6) return `${trim((x / 1e6).toPrecision(digits))}M`;
  if (size >= 1e4) return Math.round(x).toLocaleString("en");
  if (Number.isInteger(x)) return x.toLocaleString("en");
  if (size >= 100) return Math.round(x).toLocaleString("en");
  if (size !== 0 && size < 1e-3) return x.toExponential(digits - 2);
  return trim(size >= 10 ? x.toFixed(1) : x.toFixed(size < 0.1 ? 4 : digits - 1));
}
const trim = (text) => (text.includes(".") ? text.replace(/0+$/, "").replace(/\.$/, "") : text);
const percent = (x) => (x === null || x === undefined ? "–" : minus(`${(100 * x).toFixed(1)}%`));
const shown = (x, unit) => (unit === "share" ? percent(x) : num(x));
const signed = (x, unit, tail = " points") => (x > 0 ? "+" : "") + (unit === "share" ? minus((100 * x).toFixed(1)) + tail : num(x));
function interval(cell, unit) {
  return cell && cell.lo !== undefined ? `${shown(cell.lo, unit)} to ${shown(cell.hi, unit)}` : "";
}
// A figure and its interval with as many decimals as the interval is sure of; of shares the interval without the sign.
function exact(cell, unit) {
  if (unit === "share") return [percent(cell.v), cell.lo === undefined ? "" : `${percent(cell.lo).slice(0, -1)} to ${percent(cell.hi).slice(0, -1)}`];
  if (cell.lo === undefined) return [unit === "tokens" ? minus(cell.v.toFixed(1)) : num(cell.v), ""];
  const width = cell.hi - cell.lo, digits = width >= 20 ? 0 : width >= 2 ? 1 : width >= 0.02 ? 2 : 3;
  const text = (x) => minus(x.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits }));
  return [text(cell.v), `${text(cell.lo)} to ${text(cell.hi)}`];
}
function time(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 90) return `${seconds < 10 ? trim(seconds.toFixed(1)) : Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 90 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min`;
}
const day = (text) => (text ? text.slice(0, 16).replace("T", " ") : "–");
// A sentence with what stands between backticks as code.
const prose = (text) => String(text).split(/`([^`\n]+)`/).map((part, i) => (i % 2 ? h("code", {}, part) : part));
const plural = (n, one, many) => `${n.toLocaleString("en")} ${n === 1 ? one : many || one + "s"}`;

// ------------------------------------------------------------------------------------------------------------- pieces
function section(id, title, lead) {
  const found = h("section", { id, "aria-labelledby": `${id}-title` }, h("h2", { id: `${id}-title` }, title));
  if (lead) found.append(h("p", { class: "lead" }, lead));
  return found;
}
function table(head, rows, options = {}) {
  const body = rows.map((row) => h("tr", {}, row.map((cell, i) => {
    const content = cell instanceof Node || cell === null ? cell : typeof cell === "number" ? num(cell) : cell;
    return i === 0 ? h("th", { scope: "row" }, content) : h("td", {}, content);
  })));
  const made = h("table", { class: options.texts ? "texts" : null },
    options.caption && h("caption", {}, options.caption),
    h("thead", {}, h("tr", {}, head.map((title) => (title ? h("th", { scope: "col" }, title) : h("td", {}))))),
    h("tbody", {}, body));
  return scrolling(made, options.label || options.caption || "table");
}
function scrolling(content, label) {
  return h("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": label }, content);
}
// A table behind a picture, for screen readers and for copying; it is made when it is first opened.
function behind(label, make, summary = "Table") {
  const box = h("details", {}, h("summary", { "aria-label": `${summary}: ${label}` }, summary));
  box.addEventListener("toggle", () => { if (box.open && box.children.length === 1) box.append(make()); });
  return box;
}
function folded(summary, make) {
  const box = h("details", { class: "block" }, h("summary", {}, summary));
  box.addEventListener("toggle", () => { if (box.open && box.children.length === 1) box.append(make()); });
  return box;
}
function swatch(place) {
  return s("svg", { class: `swatch c${place % COLOURS}`, viewBox: "0 0 24 10", "aria-hidden": "true" },
    s("line", { x1: 0, x2: 24, y1: 5, y2: 5, "stroke-dasharray": dash(place) || null }));
}
const dash = (place) => DASHES[Math.floor(place / COLOURS) % DASHES.length];

const tip = h("div", { class: "tip", hidden: true, "aria-hidden": "true" });
function showTip(event, text) {
  tip.textContent = text;
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const left = Math.min(event.clientX + 14, window.innerWidth - box.width - 8);
  const above = event.clientY - box.height - 12;
  tip.style.left = `${Math.max(8, left)}px`;
  tip.style.top = `${above > 8 ? above : event.clientY + 16}px`;
}
const hideTip = () => { tip.hidden = true; };
function hover(element, text) {
  element.addEventListener("pointermove", (event) => showTip(event, text));
  element.addEventListener("pointerleave", hideTip);
  return element;
}
