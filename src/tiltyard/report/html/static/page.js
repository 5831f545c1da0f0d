// Puts the page together from the data island.
const MARKS = { good: ["✓", "good: "], bad: ["✕", "bad: "], warn: ["!", "caution: "], "": ["·", ""] };

function summary(page) {
  const totals = page.runs.map((run) => run.wall).filter((x) => x !== null);
  const ends = page.runs.flatMap((run) => run.stages.map((stage) => stage.finished)).filter(Boolean).sort();
  const facts = [plural(page.runs.reduce((n, run) => n + run.stages.length, 0), "stage"),
    totals.length && `${time(totals.reduce((a, b) => a + b, 0))} from start to end`, ends.length && `finished ${day(ends[ends.length - 1])}`].filter(Boolean);
  const sentences = h("ul", { class: "sentences" }, page.summary.map((one) => h("li", { class: one.tone || null },
    h("span", { class: "mark", "aria-hidden": "true" }, MARKS[one.tone][0]), MARKS[one.tone][1] && h("span", { class: "visually-hidden" }, MARKS[one.tone][1]),
    one.parts.map((part) => (part.b === undefined ? prose(part) : h("strong", {}, part.b))))));
  const notes = page.notes.length ? h("div", { class: "notes" }, h("strong", {}, "What is missing"), h("ul", {}, page.notes.map((note) => h("li", {}, prose(note))))) : null;
  return h("div", { id: "summary" }, h("h1", {}, page.title), h("p", { class: "dim" }, facts.join(" · ")), sentences, notes);
}

function results(page, order) {
  if (!page.evaluations.length && !page.before_after.length && !page.reward_models.length && !page.gaps.length && !page.benchmarks.length && !page.infers.length) return null;
  const found = section("results", "Results", "Below each figure its 95% interval over prompts. Coloured where a figure is shown to differ from the baseline's: by paired tests adjusted for their number, or where there are none by intervals that do not meet.");
  found.append(...page.evaluations.map((table) => evaluation(table, order)), ...page.before_after.map(beforeAfter));
  if (page.reward_models.length) found.append(rewardModels(page.reward_models));
  found.append(...page.benchmarks.map(benchmark), ...page.gaps.map((one) => distances(one, order)), ...page.infers.map(sampled));
  const hhh = page.evaluations.filter((t) => t.columns.some((c) => c.key === "helpful" || c.key === "truthful" || c.key === "harmless"));
  for (const table of hhh) {
    found.append(h("h3", {}, "Helpful, truthful, harmless"), h("div", { class: "grid" }, ["helpful", "truthful", "harmless"].map((key) => {
      const column = table.columns.find((c) => c.key === key);
      return column && dots(column.title, column.about, table.rows.filter((r) => r.cells[key]).map((r) => ({ name: r.model, place: order.indexOf(r.model), cell: r.cells[key] })), { unit: "share" });
    })));
  }
  return found;
}

function compared(page, order) {
  const list = page.comparisons.filter((c) => c.matrix || c.lengths);
  const pictures = frontierCharts(page, order);
  if (!list.length && !pictures.length) return null;
  const found = section("comparison", "Comparison", "");
  if (pictures.length) found.append(h("div", { class: "grid wide" }, pictures));
  const place = (name) => { const i = order.indexOf(name); return i < 0 ? order.push(name) - 1 : i; };
  for (const one of list) {
    const figures = [];
    if (one.matrix && one.models.length > 1) figures.push(winMatrix(one));
    if (one.ratings && one.ratings.length) figures.push(dots("Ratings", `Bradley-Terry ratings from these wins, ${one.baseline} at 1,000 points, with 95% intervals`, one.ratings.map((r) => ({ name: r.model, place: place(r.model), cell: r })), { zero: 1000 }));
    if (one.lengths.length) figures.push(boxes("Length of the responses", "tokens: 5%, 25%, median, 75% and 95%; the dot is the mean", one.lengths.map((r) => ({ name: r.model, place: place(r.model), ...r }))));
    if (one.by_length && one.by_length.length) {
      const rows = one.by_length.slice(0, 6).flatMap((m) => m.rows.map((r) => ({ name: `${m.model}, ${r.label}`, place: place(m.model), cell: r.wins })));
      figures.push(dots("Wins by length", `share of wins over ${one.baseline} by ${one.by} where the response is shorter, about as long (0.8 to 1.25 times), and longer`, rows, { unit: "share", zero: 0.5 }));
    }
    if (list.length > 1) found.append(h("h3", {}, one.title));
    found.append(h("div", { class: "grid wide" }, figures));
    if (one.left_out) found.append(h("p", { class: "small dim" }, `${plural(one.left_out, "more model")} in the table above, not in the matrix.`));
  }
  return found;
}

