// Over-optimisation and collapse along training, as `tiltyard gap` measured them with `gold` and `along`.
function overoptimisation(data, place) {
  const picture = (what, title, about) => {
    const own = data.paths.filter((path) => path.what === what);
    const fits = what === "gold" ? data.fits.map((fit) => ({ name: `${fit.name}, fit`, place: place(fit.name), points: fit.curve, bare: true, word: "d" })) : [];
    const fitted = new Set(data.fits.map((fit) => fit.name));
    const paths = own.map((path) => ({ name: path.name, place: place(path.name), points: path.points, loose: path.loose, word: path.loose ? "step" : "N", dash: "3 3", silent: what === "gold" && fitted.has(path.name) }));
    return own.length ? scatter(title, about, [], [...paths, ...fits], { xlabel: "d = √KL to the prior", ylabel: what === "gold" ? "gold reward" : "reward" }) : null;
  };
  const merged = data.paths.filter((path) => path.loose && path.of > path.points.length);
  const about = `dots: ${merged.length ? "means of neighbouring steps" : "steps"} of training, each on its own prompts, so compare shapes and not heights; squares of the distance are KL, nats a response`;
  const box = h("div", {}, h("h4", {}, "Over-optimisation: the reward that is optimised, and gold"),
    h("div", { class: "grid wide" }, picture("reward", "Reward that is optimised", about), picture("gold", "Gold reward, with fits", "where it falls while the reward at its left rises, the reward is over-optimised")));
  if (data.fits.length) {
    const between = (cell) => [num(cell.v), cell.lo !== undefined && h("span", { class: "ci" }, interval(cell))];
    const rows = data.fits.map((fit) => [fit.name, `${num(fit.start)} + ${fit.form}`, between(fit.a), between(fit.b), `${num(fit.reach[0])} to ${num(fit.reach[1])}`, fit.peak ? between(fit.peak) : "not known there"]);
    const head = ["", "gold at distance d = √KL", "a", "b", "range of d", "gold peaks at d ="];
    box.append(scrolling(h("table", {}, h("caption", {}, "Fits of gold, with 95% intervals. A peak is stated where its whole interval lies within the range that was seen."),
      h("thead", {}, h("tr", {}, head.map((t) => (t ? h("th", { scope: "col" }, t) : h("td", {}))))),
      h("tbody", {}, rows.map((row) => h("tr", {}, row.map((c, i) => h(i ? "td" : "th", i ? {} : { scope: "row" }, c)))))), `Fits of gold in ${data.title}`));
  }
  return box;
}

function collapse(data, place) {
  const charts = data.measures.map((m) => {
    const series = data.courses.filter((course) => course.series[m.key]).map((course) => ({ name: course.name, place: place(course.name), x: course.series[m.key][0], y: course.series[m.key][1] }));
    return lineChart(m.title, [m.unit === "share" ? "" : m.unit, m.about].filter(Boolean).join("; "), series, { unit: m.unit === "share" ? "share" : "", name: m.key, marks: [] });
  });
  const names = data.courses.map((course) => h("li", {}, swatch(place(course.name)), " ", course.name));
  return h("div", {}, h("h4", {}, "Collapse along training"), h("p", { class: "dim small" }, "Of the responses of each step, whatever their prompts."),
    names.length > 1 ? h("ul", { class: "key" }, names) : null, h("div", { class: "grid" }, charts));
}

// What samplers drew without training: one row a file of responses.
function sampled(data) {
  const cell = (row, c) => { const x = row.cells[c.key]; if (!x) return h("td", {}, h("span", { class: "dim" }, "–")); const [v, ends] = exact(x, c.unit); return h("td", {}, v, ends && x.lo !== x.hi && h("span", { class: "ci" }, ends)); };
  const head = h("tr", {}, h("td", {}), h("th", { scope: "col" }, "responses"), data.columns.map((c) => hover(h("th", { scope: "col" }, c.title), c.about)));
  const rows = data.rows.map((row) => h("tr", {}, h("th", { scope: "row" }, row.name, h("span", { class: "about" }, `${row.sampler}${row.beta === null ? "" : `, beta ${num(row.beta)}`}: ${row.about}`)),
    h("td", {}, num(row.given), h("span", { class: "ci" }, `to ${plural(row.prompts, "prompt")}`)), data.columns.map((c) => cell(row, c))));
  const box = h("div", {}, h("h3", {}, `${data.title}: sampled without training`), scrolling(h("table", {}, h("thead", {}, head), h("tbody", {}, rows)), `Sampled without training: ${data.title}`));
  box.append(behind(`columns of samplers in ${data.title}`, () => h("dl", {}, data.columns.map((c) => [h("dt", {}, c.title), h("dd", {}, c.about)])), "What the columns are"));
  const refused = data.rows.flatMap((row) => row.refusals.map((text) => h("li", {}, `${row.name}: KL and TV to the optimum and log Z are not given: ${text}`)));
  if (refused.length) box.append(h("ul", { class: "small" }, refused));
  return box;
}

