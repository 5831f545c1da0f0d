// What is filled in stays in this window: the guidelines are read in between, a session ends, a verdict is taken back,
// and the task comes again as it was. Kept for the last few tasks of this person, until the window closes or someone signs out.
"use strict";

const DRAFTS = "tiltyard-drafts";
const MOST = 5;
const stored = () => {
  try {
    return new Map(JSON.parse(sessionStorage.getItem(DRAFTS)) ?? []);
  } catch {
    return new Map();
  }
};
const fields = () => [...form.elements].filter((one) => one.name && one.type !== "hidden" && one.type !== "submit");
const keep = () => {
  const drafts = stored();
  drafts.delete(form.dataset.draft);
  drafts.set(form.dataset.draft, fields().map((one) => [one.name, one.value, one.checked ?? true]));
  try {
    sessionStorage.setItem(DRAFTS, JSON.stringify([...drafts].slice(-MOST)));
  } catch {
    // no room: the page works without
  }
};

const filled = stored().get(form.dataset.draft);
for (const [name, value, chosen] of filled ?? []) {
  for (const one of fields().filter((field) => field.name === name)) {
    if (one.type === "radio" || one.type === "checkbox") one.checked = one.value === value ? chosen : one.checked;
    else one.value = value;
    if (name === "comment" && value) one.closest("details").open = true;
  }
}
form.addEventListener("input", keep);
form.addEventListener("change", keep);
form.addEventListener("submit", keep);
