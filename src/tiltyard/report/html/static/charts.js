// Charts are small SVGs that are drawn again for their width; each has hover values and a table behind it.
function ticks(low, high, count = 5) {
  const span = high - low || Math.abs(high) || 1;
  const rough = span / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((x) => x >= rough) || rough;
  const found = [];
  for (let x = Math.ceil(low / step) * step; x <= high + step * 1e-9; x += step) found.push(Math.abs(x) < step * 1e-9 ? 0 : x);
  return found;
}
function extent(values, pad = 0.06) {
  const known = values.filter((v) => v !== null && v !== undefined);
  if (!known.length) return [0, 1];
  let low = known.reduce((a, b) => Math.min(a, b)), high = known.reduce((a, b) => Math.max(a, b));
  if (low === high) { const by = Math.abs(low) * 0.1 || 0.5; low -= by; high += by; }
  const by = (high - low) * pad;
  return [low - by, high + by];
}
const scale = (from, to) => (x) => to[0] + ((x - from[0]) / (from[1] - from[0] || 1)) * (to[1] - to[0]);

// The label of a tick: with the decimals that tell it from its neighbours.
function tickText(v, all, unit) {
  const step = all.length > 1 ? Math.abs(all[1] - all[0]) : Math.abs(v) || 1, by = unit === "share" ? 100 : 1;
  const digits = Math.min(6, Math.max(0, -Math.floor(Math.log10(step * by) + 1e-9)));
  const size = Math.abs(v);
  if (unit !== "share" && (size >= 1e6 || (step < 1e-5 && v !== 0))) return num(v);
  const half = Math.abs(step * by * 10 ** digits - Math.round(step * by * 10 ** digits)) > 0.01 ? 1 : 0;
  return minus((v * by).toLocaleString("en", { minimumFractionDigits: 0, maximumFractionDigits: digits + half })) + (unit === "share" ? "%" : "");
}

// Makes a figure whose picture `paint(width)` is drawn for the width that it has, and again when that changes.
function figure(title, about, label, paint, behindIt) {
  const holder = h("div", { class: "draw" });
  const made = h("figure", {}, title && h("figcaption", {}, title, about && h("span", { class: "about" }, about)), holder, behindIt);
  let width = 0;
  const redraw = () => {
    const now = Math.round(holder.clientWidth);
    if (!now || Math.abs(now - width) < 4) return;
    width = now;
    const picture = paint(now);
    put(picture, { role: "img", "aria-label": label }, []);
    holder.replaceChildren(picture);
  };
  made.redraw = () => { width = 0; redraw(); };
  new ResizeObserver(redraw).observe(holder);
  return made;
}
function canvas(width, height) {
  return s("svg", { viewBox: `0 0 ${width} ${height}`, width, height });
}
function axes(svg, box, x, y, options) {
  const rows = ticks(y.from[0], y.from[1], box.height > 200 ? 6 : 4), columns = ticks(x.from[0], x.from[1], Math.max(2, Math.floor((box.right - box.left) / 70)));
  for (const v of rows) {
    svg.append(s("line", { class: "gridline", x1: box.left, x2: box.right, y1: y(v), y2: y(v) }),
      s("text", { x: box.left - 7, y: y(v) + 4, "text-anchor": "end" }, tickText(v, rows, options.unit)));
  }
  for (const v of columns) {
    svg.append(s("text", { x: x(v), y: box.bottom + 17, "text-anchor": "middle" }, tickText(v, columns, options.xunit)));
  }
  svg.append(s("line", { class: "axis", x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom }));
  if (options.xlabel) svg.append(s("text", { x: (box.left + box.right) / 2, y: box.bottom + 34, "text-anchor": "middle" }, options.xlabel));
}
function scales(box, xs, ys, pad = 0) {
  const fx = extent(xs, pad), fy = extent(ys, 0.07);
  const x = scale(fx, [box.left, box.right]), y = scale(fy, [box.bottom, box.top]);
  x.from = fx; y.from = fy;
  return [x, y];
}
function line(points, x, y) {
  let path = "", pen = "M";
  for (const [px, py] of points) {
    if (py === null || px === null) { pen = "M"; continue; }
    path += `${pen}${x(px).toFixed(1)} ${y(py).toFixed(1)}`;
    pen = "L";
  }
  return path;
}
function smoothed(values) {
  const half = values.length < 30 ? 0 : Math.max(1, Math.round(values.length / 24));
  if (!half) return null;
  return values.map((_, i) => {
    const part = values.slice(Math.max(0, i - half), i + half + 1).filter((v) => v !== null);
    return part.length ? part.reduce((a, b) => a + b) / part.length : null;
  });
}

