// Edits in words, and the form that makes one of any part.

import { el, field, options } from "../dom.js";
import { position, state } from "../state.js";

const PARTS = {
  head: "head",
  attn: "attention",
  mixer: "mixer",
  mlp: "MLP",
  stream: "stream before layer",
  neuron: "neuron",
};
const ACTIONS = {
  zero: "set to zero",
  mean: "set to its mean",
  scale: "multiply by",
  patch: "patch from",
};

export function words(edit) {
  const numbered = edit.part === "head" || edit.part === "neuron";
  const part = `${PARTS[edit.part]} ${edit.layer}${numbered ? `.${edit.index}` : ""}`;
  const where =
    edit.position === undefined
      ? ""
      : ` at ${state.tokens[edit.position] ?? `position ${edit.position}`}`;
  const how =
    edit.action === "scale"
      ? ` ${edit.factor}`
      : edit.action === "patch"
        ? ` “${edit.source}”`
        : "";
  return `${part}${where}: ${ACTIONS[edit.action]}${how}`;
}

// A form for edits of any part.
export function editForm(onadd) {
  const { layers, parts, tokenizer } = state.model;
  const part = options(
    el("select"),
    Object.entries(PARTS).filter(([one]) => parts.includes(one)),
    parts[0],
  );
  const layer = options(
    el("select"),
    [...Array(layers).keys()].map((i) => [i, `${i}`]),
    0,
  );
  const index = el("input", { type: "number", min: 0, step: 1, value: 0 });
  const where = options(
    el("select"),
    [
      ["all", "every position"],
      ["chosen", "the chosen token"],
    ],
    "all",
  );
  const action = options(el("select"), Object.entries(ACTIONS), "zero");
  const factor = el("input", { type: "number", step: "any", value: 2 });
  const source = el("input", {
    type: "text",
    maxLength: 20000,
    placeholder: tokenizer ? "another prompt" : "token ids of another prompt",
  });
  const fields = {
    index: field("Number", index),
    factor: field("Factor", factor),
    source: field("Prompt to patch from", source, "wide"),
  };

  function sync() {
    fields.index.hidden = !["head", "neuron"].includes(part.value);
    fields.factor.hidden = action.value !== "scale";
    fields.source.hidden = action.value !== "patch";
    where.options[1].textContent = `at ${state.tokens[position()] ?? "the chosen token"}`;
  }

  function submit(event) {
    event.preventDefault();
    const edit = { part: part.value, layer: Number(layer.value), action: action.value };
    if (!fields.index.hidden) edit.index = Number(index.value);
    if (where.value === "chosen") edit.position = position();
    if (edit.action === "scale") edit.factor = Number(factor.value);
    if (edit.action === "patch") edit.source = source.value;
    onadd(edit);
  }

  for (const one of [part, action]) one.addEventListener("change", sync);
  const controls = [
    field("Part", part),
    field("Layer", layer),
    fields.index,
    field("Where", where),
    field("What to do", action),
    fields.factor,
    fields.source,
  ];
  const add = el("button", { class: "main" }, "Add edit");
  const element = el(
    "form",
    { class: "block", onsubmit: submit },
    el("h3", {}, "Another edit"),
    el("div", { class: "controls" }, ...controls, add),
  );
  return { element, sync };
}
