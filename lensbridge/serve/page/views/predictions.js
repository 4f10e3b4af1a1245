// The likeliest tokens at a position.

import { ask } from "../api.js";
import { bars } from "../bars.js";
import { el, number, percent } from "../dom.js";
import { ramp } from "../grid.js";
import { change, state } from "../state.js";
import { colouredText } from "../tokens.js";

export const predictions = {
  id: "predictions",
  title: "Predictions",
  lead: "What the model expects after the chosen token. Click a token above to look at another position, or a prediction to follow it through the other views.",
  uses: ["prompt", "position", "target"],

  build(frame, app) {
    return () =>
      frame.run(async () => {
        const found = await ask("predictions", { prompt: state.prompt, position: state.position });
        app.tokens(found.tokens);
        frame.show(
          found.python,
          el("div", { class: "halves" }, next(found), found.expected ? expected(found) : null),
        );
      });
  },
};

function next(found) {
  const where = state.model.predicts_next ? "after" : "in place of";
  const rows = found.rows.map((row) => ({
    label: row.label,
    value: row.probability,
    text: percent(row.probability),
    title: `${row.label}: ${percent(row.probability)}, logit ${number(row.logit)}`,
    chosen: state.target?.ask === row.id,
    action: `Follow ${row.label}, ${percent(row.probability)}`,
    onpick: () =>
      change({ target: state.target?.ask === row.id ? null : { ask: row.id, label: row.label } }),
  }));
  const followed = state.target
    ? `You follow ${state.target.label}: attributions and edits are about its logit.`
    : "Attributions and edits are about the likeliest token.";
  return el(
    "div",
    {},
    el(
      "h3",
      {},
      `Likeliest ${where} `,
      el("span", { class: "token" }, found.tokens[found.position]),
    ),
    bars(rows, { label: "Likeliest tokens", most: 1 }),
    el("p", { class: "note" }, `Entropy ${number(found.entropy)} nats. ${followed}`),
  );
}

// How expected each token of the prompt was: the first one has no prediction.
function expected(found) {
  const chances = [0, ...found.expected];
  const text = colouredText(found.tokens, chances, {
    most: 1,
    chosen: found.position,
    onpick: (i) => change({ position: i === found.tokens.length - 1 ? null : i }),
    describe: (value, i) =>
      i
        ? `${found.tokens[i]}: ${percent(value)} was expected`
        : `${found.tokens[i]}: the first token is not predicted`,
  });
  return el(
    "div",
    {},
    el("h3", {}, "How expected each token was"),
    text,
    ramp("chance", "0%", "100%"),
  );
}
