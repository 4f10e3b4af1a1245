// What all views share: the prompt, the chosen position and token, and the list of edits.

const KEPT = ["prompt", "position", "target", "edits", "tab", "other"];
const listeners = new Set();

export const state = {
  model: null,
  prompt: "",
  position: null, // null is the last token
  target: null, // null is the likeliest token; else { ask, label }
  edits: [],
  tab: "predictions",
  other: "", // the second prompt of comparisons
  tokens: [],
};

export function restore() {
  try {
    const kept = JSON.parse(sessionStorage.getItem("lensbridge") ?? "{}");
    for (const name of KEPT) if (name in kept) state[name] = kept[name];
  } catch (error) {
    sessionStorage.removeItem("lensbridge");
  }
}

export function change(changes) {
  Object.assign(state, changes);
  sessionStorage.setItem(
    "lensbridge",
    JSON.stringify(Object.fromEntries(KEPT.map((name) => [name, state[name]]))),
  );
  for (const listener of listeners) listener(Object.keys(changes));
}

export function listen(listener) {
  listeners.add(listener);
}

export const position = () => (state.position === null ? state.tokens.length - 1 : state.position);