// series: [{name, place, x, y}]
function lineChart(title, about, given, settings) {
  const far = given.filter((one) => one.x.length > 1).map((one) => one.x[one.x.length - 1]), apart = Math.max(...far) > 4 * Math.min(...far);
  const series = apart ? given.map((one) => ({ ...one, steps: one.x, x: one.x.map((v) => v / one.x[one.x.length - 1]) })) : given;
  const options = { ...settings, xunit: apart ? "share" : "" };
  if (series.every((one) => one.x.length === 1)) {
    return dots(title, about, series.map((one) => ({ name: one.name, place: one.place, cell: { v: one.y[0] } })), options);
  }
  const label = `${options.name || title}: ${series.length} ${series.length === 1 ? "curve" : "curves"} over steps. ` +
    series.slice(0, 6).map((one) => `${one.name} from ${shown(one.y[0], options.unit)} to ${shown(one.y[one.y.length - 1], options.unit)}`).join("; ");
  const paint = (width) => {
    const height = 190, box = { left: 52, right: width - 8, top: 10, bottom: height - 26, height };
    const svg = canvas(width, height);
    const [x, y] = scales(box, series.flatMap((one) => one.x), series.flatMap((one) => one.y));
    axes(svg, box, x, y, options);
    for (const one of series) {
      const smooth = smoothed(one.y), pairs = one.x.map((v, i) => [v, one.y[i]]);
      const group = s("g", { class: `c${one.place % COLOURS}` });
      if (smooth) group.append(s("path", { class: "line raw", d: line(pairs, x, y) }));
      group.append(s("path", { class: "line", "stroke-dasharray": dash(one.place) || null, d: line(smooth ? one.x.map((v, i) => [v, smooth[i]]) : pairs, x, y) }));
      if (one.x.length < 4) one.x.forEach((v, i) => one.y[i] !== null && group.append(s("circle", { class: "dot", r: 4, cx: x(v), cy: y(one.y[i]) })));
      svg.append(group);
    }
    for (const mark of options.marks || []) {
      const one = series.find((s) => s.name === mark.stage), ends = one.steps || one.x, at = x(apart ? mark.step / ends[ends.length - 1] : mark.step);
      if (at >= box.left && at <= box.right + 1) svg.append(s("line", { class: "alarm", x1: at, x2: at, y1: box.top, y2: box.bottom }));
    }
    follow(svg, box, x, series, options);
    return svg;
  };
  const rows = () => table(["step", ...series.map((one) => one.name)], sampledRows(given, options), { label: `Values of ${options.name || title}` });
  return figure(title, about, label, paint, behind(options.name || title, rows));
}
// A cursor along the steps with the value of every curve at it.
function follow(svg, box, x, series, options) {
  const cursor = s("line", { class: "cursor", y1: box.top, y2: box.bottom, visibility: "hidden" });
  const area = s("rect", { x: box.left, y: box.top, width: Math.max(0, box.right - box.left), height: box.bottom - box.top, fill: "transparent" });
  area.addEventListener("pointermove", (event) => {
    const frame = svg.getBoundingClientRect(), ratio = svg.viewBox.baseVal.width / frame.width;
    const at = x.from[0] + (((event.clientX - frame.left) * ratio - box.left) / (box.right - box.left)) * (x.from[1] - x.from[0]);
    const lines = [];
    let step = null;
    for (const one of series) {
      const i = nearest(one.x, at);
      if (step === null) step = one.x[i];
      if (lines.length < 10) lines.push(`${one.name}: ${shown(one.y[i], options.unit)}${one.steps ? ` at step ${num(one.steps[i])}` : ""}`);
    }
    put(cursor, { x1: x(step), x2: x(step), visibility: "visible" }, []);
    showTip(event, [options.xunit ? `${percent(step)} of the steps` : `step ${num(step)}`, ...lines].join("\n"));
  });
  area.addEventListener("pointerleave", () => { cursor.setAttribute("visibility", "hidden"); hideTip(); });
  svg.append(cursor, area);
}
function nearest(values, at) {
  let best = 0;
  for (let i = 1; i < values.length; i++) if (Math.abs(values[i] - at) < Math.abs(values[best] - at)) best = i;
  return best;
}
function sampledRows(series, options, most = 40) {
  const steps = [...new Set(series.flatMap((one) => one.x))].sort((a, b) => a - b);
  const every = Math.ceil(steps.length / most);
  const kept = steps.filter((_, i) => i % every === 0 || i === steps.length - 1);
  return kept.map((step) => [num(step), ...series.map((one) => {
    const i = one.x.indexOf(step);
    return i < 0 ? "–" : shown(one.y[i], options.unit);
  })]);
}

