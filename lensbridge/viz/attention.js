// Makes the attention pictures of a page answer to pointer and keyboard. It defines nothing outside
// itself: each copy in a page starts the pictures that no other copy has started.
(() => {
  "use strict";
  const MISSING = -32768, STRONG = 0.88, PLUS = [36, 100, 180], MINUS = [185, 61, 10];

  // The numbers, [head, query, key], as whole multiples of the decimal step.
  const unpacked = async (text) => {
    const bytes = Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    const both = new Uint8Array(await new Response(stream).arrayBuffer());
    const count = both.length / 2, numbers = new Int16Array(count);
    for (let i = 0; i < count; i++) numbers[i] = both[i] | (both[count + i] << 8);
    return numbers;
  };

  class Attention {
    constructor(root, numbers) {
      const given = root.dataset;
      this.root = root;
      this.numbers = numbers;
      this.digits = Number(given.digits);
      this.limit = Number(given.limit);
      this.heads = JSON.parse(given.heads);
      this.labels = { queries: JSON.parse(given.queries), keys: JSON.parse(given.keys) };
      this.head = Number(given.chosen);
      this.tip = root.querySelector(".lb-at-tip");
      this.told = root.querySelector(".lb-at-told");
      this.map = root.querySelector(".lb-at-map");
      this.image = this.map.querySelector("image");
      this.cursor = this.map.querySelector(".lb-at-cursor");
      this.texts = [...root.querySelectorAll(".lb-at-text")];
      this.single = this.texts.length === 1;
      this.cell = [this.labels.queries.length - 1, 0];
      this.from = { side: "queries", at: this.labels.queries.length - 1 };
      this.held = null;
      this.startHeads();
      this.startMap();
      this.texts.forEach((text) => this.startText(text));
      if (this.single) this.startTurn();
      this.colour();
    }

    value(query, key) {
      const { queries, keys } = this.labels;
      const step = this.numbers[(this.head * queries.length + query) * keys.length + key];
      return step === MISSING ? null : step / 10 ** this.digits;
    }

    written(value) {
      return value === null ? "none" : value.toFixed(Math.max(0, this.digits)).replace("-", "\u2212");
    }

    // Position and token.
    named(side, at) {
      return this.labels[side][at];
    }

    // --- the heads

    startHeads() {
      this.buttons = [...this.root.querySelectorAll(".lb-at-heads button")];
      this.buttons.forEach((button, i) => {
        button.tabIndex = i === this.head ? 0 : -1;
        button.addEventListener("click", () => this.choose(i));
        button.addEventListener("keydown", (event) => {
          const to = moved(event, i, this.buttons.length);
          if (to === null) return;
          this.choose(to);
          this.buttons[to].focus();
        });
      });
    }

    choose(head) {
      this.buttons.forEach((button, i) => {
        button.setAttribute("aria-pressed", String(i === head));
        button.tabIndex = i === head ? 0 : -1;
      });
      this.head = head;
      this.map.querySelector("title").textContent =
        `Attention of head ${this.heads[head]}: queries in rows, keys in columns`;
      this.draw();
      this.colour();
    }

    draw() {
      const rows = this.labels.queries.length, columns = this.labels.keys.length;
      const canvas = document.createElement("canvas");
      canvas.width = columns;
      canvas.height = rows;
      const context = canvas.getContext("2d"), pixels = context.createImageData(columns, rows);
      for (let query = 0, at = 0; query < rows; query++) {
        for (let key = 0; key < columns; key++, at += 4) {
          const value = this.value(query, key) ?? 0;
          pixels.data.set(value < 0 ? MINUS : PLUS, at);
          pixels.data[at + 3] = Math.round(255 * this.strength(value));
        }
      }
      context.putImageData(pixels, 0, 0);
      this.image.setAttribute("href", canvas.toDataURL());
    }

    strength(value) {
      return Math.min(1, Math.abs(value) / this.limit);
    }

    // --- the grid

    startMap() {
      const map = this.map;
      map.setAttribute("tabindex", "0");
      map.setAttribute("role", "application");
      map.setAttribute("aria-label", "Attention weights. Arrow keys go from cell to cell.");
      map.addEventListener("pointermove", (event) => {
        const cell = this.cellAt(event);
        if (cell) this.point(...cell);
        else this.leave();
      });
      map.addEventListener("pointerleave", () => this.leave());
      map.addEventListener("click", (event) => {
        const cell = this.cellAt(event);
        if (cell) this.hold({ side: "queries", at: cell[0] });
      });
      map.addEventListener("blur", () => this.leave());
      map.addEventListener("focus", () => {
        if (map.matches(":focus-visible")) this.point(...this.cell);
      });
      map.addEventListener("keydown", (event) => this.walk(event));
    }

    cellAt(event) {
      const box = this.image.getBoundingClientRect();
      const across = (event.clientX - box.left) / box.width;
      const down = (event.clientY - box.top) / box.height;
      if (across < 0 || across >= 1 || down < 0 || down >= 1) return null;
      return [Math.floor(down * this.labels.queries.length), Math.floor(across * this.labels.keys.length)];
    }

    walk(event) {
      const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (event.key === "Escape") this.leave();
      if (!step) return;
      event.preventDefault();
      event.stopPropagation();
      const within = (at, count) => Math.max(0, Math.min(count - 1, at));
      this.point(
        within(this.cell[0] + step[0], this.labels.queries.length),
        within(this.cell[1] + step[1], this.labels.keys.length),
      );
    }

    point(query, key) {
      this.cell = [query, key];
      const box = this.image.getBBox();
      const wide = box.width / this.labels.keys.length, high = box.height / this.labels.queries.length;
      const place = { x: box.x + key * wide, y: box.y + query * high, width: wide, height: high };
      Object.entries(place).forEach(([name, size]) => this.cursor.setAttribute(name, size));
      this.cursor.setAttribute("visibility", "visible");
      this.show(this.cursor.getBoundingClientRect(), query, key);
      if (!this.held) this.from = { side: "queries", at: query };
      this.colour();
    }

    show(box, query, key) {
      const weight = this.written(this.value(query, key));
      this.tip.textContent =
        `head ${this.heads[this.head]}: from ${this.named("queries", query)} to ${this.named("keys", key)}: ${weight}`;
      this.tip.hidden = false;
      const own = this.root.getBoundingClientRect();
      const left = Math.min(box.right - own.left + 8, own.width - this.tip.offsetWidth - 2);
      const under = box.bottom - own.top + 8;
      const above = box.top - own.top - this.tip.offsetHeight - 8;
      this.tip.style.left = `${Math.max(0, left)}px`;
      this.tip.style.top = `${under + this.tip.offsetHeight > own.height && above > 0 ? above : under}px`;
    }

    leave() {
      this.cursor.setAttribute("visibility", "hidden");
      this.tip.hidden = true;
      if (this.held) this.from = this.held;
      this.colour();
    }

    // --- the text

    startText(text) {
      const tokens = [...text.querySelectorAll(".lb-at-token")];
      tokens.forEach((token, i) => {
        token.tabIndex = i ? -1 : 0;
        token.setAttribute("role", "button");
        token.addEventListener("pointerenter", () => this.over(text, token, i));
        token.addEventListener("pointerleave", () => this.leave());
        token.addEventListener("focus", () => token.matches(":focus-visible") && this.over(text, token, i));
        token.addEventListener("blur", () => this.leave());
        token.addEventListener("click", () => this.hold(this.start(text, i)));
        token.addEventListener("keydown", (event) => {
          const to = moved(event, i, tokens.length);
          if (to !== null) {
            token.tabIndex = -1;
            tokens[to].tabIndex = 0;
            tokens[to].focus();
          } else if (event.key === "Enter" || event.key === " ") {
            event.preventDefault();
            this.hold(this.start(text, i));
          }
        });
      });
    }

    // Where attention starts if a token is chosen: at a query, or at a key.
    start(text, at) {
      if (!this.single) return { side: text.dataset.side, at };
      return { side: this.turn.checked ? "keys" : "queries", at };
    }

    over(text, token, at) {
      if (this.held) {
        const [query, key] = this.held.side === "queries" ? [this.held.at, at] : [at, this.held.at];
        const there = this.single || text.dataset.side !== this.held.side;
        if (there) this.show(token.getBoundingClientRect(), query, key);
        return;
      }
      this.from = this.start(text, at);
      this.colour();
    }

    hold(start) {
      const same = this.held && this.held.side === start.side && this.held.at === start.at;
      this.held = same ? null : start;
      this.from = start;
      this.tip.hidden = true;
      this.colour();
    }

    startTurn() {
      const label = document.createElement("label");
      label.className = "lb-at-turn";
      this.turn = document.createElement("input");
      this.turn.type = "checkbox";
      label.append(this.turn, " show which tokens attend to it instead");
      this.turn.addEventListener("change", () => {
        this.held = this.held && { ...this.held, side: this.turn.checked ? "keys" : "queries" };
        this.from = { ...this.from, side: this.turn.checked ? "keys" : "queries" };
        this.colour();
      });
      this.told.parentElement.append(label);
    }

    summary(side, at, other) {
      const values = this.labels[other].map((_, i) => [side === "queries" ? this.value(at, i) : this.value(i, at), i]);
      const largest = values.filter(([value]) => value).sort((a, b) => b[0] - a[0]).slice(0, 3);
      const told = largest.map(([value, i]) => `${this.named(other, i)} ${this.written(value)}`).join(", ");
      if (side === "queries") return `From ${this.named(side, at)}, most to: ${told || "none"}`;
      return `To ${this.named(side, at)}, most from: ${told || "none"}`;
    }

    // The tokens in the colours of the weights from, or to, the token at which attention starts.
    colour() {
      const { side, at } = this.from, other = side === "queries" ? "keys" : "queries";
      this.told.textContent = this.summary(side, at, other) + (this.held ? " (held)" : "");
      this.texts.forEach((text) => {
        const paints = this.single || text.dataset.side === other;
        const starts = this.single || text.dataset.side === side;
        text.querySelectorAll(".lb-at-token").forEach((token, i) => {
          const value = !paints ? 0 : side === "queries" ? this.value(at, i) : this.value(i, at);
          const strength = this.strength(value ?? 0);
          const [red, green, blue] = value < 0 ? MINUS : PLUS;
          token.style.background = `rgba(${red},${green},${blue},${strength})`;
          token.classList.toggle("lb-at-strong", strength >= STRONG);
          token.toggleAttribute("data-chosen", starts && i === at);
          token.setAttribute("aria-pressed", String(Boolean(this.held) && starts && i === at));
          const weight = paints ? `, weight ${this.written(value)}` : "";
          const name = this.labels[this.single ? "queries" : text.dataset.side][i];
          token.setAttribute("aria-label", `${name}${weight}`);
        });
      });
    }
  }

  // Where an arrow key leads among some buttons; null for other keys.
  const moved = (event, at, count) => {
    const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
    const ends = { Home: 0, End: count - 1 };
    if (!(event.key in steps) && !(event.key in ends)) return null;
    event.preventDefault();
    event.stopPropagation();
    return event.key in ends ? ends[event.key] : (at + steps[event.key] + count) % count;
  };

  document.querySelectorAll("[data-lb-attention]:not([data-lb-ready])").forEach(async (root) => {
    root.dataset.lbReady = "";
    try {
      new Attention(root, await unpacked(root.dataset.lbAttention));
    } catch (error) {
      delete root.dataset.lbReady;
      console.warn("lensbridge: the attention picture stays still:", error);
    }
  });
})();
