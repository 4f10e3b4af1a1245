// Grid: a table of coloured cells with names at its top and left, which can be filled bit by bit.

import { el, rove } from "./dom.js";

export class Grid {
  // `corner` names the rows; `onpick(row, column)` is called on a click or Enter.
  constructor({ rows, columns, corner, label, words = false, onpick, onpoint }) {
    this.columns = columns.length;
    this.cells = rows.map(() =>
      columns.map(() => el("td", { role: "gridcell", class: "none", tabIndex: -1 })),
    );
    const head = el(
      "tr",
      {},
      el("th", { scope: "col" }, corner),
      ...columns.map((name) => el("th", { scope: "col", title: name }, name)),
    );
    const body = rows.map((name, i) =>
      el("tr", {}, el("th", { scope: "row" }, name), ...this.cells[i]),
    );
    this.table = el(
      "table",
      { class: `grid ${words ? "words" : ""}`, role: "grid", "aria-label": label },
      el("thead", {}, head),
      el("tbody", {}, ...body),
    );
    this.element = el("div", { class: "scroll", tabIndex: -1 }, this.table);
    this.cells[0]?.[0]?.setAttribute("tabindex", "0");
    rove(this.table, "td", () => this.columns);
    const at = (event) => this.place(event.target.closest("td"));
    const act = (event, tell) => {
      const place = at(event);
      if (place && tell) tell(...place);
    };
    this.table.addEventListener("click", (event) => act(event, onpick));
    this.table.addEventListener("focusin", (event) => act(event, onpoint));
    this.table.addEventListener("mouseover", (event) => act(event, onpoint));
    this.table.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      act(event, onpick);
    });
  }

  place(cell) {
    if (!cell || cell.classList.contains("none")) return null;
    return [cell.parentElement.rowIndex - 1, cell.cellIndex - 1];
  }

  // `strength` from -1 to 1 is the colour.
  fill(row, column, text, strength, label) {
    const cell = this.cells[row][column];
    cell.textContent = text;
    cell.className = `toned ${strength < 0 ? "minus" : "plus"}`;
    cell.style.setProperty("--v", Math.min(1, Math.abs(strength)));
    cell.setAttribute("aria-label", label);
    cell.title = label;
  }

  choose(row, column) {
    this.table.querySelector("td[aria-selected=true]")?.removeAttribute("aria-selected");
    this.cells[row]?.[column]?.setAttribute("aria-selected", "true");
  }

  // Scroll the grid, and nothing around it, so that a cell can be seen.
  reveal(row, column) {
    const cell = this.cells[row]?.[column];
    if (!cell) return;
    const [box, left] = [this.element, cell.parentElement.firstElementChild.offsetWidth];
    const middle = cell.offsetLeft + cell.offsetWidth / 2;
    box.scrollLeft = middle - left - (box.clientWidth - left) / 2;
    box.scrollTop = cell.offsetTop + cell.offsetHeight - box.clientHeight;
  }
}

export function ramp(kind, low, high) {
  return el(
    "p",
    { class: "legend" },
    el("span", {}, low),
    el("span", { class: `ramp ${kind}` }),
    el("span", {}, high),
  );
}
