// Small helpers for the page's elements and numbers.

export const byId = (id) => document.getElementById(id);
export const make = (tag, className, text = "") =>
  Object.assign(document.createElement(tag), { className, textContent: text });
export const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** The value that half of the values do not exceed; null without values. */
export function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted.length ? sorted[Math.ceil(sorted.length / 2) - 1] : null;
}

export function readableAge(ms) {
  if (ms === null) return "–";
  return ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(ms < 10000 ? 1 : 0)} s`;
}
