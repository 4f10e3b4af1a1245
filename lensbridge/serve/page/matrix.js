// Matrix: a head's attention as a picture, with a row for each query and a column for each key.

import { el } from "./dom.js";

const FONT = '12px ui-monospace, "SF Mono", "DejaVu Sans Mono", Menlo, Consolas, monospace';

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function shortened(text, most) {
  const signs = [...text];
  return signs.length > most ? `${signs.slice(0, most - 1).join("")}…` : text;
}

export class Matrix {
  constructor({ onpoint, onpick }) {
    this.canvas = el("canvas", {
      tabIndex: 0,
      role: "application",
      "aria-roledescription": "attention pattern",
    });
    this.element = el("div", { class: "matrix" }, this.canvas);
    this.at = null;
    this.byRow = false; // whether the strongest weight of each row has the full colour
    this.onpoint = onpoint;
    this.canvas.addEventListener("mousemove", (event) => this.point(this.under(event)));
    this.canvas.addEventListener("click", (event) => {
      const place = this.under(event);
      if (place) onpick(...place);
    });
    this.canvas.addEventListener("keydown", (event) => this.key(event, onpick));
  }

  show(tokens, pattern, label) {
    Object.assign(this, { tokens, pattern });
    if (this.at && Math.max(...this.at) >= tokens.length) this.at = null;
    this.canvas.setAttribute("aria-label", `${label}. Arrow keys move, Enter chooses the query.`);
    this.draw();
  }

  // Cells get smaller with more tokens; names are written where they fit.
  measure() {
    const count = this.tokens.length;
    const names = this.tokens.map((token) => shortened(token, 14));
    const cell = Math.max(3, Math.min(40, Math.floor(560 / count)));
    const step = Math.ceil(14 / cell);
    const longest = Math.max(...names.map((name) => [...name].length));
    return { count, names, cell, step, left: longest * 7.4 + 10, top: longest * 7.4 + 10 };
  }

  draw() {
    if (!this.tokens) return;
    const { count, names, cell, step, left, top } = (this.size = this.measure());
    const [width, height] = [left + count * cell + 2, top + count * cell + 2];
    const scale = window.devicePixelRatio || 1;
    Object.assign(this.canvas, { width: width * scale, height: height * scale });
    Object.assign(this.canvas.style, { width: `${width}px`, height: `${height}px` });
    const pen = this.canvas.getContext("2d");
    pen.scale(scale, scale);
    pen.font = FONT;
    pen.textBaseline = "middle";
    this.drawNames(pen, names, { cell, step, left, top });
    const plus = colour("--picture");
    for (let q = 0; q < count; q++) {
      const full = this.byRow ? Math.max(...this.pattern[q]) || 1 : 1;
      for (let k = 0; k < count; k++) {
        pen.globalAlpha = Math.min(1, this.pattern[q][k] / full);
        pen.fillStyle = plus;
        pen.fillRect(left + k * cell, top + q * cell, cell - (cell > 6), cell - (cell > 6));
      }
    }
    pen.globalAlpha = 1;
    pen.strokeStyle = colour("--rule");
    pen.strokeRect(left - 0.5, top - 0.5, count * cell + 1, count * cell + 1);
    if (this.at) {
      pen.strokeStyle = colour("--ink");
      pen.strokeRect(left + this.at[1] * cell - 0.5, top + this.at[0] * cell - 0.5, cell, cell);
    }
  }

  drawNames(pen, names, { cell, step, left, top }) {
    names.forEach((name, i) => {
      const near = this.at;
      if (i % step && !(near && near.includes(i))) return;
      pen.fillStyle = colour(near && near[0] === i ? "--ink" : "--muted");
      pen.textAlign = "right";
      pen.fillText(name, left - 6, top + (i + 0.5) * cell);
      pen.save();
      pen.fillStyle = colour(near && near[1] === i ? "--ink" : "--muted");
      pen.translate(left + (i + 0.5) * cell, top - 6);
      pen.rotate(-Math.PI / 2);
      pen.textAlign = "left";
      pen.fillText(name, 0, 0);
      pen.restore();
    });
  }

  under(event) {
    const { left, top, cell, count } = this.size;
    const box = this.canvas.getBoundingClientRect();
    const k = Math.floor((event.clientX - box.left - left) / cell);
    const q = Math.floor((event.clientY - box.top - top) / cell);
    return q >= 0 && k >= 0 && q < count && k < count ? [q, k] : null;
  }

  point(place) {
    if (!place || String(place) === String(this.at)) return;
    this.at = place;
    this.draw();
    this.onpoint(...place);
  }

  key(event, onpick) {
    const last = this.tokens.length - 1;
    const [q, k] = this.at ?? [last, last];
    const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    if (event.key === "Enter") return onpick(q, k);
    if (!(event.key in steps)) return;
    event.preventDefault();
    const clamp = (value) => Math.max(0, Math.min(last, value));
    const [down, right] = steps[event.key];
    this.point(this.at ? [clamp(q + down), clamp(k + right)] : [last, last]);
  }
}

// A small picture of a pattern in 256 steps, in base64.
export function thumbnail(bytes, count) {
  const canvas = el("canvas", { width: count, height: count, "aria-hidden": "true" });
  const pen = canvas.getContext("2d");
  const image = pen.createImageData(count, count);
  const steps = atob(bytes);
  const [red, green, blue] = colour("--picture")
    .match(/[0-9a-f]{2}/gi)
    .map((part) => parseInt(part, 16));
  const opaque = new Uint32Array(image.data.buffer).fill(
    new Uint32Array(new Uint8Array([red, green, blue, 0]).buffer)[0],
  );
  for (let i = 0; i < opaque.length; i++) image.data[4 * i + 3] = steps.charCodeAt(i);
  pen.putImageData(image, 0, 0);
  return canvas;
}
