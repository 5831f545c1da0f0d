// Rankings (drag, arrows, keys, ties), best and worst, and texts to edit. The selects of a ranking stay what is sent.
"use strict";

const list = document.getElementById("answers");
const said = document.getElementById("said");
const kind = form.dataset.kind;

if (kind === "ranking") {
  // An order that no one has touched is the page's own: it is sent by a second press alone.
  const untouched = document.getElementById("untouched");
  let touched = false;
  let asked = 0;
  const touch = () => {
    touched = true;
    untouched.hidden = true;
  };
  form.addEventListener("submit", (event) => {
    if (touched || event.submitter?.id === "nothing" || !document.body.classList.contains("ready")) return;
    if (asked && performance.now() - asked > EARLY) return;
    event.preventDefault();
    event.stopPropagation();
    asked ||= performance.now();
    untouched.hidden = false;
    said.textContent = untouched.textContent;
    untouched.scrollIntoView({ block: "nearest" });
  });
  const hint = document.querySelector(".ranking-hint");
  hint.hidden = false;
  list.classList.add("sortable");
  for (const answer of answers()) {
    for (const tool of answer.querySelectorAll("[data-up], [data-down], .equal, .handle")) tool.hidden = false;
    answer.querySelector(".place").classList.add("number");
  }

  const cards = () => [...list.querySelectorAll(".answer:not(.ghost)")];
  const equalOf = (answer) => answer.querySelector("[data-equal]");
  const number = () => {
    let rank = 0;
    cards().forEach((answer, place) => {
      if (place === 0) equalOf(answer).checked = false;
      if (!equalOf(answer).checked) rank = place + 1;
      answer.querySelector("select").value = String(rank);
      answer.classList.toggle("tied", equalOf(answer).checked);
      equalOf(answer).disabled = place === 0;
      answer.querySelector("[data-up]").disabled = place === 0;
      answer.querySelector("[data-down]").disabled = place === cards().length - 1;
    });
  };
  const announce = (answer) => {
    const place = cards().indexOf(answer) + 1;
    said.textContent = form.dataset.moved
      .replace("{name}", answer.dataset.name).replace("{place}", place).replace("{count}", cards().length);
  };
  // The others move: an element that is taken out of the page loses the focus and the pointer that it holds.
  const put = (answer, to) => {
    const all = cards();
    const at = all.indexOf(answer);
    for (let k = at - 1; k >= to; k -= 1) list.insertBefore(all[k], answer.nextSibling);
    for (let k = at + 1; k <= to; k += 1) list.insertBefore(all[k], answer);
    equalOf(answer).checked = false;
    touch();
    number();
    keep();
  };
  const carry = (answer, by) => {
    const all = cards();
    const to = all.indexOf(answer) + by;
    if (to < 0 || to >= all.length) return;
    const focused = document.activeElement;
    put(answer, to);
    announce(answer);
    const button = focused !== answer && answer.contains(focused) && !focused.disabled ? focused : null;
    if (button) button.focus();
    else focusOn(answer);
    answer.scrollIntoView({ block: "nearest" });
  };

  for (const answer of answers()) {
    answer.querySelector("[data-up]").addEventListener("click", () => carry(answer, -1));
    answer.querySelector("[data-down]").addEventListener("click", () => carry(answer, 1));
    equalOf(answer).addEventListener("change", () => {
      touch();
      number();
    });
    answer.querySelector("select").addEventListener("change", (event) => {
      put(answer, Number(event.target.value) - 1);
      announce(answer);
    });
    drag(answer);
  }
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || typing(event.target) || dialogs.some((one) => one.open)) return;
    if (single && !single.checked) return;
    const answer = current();
    if (!answer || !["J", "K", "="].includes(event.key)) return;
    event.preventDefault();
    if (event.key === "=") {
      if (!equalOf(answer).disabled) equalOf(answer).click();
    } else {
      carry(answer, event.key === "J" ? 1 : -1);
    }
  });

  // By mouse, pen and finger: the card follows the pointer's place among the others' middles.
  function drag(answer) {
    const handle = answer.querySelector(".handle");
    handle.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      event.preventDefault();
      handle.setPointerCapture(event.pointerId);
      answer.classList.add("dragged");
      list.classList.add("dragging");
    });
    handle.addEventListener("pointermove", (event) => {
      if (!answer.classList.contains("dragged")) return;
      const others = cards().filter((one) => one !== answer);
      const next = others.findIndex((one) => {
        const box = one.getBoundingClientRect();
        return event.clientY < box.top + box.height / 2;
      });
      const to = next < 0 ? others.length : next;
      if (to !== cards().indexOf(answer)) put(answer, to);
      const edge = 80;
      if (event.clientY < edge) scrollBy(0, -12);
      else if (event.clientY > innerHeight - edge) scrollBy(0, 12);
    });
    const drop = () => {
      if (!answer.classList.contains("dragged")) return;
      answer.classList.remove("dragged");
      list.classList.remove("dragging");
      touch();
      announce(answer);
      focusOn(answer);
    };
    handle.addEventListener("pointerup", drop);
    handle.addEventListener("pointercancel", drop);
  }
  if (filled) {
    // an order that was there before: the selects hold it
    const rankOf = (answer) => Number(answer.querySelector("select").value);
    const order = cards().map((answer) => [rankOf(answer), answer]).sort(([one], [other]) => one - other);
    order.forEach(([rank, answer], place) => {
      list.append(answer);
      equalOf(answer).checked = place > 0 && rank === order[place - 1][0];
      touched ||= rank !== place + 1 || Number(answer.dataset.place) !== place;
    });
  }
  number();
}

if (kind === "best_worst") {
  // One answer cannot be both: the later choice takes the other away.
  list.addEventListener("change", (event) => {
    const other = event.target.name === "best" ? "worst" : "best";
    const twin = event.target.closest(".answer").querySelector(`[name=${other}]`);
    if (twin) twin.checked = false;
  });
}

if (kind === "write") {
  const text = document.getElementById("text");
  for (const radio of document.querySelectorAll("[data-copy]")) {
    radio.addEventListener("change", () => {
      text.value = radio.closest(".answer").querySelector(".original").value;
      text.focus();
    });
  }
}
