// Edits: ablate, scale or patch parts of the model and see the predictions before and after.

import { ask } from "../api.js";
import { beforeAfter, pairs } from "../bars.js";
import { el, number, percent, signed } from "../dom.js";
import { change, state } from "../state.js";
import { asked, targetField } from "../target.js";
import { AblationMap } from "./ablation-map.js";
import { editForm, words } from "./edit-form.js";

export const edits = {
  id: "edits",
  title: "Edit",
  lead: "Ablate or patch a head, a position or a neuron, and see the logits move. The map shows what one ablation at a time does; click a cell to make that edit.",
  uses: ["prompt", "position", "target", "edits"],

  build(frame, app) {
    const target = targetField();
    const add = (edit) => change({ edits: [...state.edits, edit] });
    const form = editForm(add);
    const list = el("ul", { class: "edits", "aria-label": "Edits" });
    const result = el("div");
    const map = new AblationMap({
      onpick: add,
      onstart: (event) => {
        app.tokens(event.tokens);
        frame.settle();
        if (!state.edits.length) frame.showPython(event.python);
      },
    });
    frame.controls.append(target.element);
    frame.controls.after(list);

    function showList() {
      list.replaceChildren(
        ...state.edits.map((edit, i) =>
          el(
            "li",
            {},
            words(edit),
            el(
              "button",
              {
                type: "button",
                "aria-label": `Remove: ${words(edit)}`,
                onclick: () => change({ edits: state.edits.filter((_, k) => k !== i) }),
              },
              "×",
            ),
          ),
        ),
      );
      if (state.edits.length > 1)
        list.append(
          el("button", { type: "button", onclick: () => change({ edits: [] }) }, "Remove all"),
        );
    }

    async function showResult() {
      if (!state.edits.length) {
        result.replaceChildren(
          el("h3", {}, "Before and after"),
          el(
            "p",
            { class: "note" },
            "No edits yet: click a cell of the map, or add one with the form.",
          ),
        );
        return;
      }
      const found = await ask("edits", {
        prompt: state.prompt,
        position: state.position,
        target: asked(),
        edits: state.edits,
        k: 8,
      });
      app.tokens(found.tokens);
      result.replaceChildren(
        el(
          "h3",
          {},
          "Predictions after ",
          el("span", { class: "token" }, found.tokens[found.position]),
        ),
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
      return el(
        "p",
        { class: "note" },
        "The logit of ",
        el("span", { class: "token" }, row.label),
        ` moves by ${signed(row.logit[1] - row.logit[0])}, from ${number(row.logit[0])} to ${number(row.logit[1])}.`,
      );
    }

    return () =>
      frame.run(async () => {
        target.sync();
        form.sync();
        showList();
        if (!frame.figure.contains(map.element)) {
          const left = el("div", {}, map.element, form.element);
          frame.figure.replaceChildren(el("div", { class: "halves" }, left, result));
        }
        await showResult();
        showList(); // with the tokens of the prompt, which are known now
        form.sync();
        await map.show({ prompt: state.prompt, position: state.position, target: asked() });
      });
  },
};
