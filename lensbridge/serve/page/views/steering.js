// Steering: the continuation with a steering vector and without it, side by side.

import { follow } from "../api.js";
import { beforeAfter, pairs } from "../bars.js";
import { el, field, number, options, percent, signed } from "../dom.js";
import { state } from "../state.js";

export const steering = {
  id: "steering",
  title: "Steer",
  lead: "The direction from one text to another is added to the residual stream after a layer, at every token of the prompt and of its continuation.",
  uses: ["prompt"],

  build(frame, app) {
    const [toward, away] = app.contrast.map((value) =>
      el("input", { type: "text", maxLength: 20000, value }),
    );
    const layers = state.model.layers;
    const layer = options(
      el("select"),
      [...Array(layers).keys()].map((i) => [i, `after layer ${i}`]),
      Math.floor(layers / 2),
    );
    const strength = el("input", { type: "range", min: -8, max: 8, step: 0.25, value: 1 });
    const shown = el("output", {}, "1");
    const count = el("input", {
      type: "number",
      min: 1,
      max: state.model.max_new_tokens,
      value: Math.min(12, state.model.max_new_tokens),
    });
    strength.addEventListener(
      "input",
      () => (shown.textContent = number(Number(strength.value)).replace(/\.?0+$/, "")),
    );
    const slider = field("Strength", strength, "slider");
    slider.append(shown);
    frame.controls.append(
      field("Toward", toward, "wide"),
      field("Away from", away, "wide"),
      field("Where", layer),
      slider,
      field("New tokens", count),
    );
    for (const one of [toward, away, layer, strength, count])
      one.addEventListener("change", () => refresh());

    function text(title) {
      const box = el("p", { class: "text", "aria-live": "polite" });
      return {
        box,
        element: el("div", {}, el("h3", {}, title), el("div", { class: "continued" }, box)),
      };
    }

    async function refresh() {
      await frame.run(async () => {
        const sides = { plain: text("Without"), steered: text("With steering") };
        await follow(
          "steering",
          {
            prompt: state.prompt,
            positive: toward.value,
            negative: away.value,
            layer: Number(layer.value),
            strength: Number(strength.value),
            new_tokens: Math.max(1, Math.round(Number(count.value))),
          },
          (event) => {
            if (event.type === "start") {
              app.tokens(event.tokens);
              for (const { box } of Object.values(sides)) {
                box.replaceChildren(...event.tokens.map((label) => el("span", {}, label)));
              }
              frame.show(
                event.python,
                el("div", { class: "halves" }, sides.plain.element, sides.steered.element),
                next(event),
              );
              frame.settle();
            }
            if (event.type === "text") {
              const made = event.labels.map((label) => el("span", { class: "new" }, label));
              sides[event.side].box.append(...made);
            }
          },
        );
      });
    }

    function next(event) {
      return el(
        "div",
        { class: "block" },
        el("h3", {}, "Next token"),
        beforeAfter("without", "with steering"),
        pairs(
          event.rows.map((row) => ({
            label: row.label,
            before: row.probability[0],
            after: row.probability[1],
            text: `${percent(row.probability[0])} → ${percent(row.probability[1])}`,
            moved: signed(row.logit[1] - row.logit[0], 1),
            title: `${row.label}: logit ${number(row.logit[0])} without, ${number(row.logit[1])} with steering`,
          })),
          { label: "Probabilities of the next token" },
        ),
        el("p", { class: "note" }, `The vector has length ${number(event.norm)}.`),
      );
    }
    return refresh;
  },
};
