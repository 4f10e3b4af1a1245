// The logit lens: layers from top to bottom, positions from left to right.

import { ask } from "../api.js";
import { bars } from "../bars.js";
import { el, field, percent, number } from "../dom.js";
import { Grid, ramp } from "../grid.js";
import { change, state, position } from "../state.js";

export const lens = {
  id: "lens",
  title: "Logit lens",
  lead: "What the residual stream already predicts before each layer, read with the model's own final norm and head. A cell shows the likeliest token; its colour is the probability.",
  uses: ["prompt", "position"],

  build(frame, app) {
    const middle = el("input", { type: "checkbox", onchange: () => refresh() });
    frame.controls.append(field("also between attention and MLP", middle, "row"));

    function detail(found, box, grid, row, column) {
      grid.choose(row, column);
      const cell = found.ids[row][column].map((id, rank) => ({
        label: found.names[id],
        id,
        value: found.probabilities[row][column][rank],
      }));
      const layer = Number(found.rows[row].match(/\d+/)?.[0] ?? -1);
      box.replaceChildren(
        el(
          "h3",
          {},
          `${found.rows[row]}, at `,
          el("span", { class: "token" }, found.tokens[column]),
        ),
        bars(
          cell.map((one) => ({
            label: one.label,
            value: one.value,
            text: percent(one.value),
            action: `Follow ${one.label}, ${percent(one.value)}`,
            onpick: () => change({ target: { ask: one.id, label: one.label } }),
          })),
          { label: "Likeliest tokens of the cell", most: 1 },
        ),
        el("p", { class: "note" }, `Entropy ${number(found.entropy[row][column])} nats.`),
        layer >= 0 && found.rows[row].startsWith("before")
          ? el(
              "button",
              {
                type: "button",
                onclick: () =>
                  app.edit({ part: "stream", layer, position: column, action: "zero" }),
              },
              "Ablate the stream here",
            )
          : "",
      );
    }

    async function refresh() {
      await frame.run(async () => {
        const found = await ask("lens", { prompt: state.prompt, middle: middle.checked });
        app.tokens(found.tokens);
        const box = el("div");
        const readout = el("p", { class: "readout" });
        const grid = new Grid({
          rows: found.rows,
          columns: found.tokens,
          corner: "",
          label: "Logit lens",
          words: true,
          onpick: (row, column) => detail(found, box, grid, row, column),
          onpoint: (row, column) => (readout.textContent = grid.cells[row][column].title),
        });
        found.ids.forEach((line, row) =>
          line.forEach((ids, column) => {
            const [name, chance] = [found.names[ids[0]], found.probabilities[row][column][0]];
            grid.fill(
              row,
              column,
              name,
              chance,
              `${found.rows[row]}, at ${found.tokens[column]}: ${name} ${percent(chance)}`,
            );
          }),
        );
        const left = el("div", {}, grid.element, ramp("chance", "0%", "100%"), readout);
        frame.show(found.python, el("div", { class: "beside" }, left, box));
        const column = Math.min(position(), found.tokens.length - 1);
        detail(found, box, grid, found.rows.length - 1, column);
        grid.reveal(found.rows.length - 1, column);
      });
    }
    return refresh;
  },
};
