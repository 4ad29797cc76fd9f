// A small chart of the last minutes: a title, the newest figure in large, and lines.

import { make } from "./dom.js";

const NAMESPACE = "http://www.w3.org/2000/svg";
const [WIDTH, HEIGHT] = [240, 64];
const KEPT = 90; // moments

const drawn = (tag, attributes) => {
  const element = document.createElementNS(NAMESPACE, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
};

export class Chart {
  #moments = [];
  #figure = make("p", { class: "figure" });
  #detail = make("p", { class: "detail" });
  #svg = drawn("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" });
  #lines;
  #area;
  #title;
  #top = make("span", { class: "top-value" });

  /** Append a chart to `box`; `lines` of values share one axis, which starts at 0. */
  constructor(box, { title, lines = 1, least = 1, format }) {
    this.#title = title;
    this.least = least;
    this.format = format;
    this.#area = drawn("path", { class: "area" });
    this.#lines = Array.from({ length: lines }, (_, i) => drawn("path", { class: `line line-${i}` }));
    this.#svg.append(this.#area, ...this.#lines);
    box.append(make("article", { class: "chart" }, make("h3", {}, title), this.#figure, make("div", { class: "plot" }, this.#svg, this.#top), this.#detail));
    this.say("\u2013", "no figures yet");
  }

  /** Add a moment: a value per line, null where there is none. */
  add(values) {
    this.#moments.push(values);
    if (this.#moments.length > KEPT) this.#moments.shift();
    this.#draw();
  }

  /** Say the newest figure, and more about it. */
  say(figure, detail) {
    this.#figure.textContent = figure;
    this.#detail.textContent = detail;
    this.#svg.setAttribute("aria-label", `${this.#title}: ${figure}, ${detail}`);
  }

  #draw() {
    const known = this.#moments.flat().filter((value) => value !== null);
    const most = Math.max(this.least, ...known);
    this.#top.textContent = known.length ? this.format(most) : "";
    const x = (i) => WIDTH - (this.#moments.length - 1 - i) * (WIDTH / (KEPT - 1));
    const y = (value) => HEIGHT - 1 - (value / most) * (HEIGHT - 4);
    this.#lines.forEach((line, which) => {
      let path = "";
      let open = false;
      this.#moments.forEach((values, i) => {
        if (values[which] === null) open = false;
        else {
          // A moment alone becomes a dot: a line of no length, with round ends.
          path += `${open ? "L" : "M"}${x(i).toFixed(1)} ${y(values[which]).toFixed(1)}${open ? "" : "h0.01"}`;
          open = true;
        }
      });
      line.setAttribute("d", path);
      if (which > 0) return;
      const whole = this.#moments.map((values, i) => `${x(i).toFixed(1)} ${y(values[0] ?? 0).toFixed(1)}`);
      this.#area.setAttribute("d", whole.length > 1 ? `M${x(0).toFixed(1)} ${HEIGHT}L${whole.join("L")}L${WIDTH} ${HEIGHT}Z` : "");
    });
  }
}
