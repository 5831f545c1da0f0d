// The pipeline: stages in columns by what they build on, what each read and made, and lines between them.
function pipeline(run) {
  const stages = run.stages.filter((stage) => stage.kind !== undefined);
  const byName = new Map(stages.map((stage, i) => [stage.name, i]));
  const parents = stages.map((stage) => [...new Set(stage.reads.map((r) => byName.get(r.stage)).filter((i) => i !== undefined))]);
  const depth = stages.map(() => 0);
  for (let round = 0; round < stages.length; round++) {
    stages.forEach((_, i) => parents[i].forEach((p) => { if (p !== i && depth[p] + 1 > depth[i] && depth[p] < stages.length) depth[i] = depth[p] + 1; }));
  }
  const columns = [];
  stages.forEach((_, i) => (columns[depth[i]] ||= []).push(i));
  const most = Math.max(1, ...columns.map((c) => (c ? c.length : 0))), compact = most > 6;
  const gx = columns.length > 5 ? 24 : 52, room = Math.max(700, Math.min(1110, document.getElementById("main").clientWidth - 40));
  const w = Math.max(132, Math.min(210, Math.floor((room - 4 - gx * (columns.length - 1)) / columns.length)));
  const size = { w, h: compact ? 42 : 78, gx, gy: compact ? 10 : 20 };
  const high = most * (size.h + size.gy) - size.gy + 4, width = columns.length * (size.w + size.gx) - size.gx + 4;
  const skips = stages.map((_, i) => Math.max(0, ...parents[i].map((p) => depth[i] - depth[p] - 1)));
  const height = high + (Math.max(0, ...skips) ? 14 + 9 * Math.max(...skips) : 0);
  const at = [];
  columns.forEach((column, c) => {
    const own = column.length * (size.h + size.gy) - size.gy, over = column.flatMap((i) => parents[i]).filter((p) => at[p]).map((p) => at[p].y + size.h / 2);
    const centre = over.length && column.length < most ? over.reduce((a, b) => a + b) / over.length : high / 2;
    const start = Math.max(0, Math.min(high - own, centre - own / 2));
    column.forEach((i, r) => { at[i] = { x: 2 + c * (size.w + size.gx), y: start + r * (size.h + size.gy) }; });
  });
  const svg = s("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": `Pipeline of ${run.name}: ${stages.map((stage) => stage.name).join(", ")}` });
  const edges = [];
  stages.forEach((_, i) => parents[i].forEach((p) => {
    if (!at[p] || p === i) return;
    const x1 = at[p].x + size.w, y1 = at[p].y + size.h / 2, x2 = at[i].x, y2 = at[i].y + size.h / 2, bend = Math.max(24, (x2 - x1) / 2);
    const span = depth[i] - depth[p] - 1, below = high + 2 + 9 * span, xa = at[p].x + size.w * 0.75, xb = at[i].x + size.w * 0.25, ya = at[p].y + size.h, yb = at[i].y + size.h;
    const path = span > 0 ? `M${xa} ${ya}C${xa} ${below + 14} ${xa + 10} ${below} ${xa + 40} ${below}L${xb - 40} ${below}C${xb - 10} ${below} ${xb} ${below + 14} ${xb} ${yb}` : `M${x1} ${y1}C${x1 + bend} ${y1} ${x2 - bend} ${y2} ${x2} ${y2}`;
    const edge = s("path", { class: "edge", d: path });
    edges.push({ edge, p, i });
    svg.append(edge);
  }));
  stages.forEach((stage, i) => svg.append(node(stage, i, at[i], size, compact, edges)));
  return h("div", {}, scrolling(svg, `Pipeline of ${run.name}`), behind(`stages of ${run.name}`, () => stageTable(stages), "Table of the stages"));
}
function node(stage, i, at, size, compact, edges) {
  const room = Math.floor((size.w - 22) / 6.3);
  const cut = (text, n) => (text.length > n ? `${text.slice(0, n - 1)}…` : text);
  const status = stage.status === "finished" ? time(stage.seconds) : stage.of ? `${num(stage.steps)} of ${num(stage.of)} steps` : "not finished";
  const kind = stage.kind !== stage.name ? stage.kind : "";
  const group = s("g", { class: `node ${stage.status}`, transform: `translate(${at.x} ${at.y})` }, s("rect", { width: size.w, height: size.h, rx: 8 }),
    s("text", { class: "bold", x: 12, y: compact ? 18 : 21 }, cut(stage.name, Math.max(6, room - status.length - 1))),
    s("text", { x: size.w - 12, y: compact ? 18 : 21, "text-anchor": "end" }, status));
  const made = stage.made.filter((m) => !["a model", "an adapter"].includes(m)).join(", ") || stage.made.join(", ");
  const files = stage.reads.map((r) => r.what).filter(Boolean).join(", ");
  if (compact) group.append(s("text", { x: 12, y: 34 }, cut(kind || made || files || "", room)));
  else {
    const lines = [kind, files && `← ${files}`, made && `→ ${made}`].filter(Boolean).slice(-2);
    lines.forEach((text, k) => group.append(s("text", { x: 12, y: 42 + 18 * k }, cut(text, room))));
  }
  const lit = (on) => edges.forEach((e) => { if (e.i === i || e.p === i) e.edge.classList.toggle("lit", on); });
  group.addEventListener("pointerenter", () => lit(true));
  group.addEventListener("pointerleave", () => lit(false));
  return hover(group, [`${stage.name} (${stage.kind}), ${status}`, readsOf(stage) && `reads ${readsOf(stage)}`, stage.made.length && `makes ${stage.made.join(", ")}`].filter(Boolean).join("\n"));
}
const readsOf = (stage) => stage.reads.map((r) => (r.stage ? (r.what ? `${r.stage}/${r.what}` : r.stage) : r.what)).join(", ");
function stageTable(stages) {
  return table(["stage", "kind", "reads", "makes", "steps", "time", "state"], stages.map((stage) => [stage.name, stage.kind, readsOf(stage) || "–", stage.made.join(", ") || "–", stage.steps ? num(stage.steps) : "–", time(stage.seconds), stage.status]), { label: "Stages", texts: true });
}
