// Keys 1 to 4 press the buttons of the vote, in their order on the page, unless switched off; a second press of any is
// ignored, and so is a key that is held.
"use strict";
const form = document.getElementById("vote");
const single = document.getElementById("single-keys");
const KEYS = "tiltyard-single-keys";
if (form) {
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || !single.checked) return;
    const button = form.querySelector(`[data-key="${CSS.escape(event.key)}"]`);
    if (button) button.click();
  });
  single.closest("label").hidden = false;
  single.checked = localStorage.getItem(KEYS) !== "off";
  single.addEventListener("change", () => localStorage.setItem(KEYS, single.checked ? "on" : "off"));
  form.addEventListener("submit", (event) => {
    if (form.dataset.sent) event.preventDefault();
    form.dataset.sent = "1";
  });
}