// points: [{name, place, x: {v, lo, hi}, y: {...}}]; paths: [{name, place, points: [[x, y]]}], `loose`: dots without a line, `silent`: without its name
function scatter(title, about, points, paths, options) {
  const label = `${title}: ` + [...points.map((p) => `${p.name} at ${num(p.x.v)}, ${shown(p.y.v, options.unit)}`), ...paths.map((p) => `path of ${p.name}`)].slice(0, 12).join("; ");
  const paint = (width) => {
    const height = Math.min(380, Math.max(250, width * 0.62));
    const box = { left: 54, right: width - 14, top: 12, bottom: height - 44, height };
    const svg = canvas(width, height);
    const ends = (p, key) => [p[key].v, p[key].lo, p[key].hi];
    const [x, y] = scales(box, [0, ...points.flatMap((p) => ends(p, "x")), ...paths.flatMap((p) => p.points.map((q) => q[0]))],
      [...points.flatMap((p) => ends(p, "y")), ...paths.flatMap((p) => p.points.map((q) => q[1]))], 0.04);
    axes(svg, box, x, y, options);
    for (const path of paths) {
      const group = s("g", { class: `c${path.place % COLOURS}` }, path.loose ? null : s("path", { class: "line", "stroke-dasharray": path.dash || dash(path.place) || null, d: line(path.points, x, y) }));
      path.points.forEach((p, i) => {
        if (p[0] === null || p[1] === null) return;
        const last = i === path.points.length - 1 && !path.word;
        group.append(hover(s("circle", { class: path.bare ? "touch" : path.loose ? "dot faint" : "dot", r: last ? 5 : 3, cx: x(p[0]), cy: y(p[1]) }), `${path.name}${p[2] ? `, ${path.word || "step"} ${num(p[2])}` : ""}\n${options.xlabel}: ${num(p[0])}\n${options.ylabel}: ${shown(p[1], options.unit)}`));
      });
      svg.append(group);
    }
    const labels = [];
    for (const p of points) {
      const cx = x(p.x.v), cy = y(p.y.v), group = s("g", { class: `c${p.place % COLOURS}` });
      if (p.y.lo !== undefined) group.append(s("line", { class: "whisker", x1: cx, x2: cx, y1: y(p.y.lo), y2: y(p.y.hi) }));
      if (p.x.lo !== undefined) group.append(s("line", { class: "whisker", y1: cy, y2: cy, x1: x(p.x.lo), x2: x(p.x.hi) }));
      const text = `${p.name}\n${options.xlabel}: ${num(p.x.v)} ${p.x.lo !== undefined ? `(${interval(p.x)})` : ""}\n${options.ylabel}: ${shown(p.y.v, options.unit)} ${p.y.lo !== undefined ? `(${interval(p.y, options.unit)})` : ""}`;
      group.append(hover(s("circle", { class: "dot", r: 6, cx, cy }), text));
      svg.append(group);
      labels.push({ text: p.name, x: cx, y: cy });
    }
    for (const path of paths.filter((p) => options.names !== false && p.points.length && !p.silent)) {
      const end = path.points[path.points.length - 1];
      labels.push({ text: path.name, x: x(end[0]), y: y(end[1]) });
    }
    name(svg, labels, box);
    return svg;
  };
  const rows = () => table(["", options.xlabel, options.ylabel], [
    ...points.map((p) => [p.name, `${num(p.x.v)} ${p.x.lo !== undefined ? `(${interval(p.x)})` : ""}`, `${shown(p.y.v, options.unit)} ${p.y.lo !== undefined ? `(${interval(p.y, options.unit)})` : ""}`]),
    ...paths.flatMap((p) => p.points.map((q) => [`${p.name}${q[2] ? `, ${p.word || "step"} ${num(q[2])}` : ""}`, num(q[0]), shown(q[1], options.unit)])),
  ], { label: `Values of ${title}` });
  return figure(title, about, label, paint, behind(title, rows));
}
// Names beside their points, moved up or down to where they do not cover each other.
function name(svg, labels, box) {
  const taken = [];
  for (const one of labels.sort((a, b) => a.y - b.y)) {
    const wide = Math.min(one.text.length, 24) * 6.6, left = one.x + 10 + wide > box.right;
    const from = left ? one.x - 10 - wide : one.x + 10;
    const free = [0, 1, -1, 2, -2, 3, -3, 4, -4, 5, -5, 6, -6, 7, -7].map((k) => one.y + 4 + k * 13).find((at) =>
      at > box.top + 6 && at < box.bottom - 2 && taken.every((t) => Math.abs(t.y - at) >= 12.5 || t.to < from || t.from > from + wide));
    if (free === undefined) continue;
    taken.push({ y: free, from, to: from + wide });
    svg.append(s("text", { class: "ink halo", x: left ? one.x - 10 : from, y: free, "text-anchor": left ? "end" : "start" }, one.text.length > 24 ? `${one.text.slice(0, 23)}…` : one.text));
  }
}

