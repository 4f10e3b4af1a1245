// The page: the prompt, the tabs, and the view that is open.

import * as api from "./api.js";
import { el, rove } from "./dom.js";
import { Frame } from "./frame.js";
import { change, listen, restore, state } from "./state.js";
import { showStrip } from "./tokens.js";
import { attention } from "./views/attention.js";
import { attribution } from "./views/attribution.js";
import { comparison } from "./views/comparison.js";
import { edits } from "./views/edits.js";
import { lens } from "./views/lens.js";
import { neurons } from "./views/neurons.js";
import { predictions } from "./views/predictions.js";
import { steering } from "./views/steering.js";

const VIEWS = [predictions, lens, attention, neurons, attribution, edits, comparison, steering];
const PAUSE = 350; // milliseconds without a key before a prompt is run
const built = new Map();
const [prompt, strip, tabs, panel] = ["prompt", "strip", "tabs", "panel"].map((id) =>
  document.getElementById(id),
);

const app = {
  tokens(tokens) {
    if (state.position !== null && state.position >= tokens.length) change({ position: null });
    state.tokens = tokens;
    showStrip(strip);
  },
  edit(edit) {
    change({ edits: [...state.edits, edit] });
    app.open("edits");
    panel.focus();
  },
  open(id) {
    change({ tab: id });
    show();
    tabs
      .querySelector("[aria-selected=true]")
      .scrollIntoView({ block: "nearest", inline: "nearest" });
  },
};

function describe(model) {
  const size = new Intl.NumberFormat("en", {
    notation: "compact",
    maximumSignificantDigits: 3,
  }).format(model.parameters);
  const facts = [
    model.kind,
    `${model.layers} layers`,
    `${model.heads} heads`,
    `width ${model.width}`,
    `${size} parameters`,
    `up to ${model.max_tokens} tokens`,
  ];
  document
    .getElementById("model")
    .replaceChildren(el("b", {}, model.name), ` · ${facts.join(" · ")}`);
  document.title = `${model.name} · lensbridge`;
}

function makeTabs() {
  const made = VIEWS.map((view) =>
    el(
      "button",
      {
        type: "button",
        role: "tab",
        id: `tab-${view.id}`,
        class: view.id in state.model.absent ? "absent" : "",
        title: state.model.absent[view.id],
        "aria-controls": "panel",
        onclick: () => app.open(view.id),
      },
      view.title,
    ),
  );
  tabs.replaceChildren(...made);
  rove(tabs, "[role=tab]");
}

function frameOf(view) {
  if (built.has(view.id)) return built.get(view.id);
  const frame = new Frame(view);
  const why = state.model.absent[view.id];
  frame.refresh = why ? async () => (frame.problem.textContent = why) : view.build(frame, app);
  built.set(view.id, frame);
  return frame;
}

function show() {
  const view = VIEWS.find((one) => one.id === state.tab) ?? VIEWS[0];
  for (const tab of tabs.children) {
    const chosen = tab.id === `tab-${view.id}`;
    tab.setAttribute("aria-selected", chosen ? "true" : "false");
    tab.tabIndex = chosen ? 0 : -1;
  }
  panel.setAttribute("role", "tabpanel");
  panel.setAttribute("aria-labelledby", `tab-${view.id}`);
  const frame = frameOf(view);
  if (panel.firstElementChild !== frame.element) panel.replaceChildren(frame.element);
  frame.refresh();
}

function changed(names) {
  if (names.includes("prompt") && prompt.value !== state.prompt) prompt.value = state.prompt;
  if (state.tokens.length) showStrip(strip);
  const view = VIEWS.find((one) => one.id === state.tab);
  if (names.some((name) => view?.uses.includes(name))) frameOf(view).refresh();
}

function watchPrompt() {
  let timer = 0;
  const run = () => {
    clearTimeout(timer);
    if (prompt.value !== state.prompt) change({ prompt: prompt.value, position: null });
  };
  prompt.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(run, PAUSE);
  });
  prompt.addEventListener("change", run);
  prompt.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    run();
  });
}

async function begin() {
  try {
    state.model = await api.model();
  } catch (error) {
    document.getElementById("model").textContent = "";
    panel.replaceChildren(el("p", { class: "message", role: "alert" }, error.message));
    return;
  }
  const { model } = state;
  state.prompt = model.prompt;
  Object.assign(app, { other: model.other, contrast: [model.other, model.prompt] });
  restore();
  prompt.value = state.prompt;
  if (!model.tokenizer)
    document.querySelector("label[for=prompt]").textContent =
      "Prompt: token ids with spaces between them, because this model has no tokenizer";
  describe(model);
  makeTabs();
  watchPrompt();
  listen(changed);
  show();
}

begin();
