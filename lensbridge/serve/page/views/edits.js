// Edits: ablate, scale or patch parts of the model and see the predictions before and after.

import { ask, follow } from "../api.js";
import { beforeAfter, pairs } from "../bars.js";
import { el, field, number, options, percent, signed } from "../dom.js";
import { Grid, ramp } from "../grid.js";
import { change, position, state } from "../state.js";
import { asked, targetField } from "../target.js";

const PARTS = { head: "head", attn: "attention", mixer: "mixer", mlp: "MLP", stream: "stream before layer", neuron: "neuron" };
const ACTIONS = { zero: "set to zero", mean: "set to its mean", scale: "multiply by", patch: "patch from" };

function words(edit) {
  const numbered = edit.part === "head" || edit.part === "neuron";
  const part = `${PARTS[edit.part]} ${edit.layer}${numbered ? `.${edit.index}` : ""}`;
  const where = edit.position === undefined ? "" : ` at ${state.tokens[edit.position] ?? `position ${edit.position}`}`;
  const how = edit.action === "scale" ? ` ${edit.factor}` : edit.action === "patch" ? ` “${edit.source}”` : "";
  return `${part}${where}: ${ACTIONS[edit.action]}${how}`;
}

export const edits = {
  id: "edits",
  title: "Edit",
  lead: "Ablate or patch a head, a position or a neuron, and see the logits move. The map shows what one ablation at a time does; click a cell to make that edit.",
  uses: ["prompt", "position", "target", "edits"],

  build(frame, app) {
    const target = targetField();
    const form = editForm((edit) => change({ edits: [...state.edits, edit] }));
    const list = el("ul", { class: "edits", "aria-label": "Edits" });
    const result = el("div");
    const map = el("div");
    let mapped = "";
    frame.controls.append(target.element);
    frame.controls.after(list);

    function showList() {
      list.replaceChildren(
        ...state.edits.map((edit, i) =>
          el("li", {}, words(edit), el("button", { type: "button", "aria-label": `Remove: ${words(edit)}`, onclick: () => change({ edits: state.edits.filter((_, k) => k !== i) }) }, "×")),
        ),
      );
      if (state.edits.length > 1) list.append(el("button", { type: "button", onclick: () => change({ edits: [] }) }, "Remove all"));
    }

    async function showMap() {
      const question = { prompt: state.prompt, position: state.position, target: asked() };
      if (mapped === JSON.stringify(question)) return;
      mapped = JSON.stringify(question);
      let [grid, start, values, code] = [null, null, [], ""];
      const readout = el("p", { class: "readout" });
      map.replaceChildren(el("p", { class: "note" }, "The map is being made …"));
      try {
        await follow("ablation", question, (event) => {
          if (event.type === "start") {
            app.tokens(event.tokens);
            [start, code] = [event, event.python];
            grid = mapGrid(event, readout);
            const title = el("h3", {}, "Change of the logit of ", el("span", { class: "token" }, event.target.label), " when a part is set to zero");
            map.replaceChildren(title, grid.element, ramp("signed", "lower", "higher"), readout);
            frame.settle();
            if (!state.edits.length) frame.showPython(code);
          }
          if (event.type === "cells") {
            values = fillMap(grid, start, values, event);
            readout.textContent = values.length < start.cells.length ? `${values.length} of ${start.cells.length} parts` : "";
          }
        });
      } catch (error) {
        mapped = "";
        throw error;
      }
    }

    function mapGrid(event, readout) {
      const grid = new Grid({
        rows: [...Array(event.layers).keys()].map((layer) => `layer ${layer}`),
        columns: event.columns.map((column) => column.label),
        corner: "",
        label: "Effect of each ablation",
        onpoint: (row, column) => (readout.textContent = grid.cells[row][column].title),
        onpick: (row, column) =>
          change({
            edits: [...state.edits, { part: event.columns[column].part, layer: row, index: event.columns[column].index, action: "zero" }],
          }),
      });
      return grid;
    }

    function fillMap(grid, start, values, event) {
      const all = [...values, ...event.values];
      const most = Math.max(...all.map(Math.abs));
      all.forEach((value, i) => {
        const [layer, column] = start.cells[i];
        const { label, part, index } = start.columns[column];
        const name = part === "head" ? `head ${layer}.${index}` : `${label} ${layer}`;
        grid.fill(layer, column, signed(value, 1), most ? value / most : 0, `${name}: ${signed(value)} logits of ${start.target.label}`);
      });
      return all;
    }

    async function showResult() {
      if (!state.edits.length) {
        result.replaceChildren(el("h3", {}, "Before and after"), el("p", { class: "note" }, "No edits yet: click a cell of the map, or add one with the form."));
        return;
      }
      const found = await ask("edits", { prompt: state.prompt, position: state.position, target: asked(), edits: state.edits, k: 8 });
      app.tokens(found.tokens);
      result.replaceChildren(
        el("h3", {}, "Predictions after ", el("span", { class: "token" }, found.tokens[found.position])),
        beforeAfter("before", "after the edits"),
        pairs(
          found.rows.map((row) => ({
            label: row.label,
            before: row.probability[0],
            after: row.probability[1],
            text: `${percent(row.probability[0])} → ${percent(row.probability[1])}`,
            moved: signed(row.logit[1] - row.logit[0], 1),
            title: `${row.label}: logit ${number(row.logit[0])} before, ${number(row.logit[1])} after`,
            chosen: row.id === found.target.id,
          })),
          { label: "Probabilities before and after" },
        ),
        moved(found),
      );
      frame.showPython(found.python);
    }

    function moved(found) {
      const row = found.rows.find((one) => one.id === found.target.id);
      return el("p", { class: "note" }, "The logit of ", el("span", { class: "token" }, row.label), ` moves by ${signed(row.logit[1] - row.logit[0])}, from ${number(row.logit[0])} to ${number(row.logit[1])}.`);
    }

    return () =>
      frame.run(async () => {
        target.sync();
        form.sync();
        showList();
        if (!frame.figure.contains(map)) frame.figure.replaceChildren(el("div", { class: "halves" }, el("div", {}, map, form.element), result));
        await showResult();
        showList(); // with the tokens of the prompt, which are known now
        form.sync();
        await showMap();
      });
  },
};

// A form for edits of any part.
function editForm(onadd) {
  const { layers, parts, tokenizer } = state.model;
  const part = options(el("select"), Object.entries(PARTS).filter(([one]) => parts.includes(one)), parts[0]);
  const layer = options(el("select"), [...Array(layers).keys()].map((i) => [i, `${i}`]), 0);
  const index = el("input", { type: "number", min: 0, step: 1, value: 0 });
  const where = options(el("select"), [["all", "every position"], ["chosen", "the chosen token"]], "all");
  const action = options(el("select"), Object.entries(ACTIONS), "zero");
  const factor = el("input", { type: "number", step: "any", value: 2 });
  const source = el("input", { type: "text", maxLength: 20000, placeholder: tokenizer ? "another prompt" : "token ids of another prompt" });
  const fields = { index: field("Number", index), factor: field("Factor", factor), source: field("Prompt to patch from", source, "wide") };

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
  const controls = [field("Part", part), field("Layer", layer), fields.index, field("Where", where), field("What to do", action), fields.factor, fields.source];
  const add = el("button", { class: "main" }, "Add edit");
  const element = el("form", { class: "block", onsubmit: submit }, el("h3", {}, "Another edit"), el("div", { class: "controls" }, ...controls, add));
  return { element, sync };
}