// rows: [{name, place, cells: [{v, lo, hi}]}]: one dot with its interval a row, on one scale; `zero`: a line at it
function dots(title, about, rows, options) {
  const label = `${title}: ` + rows.slice(0, 16).map((r) => `${r.name} ${shown(r.cell.v, options.unit)}${r.cell.lo !== undefined ? ` (${interval(r.cell, options.unit)})` : ""}`).join("; ");
  const paint = (width) => {
    const row = 26, left = Math.min(width * 0.36, 20 + 7 * Math.max(...rows.map((r) => Math.min(r.name.length, 26))));
    const height = rows.length * row + 34, box = { left, right: width - 58, top: 4, bottom: height - 26, height };
    const svg = canvas(width, height);
    const [x] = scales(box, [...rows.flatMap((r) => [r.cell.v, r.cell.lo, r.cell.hi]), options.zero], [0, 1], 0.05);
    const columns = ticks(x.from[0], x.from[1], Math.max(3, Math.floor((box.right - left) / 55)));
    for (const v of columns) {
      svg.append(s("line", { class: "gridline", x1: x(v), x2: x(v), y1: box.top, y2: box.bottom }), s("text", { x: x(v), y: box.bottom + 17, "text-anchor": "middle" }, tickText(v, columns, options.unit)));
    }
    if (options.zero !== undefined) svg.append(s("line", { class: "zero", x1: x(options.zero), x2: x(options.zero), y1: box.top, y2: box.bottom }));
    rows.forEach((r, i) => {
      const cy = box.top + row * (i + 0.5), group = s("g", { class: `c${r.place % COLOURS}` });
      if (r.cell.lo !== undefined) group.append(s("line", { class: "whisker", x1: x(r.cell.lo), x2: x(r.cell.hi), y1: cy, y2: cy }));
      group.append(s("circle", { class: "dot", r: 5.5, cx: x(r.cell.v), cy }));
      svg.append(group, s("text", { class: "ink", x: left - 10, y: cy + 4, "text-anchor": "end" }, r.name.length > 26 ? `${r.name.slice(0, 25)}…` : r.name),
        s("text", { x: width, y: cy + 4, "text-anchor": "end" }, shown(r.cell.v, options.unit)));
      svg.append(hover(s("rect", { x: 0, y: cy - row / 2, width, height: row, fill: "transparent" }), `${r.name}: ${shown(r.cell.v, options.unit)}${r.cell.lo !== undefined ? `\n95% interval ${interval(r.cell, options.unit)}` : ""}${r.cell.n ? `\nn = ${num(r.cell.n)}` : ""}`));
    });
    return svg;
  };
  const make = () => table(["", "value", "95% interval", "n"], rows.map((r) => [r.name, shown(r.cell.v, options.unit), interval(r.cell, options.unit) || "–", r.cell.n ? num(r.cell.n) : "–"]), { label: title });
  return figure(title, about, label, paint, behind(title, make));
}

