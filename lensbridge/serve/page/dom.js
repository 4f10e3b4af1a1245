// Elements. Text is always text: nothing here makes markup of a string.

export function el(tag, properties = {}, ...children) {
  const found = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "class") found.className = value;
    else if (name.startsWith("on")) found.addEventListener(name.slice(2), value);
    else if (name in found && name !== "list") found[name] = value;
    else found.setAttribute(name, value === true ? "" : value);
  }
  found.append(...children.filter((child) => child !== null && child !== undefined));
  return found;
}

let made = 0;

// A control with its label above it; `row` puts the label beside it.
export function field(label, control, kind = "") {
  control.id ||= `control-${++made}`;
  const name = el("label", { htmlFor: control.id }, label);
  const order = kind === "row" ? [control, name] : [name, control];
  return el("div", { class: `field ${kind}` }, ...order);
}

export function options(select, values, chosen) {
  select.replaceChildren(
    ...values.map(([value, text]) =>
      el("option", { value, selected: String(value) === String(chosen) }, text),
    ),
  );
  return select;
}

export const number = (value, digits = 2) =>
  Object.is(Math.round(value * 10 ** digits), -0)
    ? (0).toFixed(digits)
    : value.toFixed(digits).replace("-", "−");

export const signed = (value, digits = 2) => (value > 0 ? "+" : "") + number(value, digits);

export function percent(value) {
  if (value >= 0.9995 || value === 0) return `${Math.round(value * 100)}%`;
  return value < 0.0001 ? "<0.01%" : `${(value * 100).toFixed(value < 0.01 ? 2 : 1)}%`;
}

// Arrow keys move among elements of which one is in the tab order.
export function rove(box, selector, columns = () => 0) {
  box.addEventListener("keydown", (event) => {
    const all = [...box.querySelectorAll(selector)];
    const at = all.indexOf(event.target);
    const wide = columns();
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: wide || 1, ArrowUp: -(wide || 1) };
    const ends = { Home: 0, End: all.length - 1 };
    const next = event.key in ends ? ends[event.key] : at + (steps[event.key] ?? NaN);
    if (at < 0 || !all[next]) return;
    event.preventDefault();
    all.forEach((one) => (one.tabIndex = -1));
    all[next].tabIndex = 0;
    all[next].focus();
  });
}

// Announce something to screen readers.
export function say(text) {
  document.getElementById("status").textContent = text;
}
