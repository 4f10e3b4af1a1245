// The map of ablations: what happens to a token's logit when each part alone is set to zero.

import { follow } from "../api.js";
import { el, signed } from "../dom.js";
import { Grid, ramp } from "../grid.js";

export class AblationMap {
  // `onpick` gets the edit of a cell, and `onstart` the first event of a new map.
  constructor({ onpick, onstart }) {
    Object.assign(this, { onpick, onstart });
    this.element = el("div");
    this.shown = "";
  }

  // Make the map of a question, if it is not there or being made.
  async show(question) {
    const asked = JSON.stringify(question);
    if (this.shown === asked) return;
    this.shown = asked;
    this.element.replaceChildren(el("p", { class: "note" }, "The map is being made …"));
    try {
      await follow("ablation", question, (event) => {
        if (event.type === "start") this.begin(event);
        if (event.type === "cells") this.fill(event.values);
      });
    } catch (error) {
      if (this.shown === asked) this.shown = "";
      throw error;
    }
  }

  begin(event) {
    this.start = event;
    this.values = [];
    this.readout = el("p", { class: "readout" });
    this.grid = new Grid({
      rows: [...Array(event.layers).keys()].map((layer) => `layer ${layer}`),
      columns: event.columns.map((column) => column.label),
      corner: "",
      label: "Effect of each ablation",
      onpoint: (row, column) => (this.readout.textContent = this.grid.cells[row][column].title),
      onpick: (layer, column) => {
        const { part, index } = event.columns[column];
        this.onpick({ part, layer, index, action: "zero" });
      },
    });
    const token = el("span", { class: "token" }, event.target.label);
    this.element.replaceChildren(
      el("h3", {}, "Change of the logit of ", token, " when a part is set to zero"),
      this.grid.element,
      ramp("signed", "lower", "higher"),
      this.readout,
    );
    this.onstart(event);
  }

  // Colours are shares of the strongest value so far.
  fill(values) {
    this.values.push(...values);
    const most = Math.max(...this.values.map(Math.abs)) || 1;
    this.values.forEach((value, i) => {
      const [layer, column] = this.start.cells[i];
      const { label, part, index } = this.start.columns[column];
      const name = part === "head" ? `head ${layer}.${index}` : `${label} ${layer}`;
      const told = `${name}: ${signed(value)} logits of ${this.start.target.label}`;
      this.grid.fill(layer, column, signed(value, 1), value / most, told);
    });
    const [done, all] = [this.values.length, this.start.cells.length];
    this.readout.textContent = done < all ? `${done} of ${all} parts` : "";
  }
}
