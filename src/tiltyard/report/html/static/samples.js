// The sample browser: prompts with the responses of the chosen models side by side, filters, differences, token colours.
const PAGE = 8, FIRST = 4;
const MODES = [
  { key: "lr", title: "log-ratio to the reference", about: "log pi - log ref of each token, in nats", of: (r) => r.lp && r.rp && r.lp.map((v, i) => (v === null || r.rp[i] === null || r.rp[i] === undefined ? null : v - r.rp[i])), low: "less likely than under the reference", high: "more likely", full: 4 },
  { key: "ad", title: "advantage", about: "advantage of each token in training", of: (r) => r.ad, low: "made less likely", high: "made more likely", full: 2 },
  { key: "lp", title: "log-probability", about: "log-probability of each token under the model that sampled it, in nats", of: (r) => r.lp, low: "surprising", high: "", full: 8 },
];

function sampleBrowser(items, notes, order) {
  const place = (name) => { const i = order.indexOf(name); return i < 0 ? order.push(name) - 1 : i; };
  const all = (pick) => items.flatMap((item) => item.rs.map(pick));
  const state = { text: "", source: "", step: "", models: null, low: null, high: null, short: null, long: null, differ: false, sort: "", against: "", mode: "", shown: PAGE };
  const sources = [...new Set(items.map((item) => item.src))];
  const list = h("div", {}), count = h("p", { class: "dim small", role: "status" }), key = h("div", { class: "key" }), more = h("button", { type: "button", class: "more" }, "Show more");
  const change = (name, value) => { state[name] = value; state.shown = PAGE; draw(); };
  const field = (label, input) => h("label", {}, label, input);
  const select = (name, options) => { const made = h("select", {}, options.map(([value, text]) => h("option", { value }, text))); made.addEventListener("change", () => change(name, made.value)); return made; };
  const number = (name, label) => { const made = h("input", { type: "number", step: "any", "aria-label": label, placeholder: label.split(" ")[0] }); made.addEventListener("input", () => change(name, made.value === "" ? null : Number(made.value))); return made; };
  const search = h("input", { type: "search", placeholder: "words of a prompt or an answer" });
  search.addEventListener("input", () => change("text", search.value.toLowerCase()));

  const controls = h("div", { class: "controls", role: "group", "aria-label": "Filters of the samples" }, field("Search", search));
  const chips = h("div", { class: "chips", role: "group", "aria-label": "Models shown side by side" });
  const against = select("against", [["", "nothing"]]);
  const sourceSelect = select("source", sources.map((name) => [name, `${name}${items.find((i) => i.src === name).step !== undefined ? " (training)" : ""}`]));
  sourceSelect.addEventListener("change", () => { chooseModels(); draw(); });
  if (sources.length > 1) controls.append(field("From", sourceSelect));
  if (all((r) => r.s).some((v) => v !== undefined)) controls.append(h("div", { class: "field" }, "Reward", h("span", { class: "range" }, number("low", "from reward"), number("high", "to reward"))));
  controls.append(h("div", { class: "field" }, "Tokens", h("span", { class: "range" }, number("short", "from tokens"), number("long", "to tokens"))));
  const sorts = [["", "as drawn"], ["spread", "largest difference in reward"], ["best", "highest reward"], ["worst", "lowest reward"], ["long", "longest answer"]];
  if (items.some((item) => item.dis)) {
    sorts.splice(1, 0, ["dis", "measures disagree most"]);
    const box = h("input", { type: "checkbox" });
    box.addEventListener("change", () => change("differ", box.checked));
    controls.append(hover(h("label", { class: "check" }, box, "only where measures disagree"), "two of reward, gold, further rewards and verdicts order a pair of answers in opposite ways"));
  }
  controls.append(field("Order", select("sort", sorts)), field("Differences to", against));
  const modes = MODES.filter((mode) => items.some((item) => item.rs.some((r) => r.tok && mode.of(r))));
  controls.append(field("Colour tokens by", select("mode", [["", modes.length ? "nothing" : "nothing (none stored)"], ...modes.map((m) => [m.key, m.title])])));
  state.source = sources[0];

  function chooseModels() {
    const here = items.filter((item) => item.src === state.source);
    const names = [...new Set(here.flatMap((item) => item.rs.map((r) => r.m)))];
    state.models = new Set(names.slice(0, FIRST));
    state.against = "";
    against.replaceChildren(h("option", { value: "" }, "nothing"), ...names.map((name) => h("option", { value: name }, name)));
    chips.replaceChildren(...(names.length > 1 ? [h("span", { class: "dim small" }, "side by side"), ... names.map((name) => {
      const chip = h("button", { type: "button", "aria-pressed": String(state.models.has(name)) }, name);
      chip.addEventListener("click", () => {
        if (state.models.has(name)) state.models.delete(name); else state.models.add(name);
        chip.setAttribute("aria-pressed", String(state.models.has(name)));
        draw();
      });
      return chip;
    })] : []));
  }
  function fits(item) {
    if (item.src !== state.source) return false;
    const rs = item.rs.filter((r) => state.models.has(r.m));
    if (!rs.length || (state.differ && !item.dis)) return false;
    if (state.text && !item.p.toLowerCase().includes(state.text) && !rs.some((r) => r.t.toLowerCase().includes(state.text))) return false;
    const within = (v, low, high) => (low === null || (v !== undefined && v >= low)) && (high === null || (v !== undefined && v <= high));
    return rs.some((r) => within(r.s, state.low, state.high) && within(r.n, state.short, state.long));
  }
  function sorted(found) {
    const rewards = (item) => item.rs.filter((r) => state.models.has(r.m) && r.s !== undefined).map((r) => r.s);
    const keys = {
      dis: (item) => -(item.dis || 0), best: (item) => -Math.max(-Infinity, ...rewards(item)), worst: (item) => Math.min(Infinity, ...rewards(item)),
      spread: (item) => { const r = rewards(item); return r.length ? Math.min(...r) - Math.max(...r) : 0; }, long: (item) => -Math.max(...item.rs.map((r) => r.n || 0)),
    };
    const by = keys[state.sort];
    return by ? [...found].sort((a, b) => by(a) - by(b)) : found;
  }
  function draw() {
    const here = items.filter((item) => item.src === state.source).length, found = sorted(items.filter(fits));
    count.textContent = `${plural(found.length, "prompt")} of ${num(here)}`;
    const mode = MODES.find((m) => m.key === state.mode);
    key.replaceChildren(...(mode ? [h("span", {}, `Tokens by ${mode.title}: `, mode.low, h("span", { class: "ramp" }), mode.high || "certain"), h("span", {}, `${mode.about}; full colour at ${mode.full}. Hover for the number.`)] : []));
    list.replaceChildren(...found.slice(0, state.shown).map((item) => card(item, state, mode, place)));
    reachable(list);
    more.hidden = found.length <= state.shown;
  }
  new ResizeObserver(() => reachable(list)).observe(list);
  more.addEventListener("click", () => { state.shown += PAGE; draw(); });
  chooseModels();
  draw();
  return [notes.map((text) => h("p", { class: "small dim" }, prose(text))), controls, chips, key, count, list, more];
}

