// Colours of the style sheet in a figure's JSON: a string "--name" stands for one.
"use strict";
const style = getComputedStyle(document.documentElement);

function themed(value) {
  if (typeof value === "string") {
    return value.startsWith("--") ? style.getPropertyValue(value).trim() || value : value;
  }
  if (Array.isArray(value)) return value.map(themed);
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([key, each]) => [key, themed(each)]));
}
