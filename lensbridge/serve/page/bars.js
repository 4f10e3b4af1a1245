// Bars: one row for each name, from zero to the right, or to both sides of zero.

import { el } from "./dom.js";

const share = (value, most) => `${Math.min(100, (100 * Math.abs(value)) / (most || 1))}%`;

function name(row) {
  const shared = { class: row.plain ? "name" : "name token", title: row.title ?? row.label };
  if (!row.onpick) return el("span", shared, row.label);
  return el(
    "button",
    { ...shared, type: "button", onclick: row.onpick, "aria-label": row.action },
    row.label,
  );
}

// Rows are { label, value, text, title, onpick, action, chosen }.
export function bars(rows, { label, both = false, most }) {
  most ??= Math.max(...rows.map((row) => Math.abs(row.value)), 0);
  const lines = rows.map((row) => {
    const fill = el("span", { class: `fill ${row.value < 0 ? "minus" : "plus"}` });
    fill.style.width = both ? `calc(${share(row.value, most)} / 2)` : share(row.value, most);
    if (both) fill.style[row.value < 0 ? "right" : "left"] = "50%";
    const track = el(
      "span",
      { class: "track", "aria-hidden": "true" },
      fill,
      both ? el("span", { class: "zero" }) : null,
    );
    return el(
      "li",
      { class: row.chosen ? "chosen" : "" },
      name(row),
      track,
      el("span", { class: "number" }, row.text),
    );
  });
  return el("ol", { class: "bars", "aria-label": label }, ...lines);
}

// Rows are { label, before, after, text, moved, chosen }, with chances from 0 to 1.
export function pairs(rows, { label, onpick }) {
  const lines = rows.map((row) => {
    const [before, after] = ["before", "after plus"].map((kind) =>
      el("span", { class: `fill ${kind}` }),
    );
    before.style.width = share(row.before, 1);
    after.style.width = share(row.after, 1);
    const track = el("span", { class: "track", "aria-hidden": "true" }, before, after);
    const named = name({ ...row, onpick: onpick && (() => onpick(row)) });
    const numbers = [row.text, row.moved].map((text) => el("span", { class: "number" }, text));
    return el("li", { class: row.chosen ? "chosen" : "" }, named, track, ...numbers);
  });
  return el("ol", { class: "bars pairs", "aria-label": label }, ...lines);
}

export function beforeAfter(before, after) {
  return el(
    "p",
    { class: "legend" },
    el("span", {}, el("i", { class: "before" }), before),
    el("span", {}, el("i", { class: "after" }), after),
    el("span", {}, "at the right: how far the logit moves"),
  );
}
