// Tables of what was measured: every figure with its 95% interval, and a small picture of it on the column's scale.
const MANY = 4; // models above which a comparison is in the order of its wins
function evaluation(data, order) {
  const box = h("div", {}, h("h3", {}, data.title));
  const against = data.baseline ? `Wins are against ${data.baseline}, ${DECIDES[data.by] || "by the score of the evaluation"}. ` : "";
  const prompts = [...new Set(data.rows.map((row) => row.prompts))].filter(Boolean);
  box.append(h("p", { class: "dim small" }, `${against}Each model answered ${prompts.map((n) => num(n)).join(" or ")} prompts; below each figure its 95% interval over prompts.${data.rows.length > MANY ? " In the order of the wins." : ""}`));
  const spans = Object.fromEntries(data.columns.map((c) => [c.key, extent(data.rows.flatMap((r) => { const x = r.cells[c.key]; return x ? [x.v, x.lo, x.hi] : []; }), 0.08)]));
  const base = data.rows.find((row) => row.model === data.baseline);
  const wins = (row) => (row.model === data.baseline ? Infinity : row.cells.win_rate ? row.cells.win_rate.v : -Infinity);
  const ranked = data.rows.length > MANY ? [...data.rows].sort((a, b) => wins(b) - wins(a) || 0) : data.rows;
  const rows = ranked.map((row) => h("tr", { class: row.model === data.baseline ? "baseline" : null },
    h("th", { scope: "row" }, row.model),
    data.columns.map((column) => cellOf(column, row, base, spans[column.key], order.indexOf(row.model)))));
  const head = h("tr", {}, h("td", {}), data.columns.map((c) => hover(h("th", { scope: "col" }, c.title, unitOf(c.unit) && h("span", { class: "about" }, unitOf(c.unit))), c.about)));
  box.append(scrolling(h("table", {}, h("thead", {}, head), h("tbody", {}, rows)), `Results of ${data.title}`));
  const meanings = () => h("dl", {}, data.columns.map((c) => [h("dt", {}, c.title), h("dd", {}, c.about)]));
  box.append(behind(`columns of ${data.title}`, meanings, "What the columns are"));
  const tested = data.rows.filter((row) => row.tests.win_rate_p !== undefined || Object.keys(row.tests.differences).length);
  if (tested.length) box.append(behind(`tests of ${data.title}`, () => testTables(tested, data), `Tests against ${data.baseline || "the baseline"}`));
  const costs = data.rows.filter((row) => Object.keys(row.costs).length);
  if (costs.length) box.append(behind(`cost of ${data.title}`, () => costTable(costs), "What each model cost"));
  const nulls = data.nulls.filter((row) => row.v !== undefined);
  if (nulls.length) box.append(behind(`null rows of ${data.title}`, () => table(["", "wins", "95% interval", "pairs"], nulls.map((row) => [row.name, percent(row.v), interval(row, "share") || "–", num(row.n)]), { label: `Null rows of ${data.title}`, caption: `How often the judge prefers answers that answer nothing to those of ${data.baseline}: a constant one, the longest to another prompt, a copy of the prompt.` }), "Answers that answer nothing"));
  if (data.judge.length) box.append(behind(`verdicts of ${data.title}`, () => h("ul", {}, data.judge.map((text) => h("li", {}, prose(text)))), "Verdicts of the judge"));
  const unscored = data.rows.filter((row) => row.unscored);
  if (unscored.length) box.append(h("p", { class: "small dim" }, "Without a reward: ", unscored.map((row) => `${row.model} ${num(row.unscored)} of ${num(row.n)} responses`).join(", "), "."));
  return box;
}
const DECIDES = { gold: "by the gold reward", proxy: "by the reward", judge: "by an AI judge" };
const unitOf = (unit) => (unit === "share" ? "" : unit || "");