// One recipe under several seeds: means with t intervals over seeds, and the differences from the baseline.
function studySection(list, order) {
  if (!list.length) return null;
  const place = (name) => { const i = order.indexOf(name); return i < 0 ? order.push(name) - 1 : i; };
  const found = section("studies", "Studies", "One recipe under several seeds: below each mean its 95% t interval over seeds, wide with few of them. Differences from the baseline are paired by seed; an interval of them that leaves out 0 is one of many here, not adjusted for their number.");
  for (const study of list) {
    found.append(h("h3", {}, study.title), h("p", { class: "dim small" }, `${plural(study.seeds, "seed")}.`));
    for (const one of study.tables) found.append(studyTable(study, one), studyPicture(one, place));
  }
  return found;
}
function studyTable(study, data) {
  const title = data.at ? `${data.title}, all at ${data.at}` : data.title;
  const cell = (row, c) => {
    const x = row.cells[c.key];
    if (!x) return h("td", {}, h("span", { class: "dim" }, "–"));
    const [v, ends] = exact(x, c.unit);
    return hover(h("td", {}, v, ends && x.lo !== x.hi && h("span", { class: "ci" }, ends)), `${row.model}: ${c.title} of each seed\n${x.values.map((one) => shown(one, c.unit)).join(", ")}`);
  };
  const head = h("tr", {}, h("td", {}), data.columns.map((c) => h("th", { scope: "col" }, c.title, unitOf(c.unit) && h("span", { class: "about" }, unitOf(c.unit)))));
  const rows = data.rows.map((row) => h("tr", {}, h("th", { scope: "row" }, row.model, row.seeds < study.seeds && h("span", { class: "about" }, `${row.seeds} of ${plural(study.seeds, "seed")}`)), data.columns.map((c) => cell(row, c))));
  const box = h("div", {}, h("h4", {}, title), scrolling(h("table", {}, h("thead", {}, head), h("tbody", {}, rows)), `${study.title}: ${title}`));
  const differ = data.rows.flatMap((row) => data.columns.filter((c) => row.cells[c.key] && row.cells[c.key].d).map((c) => {
    const d = row.cells[c.key].d;
    return [`${row.model}: ${c.title}`, signed(d.v, c.unit), d.lo === undefined ? "–" : `${signed(d.lo, c.unit, "")} to ${signed(d.hi, c.unit, "")}`, num(d.n)];
  }));
  if (differ.length) box.append(behind(`differences in ${title} of ${study.title}`, () => table(["", "difference", "95% interval", "seeds"], differ, { label: `Differences in ${title} of ${study.title}`, caption: "Each model less the baseline, paired by seed." }), "Differences from the baseline"));
  if (data.spread) box.append(h("p", { class: "small dim" }, `${data.spread}.`));
  return box;
}
function studyPicture(data, place) {
  const rows = (c) => data.rows.filter((row) => row.cells[c.key]).map((row) => ({ name: row.model, place: place(row.model), cell: row.cells[c.key] }));
  const main = ["gold", "proxy", "win_rate", "accuracy", "icc"].map((key) => data.columns.find((c) => c.key === key)).filter((c) => c && rows(c).length > 1).slice(0, 2);
  const many = data.at ? `${data.title} at ${data.at}` : data.title;
  return main.length ? h("div", { class: "grid wide" }, main.map((c) => dots(`${c.title}: ${many}`, "means over seeds with 95% t intervals", rows(c), { unit: c.unit === "share" ? "share" : "" }))) : "";
}
