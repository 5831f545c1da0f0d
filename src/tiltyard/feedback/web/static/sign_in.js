// Puts the token of a personal link (behind "#", which browsers send to nobody) into the form, and takes it off the
// address, so that it stays in no history. Signing in is the button's.
"use strict";
if (new URLSearchParams(location.search).has("out")) sessionStorage.clear(); // drafts of the person who has gone
const take = () => {
  const token = location.hash.slice(1);
  if (!token) return;
  document.getElementById("token").value = token;
  document.getElementById("field").hidden = true;
  document.getElementById("paste").hidden = true;
  document.getElementById("ready").hidden = false;
  history.replaceState(null, "", location.pathname);
  document.getElementById("enter").focus();
};
take();
addEventListener("hashchange", take);