function cellOf(column, row, base, span, place) {
  const cell = row.cells[column.key];
  if (!cell) return h("td", {}, h("span", { class: "dim" }, "–"));
  const zero = column.key.startsWith("win_rate") ? 0.5 : base && base !== row && base.cells[column.key] ? base.cells[column.key].v : null;
  const known = cell.lo !== undefined;
  let verdict = null;
  const paired = row.tests.differences[column.key], adjusted = column.key === "win_rate" ? row.tests.win_rate_q : paired && paired.q;
  if (known && zero !== null && column.better) {
    const sure = typeof adjusted === "number" ? adjusted < 0.05 : column.key.startsWith("win_rate") ? cell.lo > zero || cell.hi < zero : disjoint(cell, base.cells[column.key]);
    if (sure) verdict = (cell.v > zero) === (column.better === "up") ? "better" : "worse";
  }
  const x = scale(span, [3, 69]), [value, ends] = exact(cell, column.unit), self = known && cell.lo === cell.hi;
  const picture = known && span[1] > span[0] ? s("svg", { class: `c${Math.max(0, place) % COLOURS}`, width: 72, height: 10, "aria-hidden": "true" },
    zero !== null && zero >= span[0] && zero <= span[1] ? s("line", { class: "zero", x1: x(zero), x2: x(zero), y1: 0, y2: 10 }) : null,
    s("line", { class: "whisker", x1: x(cell.lo), x2: x(cell.hi), y1: 5, y2: 5 }), s("circle", { class: "dot", cx: x(cell.v), cy: 5, r: 4 })) : null;
  return h("td", { class: verdict }, self ? shown(cell.v, column.unit) : value, picture, !self && ends && h("span", { class: "ci" }, ends));
}
const pText = (p) => (p === undefined || p === null ? "–" : p < 0.0001 ? "< 0.0001" : num(p, 2));
function testTables(rows, data) {
  const wins = table(["", "wins", "ties", "losses", "without a verdict", "p", "adjusted", "would show"], rows.map((row) => {
    const t = row.tests;
    return [row.model, num(t.wins), num(t.ties), num(t.losses), num(t.undecided), pText(t.win_rate_p), pText(t.win_rate_q), t.win_rate_mde ? `${Math.ceil(100 * t.win_rate_mde - 1e-9)} points` : "–"];
  }), { label: `Tests of the wins in ${data.title}`, caption: "Paired by prompt; adjusted for the number of models (Benjamini-Hochberg). Would show: the smallest difference from 50% that this set shows with 80% power." });
  const unit = (key) => (data.columns.find((c) => c.key === key) || {}).unit;
  const title = (key) => (data.columns.find((c) => c.key === key) || { title: key }).title;
  const differences = rows.flatMap((row) => Object.entries(row.tests.differences).map(([key, d]) => [`${row.model}: ${title(key)}`, signed(d.v, unit(key)), d.lo === undefined ? "–" : `${signed(d.lo, unit(key), "")} to ${signed(d.hi, unit(key), "")}`, pText(d.p), pText(d.q), d.mde === null ? "–" : signed(d.mde, unit(key))]));
  return h("div", {}, wins, differences.length ? table(["", "difference", "95% interval", "p", "adjusted", "would show"], differences, { label: `Differences in ${data.title}`, caption: `Each model less ${data.baseline}, paired by prompt.` }) : null);
}
const disjoint = (a, b) => b && b.lo !== undefined && (a.lo > b.hi || a.hi < b.lo);

function costTable(rows) {
  const keys = ["samples", "judge_calls", "rankings", "seconds", "models_in_memory"].filter((key) => rows.some((row) => row.costs[key] !== undefined));
  const titles = { samples: "responses sampled", judge_calls: "scores and judge calls", rankings: "people's rankings", seconds: "time", models_in_memory: "models in memory" };
  return table(["", ...keys.map((key) => titles[key])], rows.map((row) => [row.model, ...keys.map((key) => (key === "seconds" ? time(row.costs[key]) : num(row.costs[key])))]), { label: "Cost of each model" });
}

function beforeAfter(data) {
  const value = (cell, unit) => (cell ? shown(cell.v, unit) : "–");
  const rows = data.lines.map((line) => {
    const change = line.change ? [signed(line.change.v, line.unit), h("span", { class: "ci" }, line.change.lo !== undefined ? `${signed(line.change.lo, line.unit, "")} to ${signed(line.change.hi, line.unit, "")}` : "")]
      : line.after && line.after.lo !== undefined ? h("span", { class: "ci" }, `after: ${interval(line.after, line.unit)}`) : "–";
    return h("tr", { class: line.inner ? "inner" : null }, h("th", { scope: "row" }, line.name, h("span", { class: "about" }, line.about)),
      h("td", {}, value(line.before, line.unit)), h("td", {}, value(line.after, line.unit)),
      h("td", { class: line.verdict || null }, change), h("td", { class: `verdict ${line.verdict}` }, line.verdict || ""));
  });
  const head = h("tr", {}, h("td", {}), ["before", "after", "change (95% interval)", ""].map((t) => (t ? h("th", { scope: "col" }, t) : h("td", {}))));
  return h("div", {}, h("h3", {}, data.title), scrolling(h("table", {}, h("thead", {}, head), h("tbody", {}, rows)), `Before and after: ${data.title}`),
    data.note && h("p", { class: "small dim" }, prose(data.note)));
}

