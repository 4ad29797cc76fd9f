// The boxes of a detector over its photo, and the list beside it. What is pointed at in one is marked in both; each is
// one stop for the keyboard, in which arrow keys move.

import { classColours } from "./colours.js";
import { byId, make } from "./dom.js";
import { Labels } from "./labels.js";

const MANY = 40; // boxes, from which on they have thin lines

const share = (part) => `${part * 100}%`;

/** A box over a photo, as an element. */
export const drawBox = ({ box_normalized: { xmin, ymin, xmax, ymax } }, { background, text }, properties = {}) =>
  make("span", {
    ...properties,
    class: `box ${properties.class ?? ""}`,
    style: {
      left: share(xmin),
      top: share(ymin),
      width: share(xmax - xmin),
      height: share(ymax - ymin),
      "--colour": background,
      "--on-colour": text,
      ...properties.style,
    },
  });

const area = ({ box_normalized: { xmin, ymin, xmax, ymax } }) => (xmax - xmin) * (ymax - ymin);

/** How large an object is, and where its upper left corner is, in pixels of the photo. */
const placeOf = ({ box: { xmin, ymin, xmax, ymax } }) =>
  `${Math.round(xmax - xmin)} \u00d7 ${Math.round(ymax - ymin)} pixels at ${Math.round(xmin)}, ${Math.round(ymin)}`;

export class Boxes {
  #layer = byId("boxes");
  #list = byId("objects");
  #labels = new Labels({ layer: byId("box-labels"), frame: byId("frame") });
  #detail = byId("box-detail");
  #shown = [];
  #objects = [];
  #at = 0;
  #chosen = null;
  #pointed = null;
  #marked = null;

  constructor() {
    for (const group of [this.#layer, this.#list]) {
      group.addEventListener("pointerover", ({ target }) => this.#point(numberOf(target), group));
      group.addEventListener("pointerleave", () => this.#point(null, group));
      group.addEventListener("focusin", ({ target }) => this.#choose(numberOf(target), group));
      group.addEventListener("focusout", () => this.#choose(null, group));
      group.addEventListener("keydown", (event) => this.#key(event, group));
    }
  }

  /** Show objects, the highest score first; `all` are those of the answer, which the colours are by. */
  show(objects, { all }) {
    if (objects.length === this.#objects.length && objects.every((one, i) => one === this.#objects[i])) return;
    this.#objects = objects;
    this.#chosen = this.#pointed = this.#marked = null;
    this.#at = 0;
    const colours = classColours(all.map(({ index }) => index));
    // Small boxes lie above large ones, so that each can be pointed at.
    const order = [...objects.keys()].toSorted((a, b) => area(objects[b]) - area(objects[a]));
    const levels = new Map(order.map((number, level) => [number, level]));
    this.#shown = objects.map((object, number) => {
      const colour = colours.get(object.index);
      const name = `${object.label}, score ${object.score.toFixed(2)}, ${placeOf(object)}`;
      const option = { role: "option", tabindex: number ? -1 : 0, "aria-selected": "false", "aria-label": name, "data-number": number };
      return {
        box: drawBox(object, colour, { ...option, style: { "z-index": levels.get(number) } }),
        label: make("span", { class: "box-label", style: { "--colour": colour.background, "--on-colour": colour.text } }, `${object.label} ${object.score.toFixed(2)}`),
        entry: entry(object, colour, option),
      };
    });
    this.#layer.replaceChildren(...this.#shown.map(({ box }) => box));
    this.#list.replaceChildren(...this.#shown.map(({ entry }) => entry));
    this.#layer.parentElement.classList.toggle("many", objects.length > MANY);
    for (const group of [this.#layer, this.#list]) group.hidden = !objects.length;
    this.#labels.show(this.#shown.map(({ box, label }) => ({ box, label }))); // seen by now, so they can be measured
    this.#mark();
  }

  #point(number, group) {
    this.#pointed = number;
    this.#mark(group);
  }

  #choose(number, group) {
    this.#chosen = number;
    if (number !== null) this.#moveTo(number);
    this.#mark(group);
  }

  /** Mark what is pointed at, or else what has the focus, in both; bring it into view in the other one than `group`. */
  #mark(group = null) {
    const number = this.#pointed ?? this.#chosen;
    if (number !== this.#marked) {
      this.#light(this.#marked, false);
      this.#light(number, true);
      this.#marked = number;
    }
    const object = this.#objects[number];
    this.#detail.textContent = object ? `${object.label}: ${placeOf(object)}` : this.#objects.length ? "Point at a box to see what it is." : "";
    if (!object) return;
    if (group === this.#layer) showInside(this.#list, this.#shown[number].entry);
    else showInside(byId("frame"), this.#shown[number].box);
  }

  #light(number, lit) {
    const { box, label, entry } = this.#shown[number] ?? {};
    if (!box) return;
    this.#layer.parentElement.classList.toggle("lit", lit);
    for (const element of [box, label, entry]) element.classList.toggle("marked", lit);
    for (const element of [box, entry]) element.setAttribute("aria-selected", String(lit));
  }

  #moveTo(number) {
    for (const [which, stop] of [[this.#at, -1], [number, 0]]) {
      const { box, entry } = this.#shown[which];
      box.tabIndex = entry.tabIndex = stop;
    }
    this.#at = number;
  }

  #key(event, group) {
    const at = numberOf(event.target);
    if (at === null || event.altKey || event.ctrlKey || event.metaKey) return;
    if (event.key === "Escape") return this.#choose(null, group);
    const last = this.#shown.length - 1;
    const to = { ArrowUp: at - 1, ArrowLeft: at - 1, ArrowDown: at + 1, ArrowRight: at + 1, PageUp: at - 10, PageDown: at + 10, Home: 0, End: last }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    const { box, entry } = this.#shown[Math.min(Math.max(to, 0), last)];
    (group === this.#layer ? box : entry).focus();
  }
}

function numberOf(target) {
  const number = target.closest?.("[data-number]")?.dataset.number;
  return number === undefined ? null : Number(number);
}

const entry = ({ label, score }, { background }, option) =>
  make(
    "li",
    { ...option, style: { "--colour": background } },
    make("span", { class: "swatch", "aria-hidden": "true" }),
    make("span", { class: "label" }, label),
    make("span", { class: "bar", "aria-hidden": "true", style: { "--share": score } }),
    make("span", { class: "value" }, score.toFixed(2)),
  );

/** Scroll a container, and nothing around it, until an element in it is seen. */
function showInside(container, element) {
  const [outer, inner] = [container, element].map((one) => one.getBoundingClientRect());
  if (inner.top < outer.top || inner.height > outer.height) container.scrollTop += inner.top - outer.top;
  else if (inner.bottom > outer.bottom) container.scrollTop += inner.bottom - outer.bottom;
  if (inner.left < outer.left || inner.width > outer.width) container.scrollLeft += inner.left - outer.left;
  else if (inner.right > outer.right) container.scrollLeft += inner.right - outer.right;
}
