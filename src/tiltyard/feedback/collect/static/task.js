// Keyboard, dialogs and the time spent, on every page of the labelling page. All of it works without this file, too:
// buttons are buttons of forms, and what opens above the task has a page of its own.
"use strict";

const form = document.getElementById("task");
const single = document.getElementById("single-keys");
const KEYS = "tiltyard-single-keys";

// ---------------------------------------------------------------------------------------------------------- dialogs
const dialogs = [...document.querySelectorAll("dialog")];
const dialogOf = (name) => document.getElementById(`${name}-dialog`);
for (const opener of document.querySelectorAll("[data-dialog]")) {
  opener.addEventListener("click", (event) => {
    const dialog = dialogOf(opener.dataset.dialog);
    if (!dialog) return;
    event.preventDefault();
    dialog.showModal();
    dialog.querySelector("input:not([type=hidden]), textarea, button")?.focus();
  });
}
for (const dialog of dialogs) {
  for (const closer of dialog.querySelectorAll("[data-close]")) {
    closer.addEventListener("click", (event) => {
      event.preventDefault();
      dialog.close();
    });
  }
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();  // beside it
  });
}

// --------------------------------------------------------------------------------------------------- answers in focus
const answers = () => [...document.querySelectorAll("#answers > .answer")];
const current = () => document.activeElement?.closest?.("#answers > .answer") ?? document.querySelector(".answer.current");
const focusOn = (answer) => {
  if (!answer) return;
  for (const other of answers()) other.classList.toggle("current", other === answer);
  answer.focus({ preventScroll: true });
  answer.scrollIntoView({ block: "nearest", behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
};
const step = (by) => {
  const all = answers();
  if (!all.length) return;
  const at = all.indexOf(current());
  focusOn(at < 0 ? all[by > 0 ? 0 : all.length - 1] : all[Math.min(Math.max(at + by, 0), all.length - 1)]);
};

// --------------------------------------------------------------------------------------------------------- keyboard
const typing = (element) =>
  element?.matches?.("textarea, select, input:not([type=radio]):not([type=checkbox]), [contenteditable]");
const press = (element) => {
  if (element.tagName === "SUMMARY") {
    element.parentElement.open = true;
    element.parentElement.querySelector("textarea, input")?.focus();
  } else if (element.type === "radio") {
    element.checked = true;
    element.dispatchEvent(new Event("change", { bubbles: true }));
    element.focus();
  } else {
    element.click();
  }
};
const cycleStrength = () => {
  const radios = [...document.querySelectorAll("[name=strength]")];
  if (!radios.length) return;
  const next = radios[(radios.findIndex((one) => one.checked) + 1) % radios.length];
  press(next);
};
addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && form && form.dataset.kind !== "pair") {
    event.preventDefault();
    if (!event.repeat && !dialogs.some((one) => one.open)) document.getElementById("submit").click();
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  if (single && !single.checked) return;
  if (dialogs.some((one) => one.open) || typing(event.target)) return;
  if (event.repeat && !["j", "k"].includes(event.key)) return;  // a key that is held decides no second task
  if (event.key === "Enter" && event.target.closest?.("a, button, summary")) return;
  const moves = { j: 1, k: -1 };
  const here = current()?.querySelector(`[data-key-here="${CSS.escape(event.key)}"]`);
  const anywhere = document.querySelector(`[data-key="${CSS.escape(event.key)}"]`);
  if (event.key in moves) step(moves[event.key]);
  else if (event.key === "+") cycleStrength();
  else if (here) press(here);
  else if (anywhere) press(anywhere);
  else return;
  event.preventDefault();
});
if (single) {
  single.checked = localStorage.getItem(KEYS) !== "off";
  single.addEventListener("change", () => localStorage.setItem(KEYS, single.checked ? "on" : "off"));
}

// ------------------------------------------------------------------------- time in view, and one submission of a form
let spent = 0;
let since = document.visibilityState === "visible" ? performance.now() : null;
document.addEventListener("visibilitychange", () => {
  if (since !== null) spent += performance.now() - since;
  since = document.visibilityState === "visible" ? performance.now() : null;
});
form?.addEventListener("submit", () => {
  const now = since === null ? 0 : performance.now() - since;
  document.getElementById("seconds").value = ((spent + now) / 1000).toFixed(1);
});
// The second press of a double click, or of a key, falls on the page of the next task: it is no verdict on that one.
const EARLY = 350;  // milliseconds; nobody reads so fast
setTimeout(() => document.body.classList.add("ready"), EARLY);
let sent = false;
addEventListener("submit", (event) => {
  if (event.submitter?.id === "nothing") return event.preventDefault();
  if (sent || (event.target === form && !document.body.classList.contains("ready"))) event.preventDefault();
  else sent = true;
});
addEventListener("pageshow", () => {
  sent = false;
});
