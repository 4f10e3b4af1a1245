// Tokens: those of the prompt, one of which is chosen, and a text with coloured tokens.

import { el, rove } from "./dom.js";
import { change, state, position } from "./state.js";

export function showStrip(box) {
  const chosen = position();
  const shown = JSON.stringify([state.tokens, chosen]);
  if (box.dataset.shown === shown) return;
  const focused = box.contains(document.activeElement);
  box.dataset.shown = shown;
  const chips = state.tokens.map((label, i) =>
    el(
      "button",
      {
        type: "button",
        class: "chip",
        role: "radio",
        "aria-checked": i === chosen ? "true" : "false",
        "aria-label": `position ${i}: ${label}`,
        title: `${label}, position ${i}`,
        tabIndex: i === chosen ? 0 : -1,
        onclick: () => change({ position: i === state.tokens.length - 1 ? null : i }),
      },
      label,
    ),
  );
  const group = el(
    "div",
    { class: "tokens", role: "radiogroup", "aria-label": "Token to look at" },
    ...chips,
  );
  rove(group, ".chip");
  box.replaceChildren(group);
  if (focused) chips[chosen]?.focus();
}

// Tokens with a value each. `most` is the value with the strongest colour.
export function colouredText(tokens, values, { most, chosen, onpick, describe }) {
  const made = tokens.map((label, i) => {
    const value = values[i];
    const text = describe(value, i);
    const one = el(
      onpick ? "button" : "span",
      {
        type: onpick ? "button" : undefined,
        class: `toned ${value < 0 ? "minus" : "plus"} ${i === chosen ? "chosen" : ""}`,
        title: text,
        "aria-label": onpick ? text : undefined,
        onclick: onpick && (() => onpick(i)),
      },
      label,
    );
    one.style.setProperty("--v", most ? Math.min(1, Math.abs(value) / most) : 0);
    return one;
  });
  return el("div", { class: "text" }, ...made);
}
