// Neurons: one neuron on the text, and the strongest neurons at a token.

import { ask } from "../api.js";
import { bars } from "../bars.js";
import { el, field, number, options, signed } from "../dom.js";
import { ramp } from "../grid.js";
import { change, state } from "../state.js";
import { colouredText } from "../tokens.js";

export const neurons = {
  id: "neurons",
  title: "Neurons",
  lead: "The activation of one MLP neuron at every token, and the neurons that are strongest at the chosen token.",
  uses: ["prompt", "position"],

  build(frame, app) {
    let neuron = null;
    const layer = options(
      el("select"),
      state.model.neuron_layers.map((i) => [i, `Layer ${i}`]),
      state.model.neuron_layers.at(-1),
    );
    const typed = el("input", { type: "number", min: 0, step: 1, placeholder: "strongest" });
    layer.addEventListener("change", () => choose(null));
    typed.addEventListener("change", () =>
      choose(typed.value === "" ? null : Math.max(0, Math.round(Number(typed.value)))),
    );
    frame.controls.append(field("Layer", layer), field("Neuron", typed));

    function choose(next) {
      neuron = next;
      typed.value = next ?? "";
      refresh();
    }

    async function refresh() {
      await frame.run(async () => {
        const chosen = Number(layer.value);
        const found = await ask("neurons", {
          prompt: state.prompt,
          position: state.position,
          layer: chosen,
          neuron,
        });
        app.tokens(found.tokens);
        const most = Math.max(...found.activations.map(Math.abs));
        const text = colouredText(found.tokens, found.activations, {
          most,
          chosen: found.position,
          onpick: (i) => change({ position: i === found.tokens.length - 1 ? null : i }),
          describe: (value, i) => `${found.tokens[i]}: activation ${signed(value)}`,
        });
        const silence = { part: "neuron", layer: chosen, index: found.neuron, action: "zero" };
        const top = bars(
          found.top.map((row) => ({
            label: `neuron ${row.neuron}`,
            plain: true,
            value: row.activation,
            text: signed(row.activation),
            chosen: row.neuron === found.neuron,
            action: `Show neuron ${row.neuron}, activation ${signed(row.activation)}`,
            onpick: () => choose(row.neuron),
          })),
          { label: "Strongest neurons at the token", both: true },
        );
        frame.show(
          found.python,
          el("h3", {}, `Neuron ${found.neuron} of ${found.neurons} in layer ${chosen}`),
          text,
          ramp("signed", number(-most), signed(most)),
          el("button", { type: "button", onclick: () => app.edit(silence) }, "Ablate this neuron"),
          el(
            "div",
            { class: "block" },
            el(
              "h3",
              {},
              "Strongest at ",
              el("span", { class: "token" }, found.tokens[found.position]),
            ),
            top,
          ),
        );
      });
    }
    return refresh;
  },
};