function rewardModels(list) {
  const box = h("div", {}, h("h3", {}, "Reward models on labelled pairs"));
  const cell = (c, unit) => (c ? [shown(c.v, unit), h("span", { class: "ci" }, interval(c, unit))] : "–");
  const head = ["", "agrees with labels", "longer response agrees", "above that rule", "prefers the longer", "calibration error", "pairs"];
  const rows = list.map((r) => h("tr", {}, h("th", { scope: "row" }, r.title, h("span", { class: "about" }, `${r.model} on ${r.data}`)),
    h("td", {}, cell(r.accuracy, "share")), h("td", {}, cell(r.longer_wins, "share")),
    h("td", { class: r.above_rule && r.above_rule.lo > 0 ? "better" : r.above_rule && r.above_rule.hi < 0 ? "worse" : null }, r.above_rule ? [signed(r.above_rule.v, "share"), h("span", { class: "ci" }, `${signed(r.above_rule.lo, "share", "")} to ${signed(r.above_rule.hi, "share", "")}`)] : "–"),
    h("td", {}, cell(r.picks_longer, "share")), h("td", {}, num(r.ece)), h("td", {}, num(r.pairs))));
  box.append(scrolling(h("table", {}, h("thead", {}, h("tr", {}, head.map((t) => (t ? h("th", { scope: "col" }, t) : h("td", {}))))), h("tbody", {}, rows)), "Reward models"));
  const grid = h("div", { class: "grid wide" });
  for (const r of list.slice(0, 12)) {
    if (r.findings.length) grid.append(h("div", {}, h("h3", {}, r.title), h("ul", {}, r.findings.map((text) => h("li", {}, prose(text))))));
  }
  if (grid.children.length) box.append(folded("Findings for each of them", () => grid));
  const pictures = list.filter((r) => r.by_length.length).slice(0, 12);
  if (pictures.length) {
    box.append(folded("Accuracy by how much longer the chosen response is", () => h("div", { class: "grid wide" }, pictures.map((r) =>
      dots(r.title, "share of pairs whose label it agrees with; the line: by chance", r.by_length.filter((x) => x.accuracy).map((x) => ({ name: x.label, place: 0, cell: x.accuracy })), { unit: "share", zero: 0.5 })))));
  }
  return box;
}

function winMatrix(data) {
  const head = h("tr", {}, h("td", {}), data.models.map((m) => h("th", { scope: "col" }, m)));
  const rows = data.models.map((a, i) => h("tr", {}, h("th", { scope: "row" }, a), data.models.map((b, j) => {
    const cell = data.matrix[i][j];
    if (!cell) return h("td", {}, h("span", { class: "dim", "aria-hidden": "true" }, "·"));
    const found = h("td", {}, percent(cell.v));
    const strength = Math.min(0.5, Math.abs(cell.v - 0.5) * 1.1);
    found.style.backgroundColor = `rgb(var(--${cell.v >= 0.5 ? "up" : "down"}) / ${strength.toFixed(2)})`;
    if (cell.lo > 0.5 || cell.hi < 0.5) found.style.fontWeight = "700";
    return hover(found, `${a} against ${b}: ${percent(cell.v)}\n95% interval ${interval(cell, "share")}\non ${num(cell.n)} prompts`);
  })));
  const intervals = () => table(["", "against", "wins", "95% interval", "prompts"], data.models.flatMap((a, i) => data.models.map((b, j) => (data.matrix[i][j] && i < j ? [a, b, percent(data.matrix[i][j].v), interval(data.matrix[i][j], "share"), num(data.matrix[i][j].n)] : null))).filter(Boolean), { label: "Intervals of the win matrix", texts: true });
  return h("figure", { class: data.models.length > 7 ? "full" : null }, h("figcaption", {}, `Wins of the row over the column, by ${data.by}`, h("span", { class: "about" }, "in bold where the 95% interval leaves out 50%; ties count half")),
    scrolling(h("table", { class: data.models.length > 9 ? "heat dense" : "heat" }, h("thead", {}, head), h("tbody", {}, rows)), `Win matrix of ${data.title}`), behind(`intervals of the wins in ${data.title}`, intervals));
}