function dataReport(page) {
  if (!page.data.length) return null;
  const found = section("data", "Data", "What the stages read, left out, split and labelled.");
  const made = page.data.filter((d) => d.about !== "Files and models that were read");
  found.append(h("div", { class: "grid" }, made.map((d) => h("div", {}, h("h3", {}, d.title), table(["", ""], d.rows, { label: d.about, caption: d.about })))));
  for (const d of page.data.filter((one) => !made.includes(one))) found.append(h("h3", {}, d.title), table(["file or model", "digest"], d.rows, { label: d.about, caption: d.about, texts: true }));
  return found;
}

function provenance(page) {
  const found = section("settings", "Settings, versions, cost", "What is needed to make this run again, and what it took.");
  for (const run of page.runs) {
    const stages = run.stages.filter((stage) => stage.settings);
    const versions = [...new Set(stages.map((stage) => stage.tiltyard && `Tiltyard ${stage.tiltyard}`).concat(stages.map((stage) => stage.torch && `torch ${stage.torch}`)).filter(Boolean))];
    const commits = [...new Set(stages.flatMap((stage) => Object.entries(stage.commits || {}).map(([what, commit]) => `${what} at ${commit}`)))];
    const seeds = [...new Set(stages.map((stage) => stage.seed).filter((seed) => seed !== null && seed !== undefined))];
    const facts = [["versions", versions.join(", ") || "not recorded"], ["commit", commits.join(", ") || "not recorded"], ["seeds", seeds.length ? seeds.map((seed) => num(seed)).join(", ") : "not recorded"],
      ["computing time", time(run.cost.seconds)], ["energy", run.cost.seconds ? `about ${run.cost.energy}` : "–"], ...(run.cost.money !== null ? [["money", num(run.cost.money)]] : []), ["how that is estimated", run.cost.how]];
    found.append(h("h3", {}, run.name), table(["", ""], facts, { label: `Facts of ${run.name}`, texts: true }));
    for (const stage of stages) {
      found.append(folded(stage.kind === stage.name ? stage.name : `${stage.name}: ${stage.kind}`, () => {
        const changed = stage.settings.filter((row) => row[2] !== null).length;
        const box = h("div", {}, h("p", { class: "small dim" }, `Started ${day(stage.started)}, ${stage.status}${stage.finished ? ` ${day(stage.finished)}` : ""}; execution ${stage.id}${stage.backend ? `; kernels: ${stage.backend}` : ""}${stage.threads ? `; ${plural(stage.threads, "thread")}` : ""}. ${changed ? `${plural(changed, "setting differs", "settings differ")} from the defaults.` : ""}`));
        box.append(table(["setting", "value", "default where it differs"], stage.settings.map((row) => [h("code", {}, row[0]), row[2] === null ? row[1] : h("strong", {}, row[1]), row[2] === null ? "" : row[2]]), { label: `Settings of ${stage.name}`, texts: true }));
        if (stage.figures.length) box.append(h("h4", {}, "What the stage returned"), table(["", ""], stage.figures.map(([key, value]) => [key.replaceAll("_", " "), value === null ? "–" : typeof value === "number" ? num(value) : value]), { label: `Result of ${stage.name}`, texts: true }));
        return box;
      }));
    }
  }
  return found;
}

function build() {
  const page = JSON.parse(document.getElementById("data").textContent);
  document.title = `${page.title} – Tiltyard report`;
  const main = document.getElementById("main"), nav = document.getElementById("nav");
  document.body.append(tip);
  document.getElementById("brand").textContent = page.runs.length === 1 ? page.title : "Tiltyard report";
  const order = [];
  for (const table of page.evaluations) for (const row of table.rows) if (!order.includes(row.model)) order.push(row.model);
  for (const stage of page.curves.stages) if (!order.includes(stage)) order.push(stage);
  const parts = [summary(page)];
  const add = (part) => { if (part) parts.push(part); };
  add(results(page, order));
  add(studySection(page.studies, order));
  add(compared(page, order));
  if (page.runs.some((run) => run.stages.length)) {
    const found = section("pipeline", "Pipeline", "What each stage read and made. A dashed frame is a stage that has not finished.");
    for (const run of page.runs) if (run.stages.length) found.append(page.runs.length > 1 ? h("h3", {}, run.name) : "", pipeline(run));
    add(found);
  }
  if (page.curves.metrics.length) {
    const found = section("training", "Training", "Hover for the values of a step.");
    found.append(...trainingCurves(page.curves, page.alarms, order).flat().filter(Boolean));
    add(found);
  }
  if (page.samples.length) {
    const found = section("samples", "Samples", "Read them: no figure above replaces it.");
    found.append(...sampleBrowser(page.samples, page.sample_notes, order).flat(Infinity).filter(Boolean));
    add(found);
  }
  add(dataReport(page));
  if (page.runs.some((run) => run.stages.length)) add(provenance(page));
  main.replaceChildren(...parts);
  for (const part of parts) nav.append(h("a", { href: `#${part.id}` }, part.id === "summary" ? "Summary" : part.querySelector("h2").textContent.split(",")[0]));
  document.getElementById("bottom").textContent = `Written ${day(page.made)} UTC by Tiltyard ${page.version}. This file is whole: it loads nothing and sends nothing.`;
  document.documentElement.dataset.ready = "yes";
}
build();