// Texts that are longer than their box scroll, so the keyboard must reach them; which do depends on lines and width.
function reachable(list) {
  for (const box of list.querySelectorAll(".prompt, .text")) {
    const scrolls = box.scrollHeight > box.clientHeight + 1;
    const facts = { tabindex: "0", role: "group", "aria-label": box.dataset.label };
    for (const [name, value] of Object.entries(facts)) if (scrolls) box.setAttribute(name, value); else box.removeAttribute(name);
  }
}
function card(item, state, mode, place) {
  const rs = item.rs.filter((r) => state.models.has(r.m));
  const best = Math.max(...rs.map((r) => (r.s === undefined ? -Infinity : r.s)));
  const unique = rs.filter((r) => r.s === best).length === 1 && rs.length > 1;
  const base = state.against && item.rs.find((r) => r.m === state.against);
  const meta = [item.step !== undefined && `step ${num(item.step)}`, item.dis && `measures disagree on ${percent(item.dis)} of the pairs`].filter(Boolean).join(" · ");
  return h("article", { class: "sample" }, h("header", {}, h("div", { class: "prompt", "data-label": "prompt" }, item.p || "(no prompt)"), meta && h("div", { class: "meta" }, meta)),
    h("div", { class: "answers" }, [...new Set(rs.map((r) => r.m))].map((model) => h("div", { class: "answer" }, h("h3", {}, model),
      rs.filter((r) => r.m === model).map((r) => h("div", { class: "one" },
        h("div", { class: "meta" }, unique && r.s === best && h("span", { class: "badge" }, "highest reward "), factsOf(r)),
        h("div", { class: "text", "data-label": `answer of ${r.m}` }, body(r, base, mode))))))));
}
function factsOf(r) {
  const further = Object.entries(r.x || {}).map(([key, value]) => `${key} ${num(value)}`);
  return [r.s !== undefined && `reward ${num(r.s)}`, r.g !== undefined && `gold ${num(r.g)}`, r.a !== undefined && `advantage ${r.a > 0 ? "+" : ""}${num(r.a)} over the group's mean`,
    r.w !== undefined && `judged better with ${percent(r.w)}`, r.k !== undefined && `log-ratio ${num(r.k)}`, ...further,
    r.n !== undefined && plural(r.n, "token"), r.c && "cut at the limit", r.no && `no verdict: ${r.no}`].filter(Boolean).join(" · ");
}
function body(r, base, mode) {
  if (base && base !== r) return diff(base.t, r.t);
  const values = mode && r.tok && mode.of(r);
  if (!values) return r.t || h("span", { class: "dim" }, "(empty)");
  return r.tok.map((piece, i) => {
    if (piece === "") return null;
    const made = h("span", { class: "token" }, piece), value = values[i];
    if (value === null || value === undefined) return made;
    const strength = Math.min(1, Math.abs(value) / mode.full) * 0.5;
    made.style.backgroundColor = `rgb(var(--${value >= 0 ? "up" : "down"}) / ${strength.toFixed(2)})`;
    return hover(made, `${JSON.stringify(piece)}\n${mode.title} ${value > 0 ? "+" : ""}${num(value)}`);
  });
}