// The distance of models to the optimum of E[r] - beta KL, and the picture of reward against KL with the best that is possible.
function distances(data, order) {
  const place = (name) => { const i = order.indexOf(name); return i < 0 ? order.push(name) - 1 : i; };
  const head = h("tr", {}, h("td", {}), data.columns.map((c) => hover(h("th", { scope: "col" }, c.title), c.about)));
  const cell = (row, key) => { const c = row.cells[key]; if (!c) return h("td", {}, h("span", { class: "dim" }, row.refused ? "refused" : "–")); const [v, ends] = exact(c, ""); return h("td", {}, v, ends && c.lo !== c.hi && h("span", { class: "ci" }, ends)); };
  const rows = data.rows.map((row) => h("tr", {}, h("th", { scope: "row" }, row.model), data.columns.map((c) => cell(row, c.key))));
  const box = h("div", {}, h("h3", {}, `${data.title}: distance to the optimum`), h("p", { class: "dim small" }, prose(data.note), ". Below each figure its 95% interval over prompts."));
  box.append(scrolling(h("table", {}, h("thead", {}, head), h("tbody", {}, rows)), `Distance to the optimum: ${data.title}`));
  box.append(behind(`columns of ${data.title}`, () => h("dl", {}, data.columns.map((c) => [h("dt", {}, c.title), h("dd", {}, c.about)])), "What the columns are"));
  box.append(behind(`diversity in ${data.title}`, () => table(["", ...data.facts.map((f) => f.title), "effective samples a prompt"], data.rows.map((row) => [row.model, ...data.facts.map((f) => (row.facts[f.key] === undefined ? "–" : shown(row.facts[f.key], f.unit))), num(row.ess)]), { label: `Diversity in ${data.title}` }), "Diversity and how well the optimum was seen"));
  if (data.refusals.length) box.append(h("ul", { class: "small" }, data.refusals.map((text) => h("li", {}, prose(text)))));
  const points = data.rows.filter((row) => row.cells.kl && row.cells.reward).map((row) => ({ name: row.model, place: place(row.model), x: row.cells.kl, y: row.cells.reward }));
  const paths = [{ name: "optimum", place: 7, points: data.curve, word: "beta", bare: true }, { name: "best of N", place: 4, points: data.best, word: "N", dash: "3 3" }].filter((path) => path.points.length > 1);
  if (points.length) box.append(h("div", { class: "grid wide" }, scatter("Reward against KL, with the best that is possible", "no model can lie above the curve of the optimum; best of N takes the best of N responses of the prior", points, paths, { xlabel: "KL to the prior, nats a response", ylabel: "reward" })));
  if (data.paths.length) box.append(overoptimisation(data, place));
  if (data.courses.length) box.append(collapse(data, place));
  return box;
}

// A benchmark file: models in rows, its measures in columns, coloured by the paired test against the baseline.
function benchmark(data) {
  const unit = (m) => (m.unit === "share" ? "share" : "");
  const cell = (row, m) => { const c = row.cells[m.key]; if (!c) return h("td", {}, h("span", { class: "dim" }, "–")); const [v, ends] = exact(c, unit(m)); return h("td", { class: c.verdict || null }, v, ends && h("span", { class: "ci" }, ends)); };
  const made = (rows, name, label) => scrolling(h("table", {}, h("thead", {}, h("tr", {}, h("td", {}), data.measures.map((m) => h("th", { scope: "col" }, m.title, unitOf(m.unit) && h("span", { class: "about" }, m.unit))))),
    h("tbody", {}, rows.map((row) => h("tr", {}, h("th", { scope: "row" }, name(row)), data.measures.map((m) => cell(row, m)))))), label);
  const about = [data.items !== null && plural(data.items, "item"), data.chance !== null && `by chance ${percent(data.chance)}`, ...data.notes].filter(Boolean).join("; ");
  const box = h("div", {}, h("h3", {}, data.title), h("p", { class: "dim small" }, prose(about)), made(data.rows, (row) => row.model, data.title));
  if (data.subsets.length) box.append(behind(`parts of ${data.title}`, () => made(data.subsets, (row) => `${row.subset}: ${row.model}`, `Parts of ${data.title}`), "Parts of it"));
  return box;
}
