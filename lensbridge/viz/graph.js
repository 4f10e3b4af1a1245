// Makes the circuit graphs of a page answer to pointer and keyboard. It defines nothing outside
// itself: each copy in a page starts the graphs that no other copy has started.
(() => {
  "use strict";
  const SVG = "http://www.w3.org/2000/svg";

  class Graph {
    constructor(root) {
      this.root = root;
      this.tip = root.querySelector(".lb-gr-tip");
      this.told = root.querySelector(".lb-gr-told");
      this.nodes = [...root.querySelectorAll(".lb-gr-node")];
      this.edges = [...root.querySelectorAll(".lb-gr-edge")].map((path) => this.edge(path));
      this.edges.sort((a, b) => a.rank - b.rank);
      this.shown = this.edges.length;
      this.chosen = null;
      this.nodes.forEach((node) => this.startNode(node));
      if (this.edges.length > 1) this.startSlider();
      root.addEventListener("keydown", (event) => {
        if (event.key === "Escape" && this.chosen !== null) this.choose(this.chosen);
      });
    }

    // An edge, under a wider path that can be hit, with its text in the page's own tip.
    edge(path) {
      const title = path.querySelector("title"), told = title.textContent;
      title.remove();
      const hit = document.createElementNS(SVG, "path");
      hit.setAttribute("d", path.getAttribute("d"));
      hit.setAttribute("class", "lb-gr-hit");
      path.after(hit);
      hit.addEventListener("pointermove", (event) => this.show(event, told));
      hit.addEventListener("pointerleave", () => (this.tip.hidden = true));
      const { from, to, rank } = path.dataset;
      return { path, hit, told, from, to, rank: Number(rank) };
    }

    show(event, told) {
      this.tip.textContent = told;
      this.tip.hidden = false;
      const own = this.root.getBoundingClientRect();
      const left = Math.min(event.clientX - own.left + 12, own.width - this.tip.offsetWidth - 2);
      this.tip.style.left = `${Math.max(0, left)}px`;
      this.tip.style.top = `${event.clientY - own.top + 14}px`;
    }

    startNode(node) {
      node.setAttribute("tabindex", "0");
      node.setAttribute("role", "button");
      node.setAttribute("aria-pressed", "false");
      node.setAttribute("aria-label", `${node.dataset.name}: follow its edges`);
      node.addEventListener("click", () => this.choose(node.dataset.node));
      node.addEventListener("keydown", (event) => {
        if (event.key !== "Enter" && event.key !== " ") return;
        event.preventDefault();
        this.choose(node.dataset.node);
      });
    }

    startSlider() {
      const label = document.createElement("label"), count = document.createElement("span");
      const input = document.createElement("input");
      Object.assign(input, { type: "range", min: 1, max: this.edges.length, value: this.edges.length });
      input.setAttribute("aria-label", "How many of the largest edges are shown");
      label.append(input, count);
      this.root.querySelector(".lb-gr-tools").append(label);
      const say = () => {
        this.shown = Number(input.value);
        count.textContent = `the ${this.shown} largest of ${this.edges.length} edges`;
        this.paint();
      };
      input.addEventListener("input", say);
      say();
    }

    choose(node) {
      this.chosen = this.chosen === node ? null : node;
      this.paint();
    }

    // Shows the largest edges, and of these the chosen node's stronger than the others.
    paint() {
      const kept = this.edges.filter((edge) => edge.rank < this.shown);
      const near = kept.filter((edge) => [edge.from, edge.to].includes(this.chosen));
      this.edges.forEach((edge) => {
        const away = edge.rank >= this.shown;
        [edge.path, edge.hit].forEach((path) => path.classList.toggle("lb-gr-away", away));
        edge.path.classList.toggle("lb-gr-near", near.includes(edge));
        edge.path.classList.toggle("lb-gr-dim", this.chosen !== null && !near.includes(edge));
      });
      const ends = (some) => new Set(some.flatMap((edge) => [edge.from, edge.to]));
      const inside = this.chosen === null ? ends(kept) : ends(near).add(this.chosen);
      this.nodes.forEach((node) => {
        const mine = node.dataset.node === this.chosen;
        node.classList.toggle("lb-gr-dim", this.edges.length > 0 && !inside.has(node.dataset.node));
        node.toggleAttribute("data-chosen", mine);
        node.setAttribute("aria-pressed", String(mine));
      });
      this.tell(near);
    }

    tell(near) {
      this.told.replaceChildren();
      if (this.chosen === null) return;
      const name = this.nodes.find((node) => node.dataset.node === this.chosen).dataset.name;
      const list = document.createElement("ul");
      near.forEach((edge) => {
        const item = document.createElement("li");
        item.textContent = edge.told;
        list.append(item);
      });
      this.told.append(`${name}: ${near.length} edges are shown`, list);
    }
  }

  document.querySelectorAll("[data-lb-graph]:not([data-lb-ready])").forEach((root) => {
    root.dataset.lbReady = "";
    new Graph(root);
  });
})();
