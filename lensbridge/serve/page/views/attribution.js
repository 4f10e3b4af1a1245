// Direct logit attribution, as bars.

import { ask } from "../api.js";
import { bars } from "../bars.js";
import { el, field, number, options, signed } from "../dom.js";
import { state } from "../state.js";
import { asked, targetField, typed } from "../target.js";

const MOST = 40; // bars; the rest is one bar

export const attribution = {
  id: "attribution",
  title: "Attribution",
  lead: "How much each part of the model adds to the logit of a token. The parts and the bias sum to the logit.",
  uses: ["prompt", "position", "target"],

  build(frame, app) {
    const unit = options(
      el("select", { onchange: () => refresh() }),
      [
        ["component", "attention and MLPs"],
        ["head", "heads"],
        ["layer", "layers"],
      ],
      "component",
    );
    const target = targetField();
    const against = el("input", {
      type: "text",
      maxLength: 200,
      placeholder: "nothing",
      onchange: () => refresh(),
    });
    frame.controls.append(field("Parts", unit), target.element, field("Compared with", against));

    function shown(rows) {
      if (rows.length <= MOST) return rows;
      const strength = (row) => Math.abs(row.value);
      const least = [...rows].sort((a, b) => strength(b) - strength(a))[MOST - 1];
      const kept = rows.filter((row) => strength(row) >= strength(least));
      const rest = rows.filter((row) => strength(row) < strength(least));
      return [
        ...kept,
        { label: `${rest.length} others`, value: rest.reduce((sum, row) => sum + row.value, 0) },
      ];
    }

    function action(label) {
      const head = label.match(/^head (\d+)\.(\d+)$/);
      const part = label.match(/^(attention|MLP|mixer) (\d+)$/);
      if (head)
        return { part: "head", layer: Number(head[1]), index: Number(head[2]), action: "zero" };
      if (part)
        return {
          part: { MLP: "mlp", attention: "attn", mixer: "mixer" }[part[1]],
          layer: Number(part[2]),
          action: "zero",
        };
      return null;
    }

    async function refresh() {
      await frame.run(async () => {
        target.sync();
        const found = await ask("attribution", {
          prompt: state.prompt,
          position: state.position,
          target: asked(),
          against: typed(against.value),
          unit: unit.value,
        });
        app.tokens(found.tokens);
        const rows = [...shown(found.rows), { label: "bias", value: found.bias }];
        const name = (token) => el("span", { class: "token" }, token.label);
        const title = found.against
          ? el(
              "h3",
              {},
              "Logit of ",
              name(found.target),
              " minus logit of ",
              name(found.against),
              `: ${number(found.logit)}`,
            )
          : el("h3", {}, "Logit of ", name(found.target), `: ${number(found.logit)}`);
        frame.show(
          found.python,
          title,
          bars(
            rows.map((row) => {
              const edit = action(row.label);
              return {
                label: row.label,
                plain: true,
                value: row.value,
                text: signed(row.value),
                action: `Ablate ${row.label}, which adds ${signed(row.value)}`,
                onpick: edit && (() => app.edit(edit)),
              };
            }),
            { label: "Attribution of each part", both: true },
          ),
          el("p", { class: "note" }, "Click a part to ablate it and see the logits move."),
        );
      });
    }
    return refresh;
  },
};
