// The token whose logit is looked at, which views share.

import { el, field } from "./dom.js";
import { change, state } from "./state.js";

// What was typed, as the server takes it. A dot in front of a word is how a space is shown.
export const typed = (text) => (text === "" ? null : text.replace(/^·/, " "));

export function targetField() {
  const input = el("input", {
    type: "text",
    maxLength: 200,
    placeholder: "the likeliest",
    autocomplete: "off",
    spellcheck: false,
  });
  input.addEventListener("change", () => {
    if (input.value === (state.target?.label ?? "")) return;
    change({ target: input.value === "" ? null : { ask: typed(input.value), label: input.value } });
  });
  const sync = () => {
    if (document.activeElement !== input) input.value = state.target?.label ?? "";
  };
  return { element: field("Token to follow", input), sync };
}

export const asked = () => state.target?.ask ?? null;