// rows: [{name, place, q: five quantiles, mean, n}]
function boxes(title, about, rows) {
  const label = `${title}: ` + rows.slice(0, 16).map((r) => `${r.name} median ${num(r.q[2])} tokens`).join("; ");
  const paint = (width) => {
    const row = 26, left = Math.min(width * 0.36, 20 + 7 * Math.max(...rows.map((r) => Math.min(r.name.length, 26))));
    const height = rows.length * row + 34, box = { left, right: width - 20, top: 4, bottom: height - 26, height };
    const svg = canvas(width, height);
    const [x] = scales(box, [0, ...rows.flatMap((r) => r.q)], [0, 1], 0.02);
    for (const v of ticks(Math.max(0, x.from[0]), x.from[1], Math.max(2, Math.floor((box.right - left) / 75)))) {
      svg.append(s("line", { class: "gridline", x1: x(v), x2: x(v), y1: box.top, y2: box.bottom }), s("text", { x: x(v), y: box.bottom + 17, "text-anchor": "middle" }, num(v)));
    }
    rows.forEach((r, i) => {
      const cy = box.top + row * (i + 0.5), [a, b, c, d, e] = r.q.map(x);
      svg.append(s("g", { class: `c${r.place % COLOURS}` },
        s("line", { class: "whisker", x1: a, x2: e, y1: cy, y2: cy }),
        s("rect", { class: "box", x: b, y: cy - 7, width: Math.max(1, d - b), height: 14, rx: 3 }),
        s("line", { class: "whisker", "stroke-width": 3, x1: c, x2: c, y1: cy - 8, y2: cy + 8 }),
        s("circle", { class: "dot", r: 3.5, cx: x(r.mean), cy })),
      s("text", { class: "ink", x: left - 10, y: cy + 4, "text-anchor": "end" }, r.name.length > 26 ? `${r.name.slice(0, 25)}…` : r.name),
      hover(s("rect", { x: 0, y: cy - row / 2, width, height: row, fill: "transparent" }), `${r.name}: median ${num(r.q[2])}, mean ${num(r.mean)}\nhalf of them ${num(r.q[1])} to ${num(r.q[3])}\n90% ${num(r.q[0])} to ${num(r.q[4])}`));
    });
    return svg;
  };
  const make = () => table(["", "5%", "25%", "median", "75%", "95%", "mean"], rows.map((r) => [r.name, ...r.q.map((v) => num(v)), num(r.mean)]), { label: title });
  return figure(title, about, label, paint, behind(title, make));
}
