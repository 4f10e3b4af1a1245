// Comparison: activation patching between two prompts, as a heatmap that fills while it is run.

import { cancel, follow, Stale } from "../api.js";
import { el, field, number, options, say } from "../dom.js";
import { Grid, ramp } from "../grid.js";
import { change, state } from "../state.js";
import { typed } from "../target.js";

const WHAT = [
  ["resid_pre", "residual stream, by position"],
  ["attn_out", "attention output, by position"],
  ["mixer_out", "mixer output, by position"],
  ["mlp_out", "MLP output, by position"],
  ["z", "heads"],
];
const PART = {
  resid_pre: "stream",
  attn_out: "attn",
  mixer_out: "mixer",
  mlp_out: "mlp",
  z: "head",
};

export const comparison = {
  id: "comparison",
  title: "Compare",
  lead: "Where is the fact in which two prompts differ? The corrupted prompt is run many times, each time with one activation from the clean prompt above. 1 means that the clean answer is back, 0 that nothing changed.",
  uses: [],

  build(frame, app) {
    const other = el("input", {
      type: "text",
      maxLength: 20000,
      value: state.other || app.other,
      onchange: () => change({ other: other.value }),
    });
    const what = options(
      el("select"),
      WHAT.filter(([name]) => state.model.compared.includes(name)),
      "resid_pre",
    );
    const [answer, wrong] = [
      "likeliest after the clean prompt",
      "likeliest after the corrupted one",
    ].map((placeholder) => el("input", { type: "text", maxLength: 200, placeholder, size: 26 }));
    const run = el("button", { class: "main", type: "submit" }, "Patch");
    const stop = el(
      "button",
      { type: "button", disabled: true, onclick: () => cancel("comparison") },
      "Stop",
    );
    const form = el(
      "form",
      { class: "controls", onsubmit },
      field("Corrupted prompt", other, "full"),
      field("Patch", what),
      field("Answer", answer),
      field("Wrong answer", wrong),
      run,
      stop,
    );
    frame.controls.replaceWith(form);
    const bar = el("progress", { max: 1, value: 0, "aria-label": "Cells that were run" });
    const told = el("span");
    const running = el("div", { class: "running", hidden: true }, bar, told);
    const map = el("div");
    let turn = 0;

    function onsubmit(event) {
      event.preventDefault();
      change({ other: other.value });
      start();
    }

    function begin(event, readout) {
      const columns =
        event.what === "z"
          ? [...Array(event.columns).keys()].map((i) => `head ${i}`)
          : event.tokens;
      const grid = new Grid({
        rows: [...Array(event.layers).keys()].map((i) => `layer ${i}`),
        columns,
        corner: "",
        label: "What each patch brings back",
        onpoint: (row, column) => (readout.textContent = grid.cells[row][column].title),
        onpick: (row, column) => open(event, row, column),
      });
      return grid;
    }

    // Make the patch of a cell an edit of the corrupted prompt.
    function open(event, layer, column) {
      const edit = { part: PART[event.what], layer, action: "patch", source: event.prompt };
      if (edit.part === "head") edit.index = column;
      else edit.position = column;
      change({
        prompt: event.corrupted_prompt,
        position: null,
        target: { ask: event.answer.id, label: event.answer.label },
        edits: [edit],
      });
      app.open("edits");
    }

    async function start() {
      const question = {
        clean: state.prompt,
        corrupted: other.value,
        what: what.value,
        answer: typed(answer.value),
        wrong: typed(wrong.value),
      };
      const mine = (turn += 1);
      [stop.disabled, running.hidden] = [false, false];
      const readout = el("p", { class: "readout" });
      let [grid, begun, done] = [null, null, 0];
      const work = follow("comparison", question, (event) => {
        if (event.type === "start") {
          begun = {
            ...event,
            what: question.what,
            prompt: question.clean,
            corrupted_prompt: question.corrupted,
          };
          grid = begin(begun, readout);
          map.replaceChildren(
            ...heading(event),
            grid.element,
            ramp("signed", "−1", "1: the clean answer is back"),
            readout,
          );
          frame.show(event.python, running, map);
          frame.settle();
        }
        if (event.type !== "cells") return;
        fill(grid, begun, event);
        done = event.start + event.values.length;
        bar.value = done / begun.cells.length;
        told.textContent = `${done} of ${begun.cells.length} cells`;
      });
      await frame.run(async () => {
        try {
          await work;
          say(`All ${done} cells are done.`);
        } catch (error) {
          if (error instanceof Stale && begun && mine === turn)
            told.textContent = `stopped after ${done} of ${begun.cells.length} cells`;
          throw error;
        } finally {
          if (mine === turn) stop.disabled = true;
        }
      });
    }

    function heading(event) {
      const name = (token) => el("span", { class: "token" }, token.label);
      return [
        el("h3", {}, "Logit of ", name(event.answer), " minus logit of ", name(event.wrong)),
        el(
          "p",
          { class: "note" },
          `${number(event.clean)} in the clean run, ${number(event.corrupted)} in the corrupted one. Click a cell to open that patch as an edit.`,
        ),
      ];
    }

    function fill(grid, begun, event) {
      event.values.forEach((value, i) => {
        const [layer, column] = begun.cells[event.start + i];
        const place =
          begun.what === "z"
            ? `head ${layer}.${column}`
            : `layer ${layer}, at ${begun.tokens[column]}`;
        grid.fill(
          layer,
          column,
          number(value),
          value,
          `${place}: ${number(value, 3)} of the difference is back`,
        );
      });
    }

    return async () => {};
  },
};
