// Frame: what surrounds every view: title, controls, messages, and the Python that does the same.

import { Stale } from "./api.js";
import { el, say } from "./dom.js";

export class Frame {
  constructor({ title, lead }) {
    this.controls = el("div", { class: "controls" });
    this.problem = el("p", { class: "message", role: "alert" });
    this.figure = el("div", { class: "figure" });
    this.code = el("code");
    this.copied = el("button", { type: "button", onclick: () => this.copy() }, "Copy");
    const head = el("div", {}, el("h3", {}, "The same in Python"), this.copied);
    this.pre = el("pre", { tabIndex: 0, "aria-label": "Python" }, this.code);
    this.python = el(
      "section",
      { class: "python", "aria-label": "The same in Python", hidden: true },
      head,
      this.pre,
    );
    this.element = el(
      "section",
      { class: "view" },
      el("h2", { class: "unseen" }, title),
      el("p", { class: "lead" }, lead),
      this.controls,
      this.problem,
      this.figure,
      this.python,
    );
  }

  // Run something that asks the server; its errors are shown, and stale answers are dropped.
  async run(work) {
    const turn = (this.turn = {});
    this.element.classList.add("busy");
    try {
      await work();
      if (turn === this.turn) this.problem.textContent = "";
    } catch (error) {
      if (error instanceof Stale || turn !== this.turn) return;
      this.problem.textContent = error.message;
      this.figure.replaceChildren();
      this.python.hidden = true;
    } finally {
      if (turn === this.turn) this.element.classList.remove("busy");
    }
  }

  // The first answer is there, and more is on its way.
  settle() {
    this.element.classList.remove("busy");
  }

  // Show a figure in place of the last one; what had the keyboard's focus has it again.
  show(python, ...children) {
    const inside = () => [...this.figure.querySelectorAll("button, td, canvas")];
    const focused = inside().indexOf(document.activeElement);
    this.figure.replaceChildren(...children.filter(Boolean));
    if (focused >= 0 && document.activeElement === document.body) inside()[focused]?.focus();
    this.showPython(python);
  }

  showPython(python) {
    this.code.textContent = python;
    this.python.hidden = false;
    this.copied.textContent = "Copy";
  }

  async copy() {
    try {
      await navigator.clipboard.writeText(this.code.textContent);
      this.copied.textContent = "Copied";
      say("The Python was copied.");
    } catch (error) {
      getSelection().selectAllChildren(this.pre);
      say("The Python is selected: copy it with the keyboard.");
    }
  }
}
