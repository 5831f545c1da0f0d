// Training curves: one small chart a metric, with buttons that show and hide stages in all of them.
function trainingCurves(data, alarms, order) {
  const place = (stage) => order.indexOf(stage);
  const on = new Set(data.stages.slice(0, 2 * COLOURS));
  const main = h("div", { class: "grid" }), rest = h("div", { class: "grid" });
  const draw = () => {
    const made = (metric) => {
      const series = metric.series.filter((one) => on.has(one.stage)).map((one) => ({ name: one.stage, place: place(one.stage), x: one.x || data.steps[one.stage], y: one.y }));
      if (!series.length) return null;
      const marks = alarms.filter((one) => on.has(one.stage) && series.some((s) => s.name === one.stage));
      const about = [metric.unit, metric.about].filter(Boolean).join("; ");
      return lineChart(metric.title, about, series, { unit: metric.unit === "share" ? "share" : "", name: metric.name, marks });
    };
    main.replaceChildren(...data.metrics.filter((m) => m.main).map(made).filter(Boolean));
    if (box.open) rest.replaceChildren(...data.metrics.filter((m) => !m.main).map(made).filter(Boolean));
  };
  const chips = h("div", { class: "chips legend", role: "group", "aria-label": "Stages in the curves" }, data.stages.map((stage) => {
    const chip = h("button", { type: "button", "aria-pressed": String(on.has(stage)) }, swatch(place(stage)), " ", stage);
    chip.addEventListener("click", () => {
      if (on.has(stage)) on.delete(stage); else on.add(stage);
      chip.setAttribute("aria-pressed", String(on.has(stage)));
      draw();
    });
    return chip;
  }));
  const others = data.metrics.filter((m) => !m.main).length;
  const box = h("details", { class: "block" }, h("summary", {}, plural(others, "more metric")), rest);
  box.addEventListener("toggle", draw);
  const merged = Object.entries(data.merged);
  draw();
  const alarmed = alarms.length ? h("div", { class: "notes" }, h("strong", {}, "Alarms"), h("ul", {}, alarms.map((one) => h("li", {}, `${one.stage}, step ${num(one.step)}: ${one.text}.`, one.samples.length ? behind(`step ${num(one.step)} of ${one.stage}`, () => h("dl", { class: "small" }, one.samples.map((r) => [h("dt", {}, r.p), h("dd", {}, r.s !== null && h("strong", {}, `${num(r.s)} `), r.t || "(empty)")])), "Responses of that step") : null)))) : null;
  return [alarmed, data.stages.length > 1 ? chips : null, main, others ? box : null, data.notes.map((text) => h("p", { class: "small dim" }, prose(text))),
    merged.length ? h("p", { class: "small dim" }, "Points are means of neighbouring steps: ", merged.map(([stage, n]) => `${n} in ${stage}`).join(", "), ".") : null];
}

function frontierCharts(page, order) {
  const found = [];
  const table = page.evaluations.find((t) => t.rows.some((r) => r.cells.kl));
  const place = (name) => { const i = order.indexOf(name); return i < 0 ? order.push(name) - 1 : i; };
  if (table) {
    for (const key of ["gold", "proxy", "win_rate"]) {
      const column = table.columns.find((c) => c.key === key);
      const points = table.rows.filter((r) => r.cells.kl && r.cells[key]).map((r) => ({ name: r.model, place: place(r.model), x: r.cells.kl, y: r.cells[key] }));
      if (column && points.length > 1 && found.length < 2) {
        found.push(scatter(`${column.title} against KL`, "each model after training, with 95% intervals: up and to the left is better", points, [], { unit: column.unit, xlabel: "KL, nats a response", ylabel: column.title.toLowerCase() }));
      }
    }
    const points = table.rows.filter((r) => r.cells.gold && r.cells.proxy).map((r) => ({ name: r.model, place: place(r.model), x: r.cells.proxy, y: r.cells.gold }));
    if (points.length > 1) found.push(scatter("Gold against proxy", "a model far to the right that is not high has learned to please the proxy", points, [], { xlabel: "proxy reward", ylabel: "gold reward" }));
  }
  const paths = page.frontier;
  if (paths.length) {
    const lines = (key) => paths.filter((p) => p[key]).map((p) => ({ name: p.stage, place: place(p.stage), points: p.kl.map((kl, i) => [kl, p[key][i], p.step[i]]) }));
    const gold = lines("gold");
    if (!gold.length) found.push(scatter("Reward over training", "the path of each stage as its KL grows; dots are means of neighbouring steps, the large one is the last", [], lines("proxy"), { xlabel: "KL, nats a response", ylabel: "mean reward" }));
    if (gold.length) {
      const both = paths.filter((p) => p.gold).flatMap((p) => [
        { name: `${p.stage}, proxy`, place: place(p.stage), points: p.kl.map((kl, i) => [kl, p.proxy[i], p.step[i]]) },
        { name: `${p.stage}, gold`, place: place(p.stage), dash: "6 4", points: p.kl.map((kl, i) => [kl, p.gold[i], p.step[i]]) }]);
      found.push(scatter("Proxy and gold over training", "where the proxy rises and gold (dashed) does not, the reward is being hacked", [], both, { xlabel: "KL, nats a response", ylabel: "mean reward" }));
    }
  }
  return found;
}
