// Shows both answers as they are written (one JSON object a line), then opens the stored battle, where the vote is.
"use strict";
const place = document.getElementById("answers");
const show = (id) => {
  document.getElementById("state").hidden = true;
  for (const side of ["a", "b"]) document.getElementById(side).setAttribute("aria-busy", "false");
  if (id) document.getElementById(id).hidden = false;
};
const take = (event) => {
  if (event.text) document.getElementById(event.side).append(event.text); // text, never markup
  if (event.end) document.getElementById(event.side).setAttribute("aria-busy", "false");
  if (event.battle) location.replace(`/battle/${event.battle}`);
  if (event.error) show(event.error === "busy" ? "busy" : "no_answer");
};
const read = async () => {
  const reply = await fetch(`/api/answers/${place.dataset.battle}`);
  if (!reply.ok) return show("no_answer");
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let left = "", last = {};
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    const lines = (left + value).split("\n");
    left = lines.pop();
    for (const line of lines) take((last = JSON.parse(line)));
  }
  if (!last.battle && !last.error) show("no_answer"); // the server went away
};
read().catch(() => show("no_answer"));
