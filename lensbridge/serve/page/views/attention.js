// Attention: all heads of a layer as a strip, and one of them large.

import { ask } from "../api.js";
import { bars } from "../bars.js";
import { el, field, options, percent, rove } from "../dom.js";
import { Matrix, thumbnail } from "../matrix.js";
import { state, position } from "../state.js";
import { colouredText } from "../tokens.js";

export const attention = {
  id: "attention",
  title: "Attention",
  lead: "Where each head looks: a row is the token that attends (the query), a column the token that is attended to (the key).",
  uses: ["prompt", "position"],

  build(frame, app) {
    let [head, strip] = [0, null];
    const layer = options(
      el("select", { onchange: () => refresh() }),
      state.model.attention_layers.map((i) => [i, `Layer ${i}`]),
      state.model.attention_layers[0],
    );
    const byRow = el("input", {
      type: "checkbox",
      onchange: () => Object.assign(matrix, { byRow: byRow.checked }).draw(),
    });
    frame.controls.append(
      field("Layer", layer),
      field("each row's strongest weight in full colour", byRow, "row"),
    );
    const heads = el("div", { class: "heads", role: "radiogroup", "aria-label": "Head" });
    rove(heads, "button");
    const readout = el("p", { class: "readout", "aria-live": "polite" });
    const from = el("div");
    let found = null;
    const matrix = new Matrix({
      onpoint: (q, k) => {
        readout.replaceChildren(
          el("b", { class: "token" }, found.tokens[q]),
          " attends to ",
          el("b", { class: "token" }, found.tokens[k]),
          `: ${percent(found.pattern[q][k])}`,
        );
      },
      onpick: (q) => row(q),
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
      matrix.draw();
      if (strip) showHeads(found.tokens.length);
    });

    function row(q) {
      const weights = found.pattern[q];
      from.replaceChildren(
        el("h3", {}, "Attention from ", el("span", { class: "token" }, found.tokens[q])),
        colouredText(found.tokens, weights, {
          most: Math.max(...weights),
          chosen: q,
          onpick: row,
          describe: (value, k) =>
            `${found.tokens[q]} attends to ${found.tokens[k]}: ${percent(value)}`,
        }),
        el("p", { class: "note" }, "Click a token to see where it attends."),
        strongest(weights),
      );
    }

    // A token, with its position where it occurs more than once.
    const named = (k) =>
      found.tokens.indexOf(found.tokens[k]) === found.tokens.lastIndexOf(found.tokens[k])
        ? found.tokens[k]
        : `${found.tokens[k]} (${k})`;

    function strongest(weights) {
      const order = weights.map((weight, k) => [weight, k]).sort((a, b) => b[0] - a[0]);
      const rows = order.slice(0, 6).map(([value, k]) => ({
        label: named(k),
        value,
        text: percent(value),
        title: `${found.tokens[k]}, position ${k}`,
      }));
      return el("div", { class: "block" }, bars(rows, { label: "Strongest weights", most: 1 }));
    }

    function choose(next) {
      head = next;
      refresh();
    }

    function showHeads(count) {
      const focused = heads.contains(document.activeElement);
      heads.replaceChildren(
        ...strip.map((bytes, i) =>
          el(
            "button",
            {
              type: "button",
              role: "radio",
              "aria-checked": i === head ? "true" : "false",
              tabIndex: i === head ? 0 : -1,
              onclick: () => choose(i),
            },
            thumbnail(bytes, count),
            `Head ${i}`,
          ),
        ),
      );
      if (focused) heads.children[head]?.focus();
    }

    async function refresh() {
      await frame.run(async () => {
        const chosen = Number(layer.value);
        found = await ask("attention", { prompt: state.prompt, layer: chosen, head });
        app.tokens(found.tokens);
        strip = found.strip;
        showHeads(found.tokens.length);
        matrix.show(found.tokens, found.pattern, `Attention of head ${head} in layer ${chosen}`);
        readout.textContent = "Point at a cell to see its weight.";
        row(Math.min(position(), found.tokens.length - 1));
        const ablate = el(
          "button",
          {
            type: "button",
            onclick: () => app.edit({ part: "head", layer: chosen, index: head, action: "zero" }),
          },
          `Ablate head ${chosen}.${head}`,
        );
        const left = el(
          "div",
          {},
          el("h3", {}, `Head ${chosen}.${head}`),
          matrix.element,
          readout,
          ablate,
        );
        frame.show(found.python, heads, el("div", { class: "attention" }, left, from));
      });
    }
    return refresh;
  },
};
