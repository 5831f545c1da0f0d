// Differences of two texts by words: a longest common subsequence, shown as insertions and deletions.
const MOST_WORDS = 1500;
function words(text) {
  return text.match(/\s+|[\p{L}\p{N}_]+|[^\s\p{L}\p{N}_]/gu) || [];
}
function diff(before, after) {
  const a = words(before), b = words(after);
  if (a.length > MOST_WORDS || b.length > MOST_WORDS) return [h("p", { class: "dim small" }, "too long to compare"), after];
  const wide = b.length + 1, length = new Uint16Array((a.length + 1) * wide);
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      length[i * wide + j] = a[i] === b[j] ? length[(i + 1) * wide + j + 1] + 1 : Math.max(length[(i + 1) * wide + j], length[i * wide + j + 1]);
    }
  }
  const parts = [];
  const add = (kind, word) => { const last = parts[parts.length - 1]; if (last && last.kind === kind) last.text += word; else parts.push({ kind, text: word }); };
  let i = 0, j = 0;
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && a[i] === b[j]) { add("", a[i]); i++; j++; }
    else if (i < a.length && (j === b.length || length[(i + 1) * wide + j] >= length[i * wide + j + 1])) add("del", a[i++]);
    else add("ins", b[j++]);
  }
  return parts.map((part) => (part.kind ? h(part.kind, {}, part.text) : part.text));
}
