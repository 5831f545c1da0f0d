// Keys 1 to 4 press the buttons of the vote, in their order on the page; a second press of any is ignored.
"use strict";
const form = document.getElementById("vote");
if (form) {
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, textarea, select")) return;
    const button = form.querySelector(`[data-key="${CSS.escape(event.key)}"]`);
    if (button) button.click();
  });
  form.addEventListener("submit", (event) => {
    if (form.dataset.sent) event.preventDefault();
    form.dataset.sent = "1";
  });
}
