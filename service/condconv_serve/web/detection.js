// The answer of a detector: what was found, the boxes over the photo, and which of them are shown.

import { Boxes } from "./boxes.js";
import { classColours } from "./colours.js";
import { byId, make } from "./dom.js";
import { isAnswered } from "./images.js";
import { DETECTION, kindsOf } from "./tasks.js";
import { shownOf, thresholds } from "./thresholds.js";

const KINDS = 8; // classes that are counted; the list has all
const ENLARGED = 1.25; // so much larger must a photo become for a button that does it

export class Detection {
  #boxes = new Boxes();
  #frame = byId("frame");
  #enlarge = byId("enlarge");
  #onLower;
  #size = null;

  /** `onLower(score)` is called to lower the threshold, so that a box of this score is shown. */
  constructor({ onLower }) {
    this.#onLower = onLower;
    this.#enlarge.addEventListener("click", () => this.#setLarge(!this.#isLarge));
    byId("photo").addEventListener("load", ({ target }) => this.#size ?? this.#resize(target.naturalWidth, target.naturalHeight));
    new ResizeObserver(() => this.#offerLarge()).observe(this.#frame);
  }

  /** Show an image's objects; nothing if it isn't a detector's. */
  show(item) {
    const detects = item?.task === DETECTION;
    byId("results").classList.toggle("detection", detects);
    const done = detects && isAnswered(item);
    byId("objects-box").hidden = !done;
    byId("thresholds").hidden = !detects || (!done && Boolean(item.problem));
    byId("box-detail").hidden = !done;
    this.#size = done ? [item.width, item.height] : null;
    if (done) this.#resize(item.width, item.height);
    if (!detects || !done) this.#setLarge(false);
    if (!done) return this.#boxes.show([], { all: [] });
    const objects = shownOf(item);
    this.#boxes.show(objects, { all: item.detections });
    this.#drawKinds(objects, item.detections);
    byId("objects-note").replaceChildren(...this.#note(item, objects));
  }

  #drawKinds(objects, all) {
    const colours = classColours(all.map(({ index }) => index));
    const kinds = kindsOf(objects);
    byId("kinds").hidden = kinds.length < 2;
    byId("kinds").replaceChildren(
      ...kinds.slice(0, KINDS).map(({ index, label, objects: many }) =>
        make("li", { style: { "--colour": colours.get(index).background } }, make("span", { class: "swatch", "aria-hidden": "true" }), `${label} `, make("span", { class: "soft" }, String(many))),
      ),
      ...(kinds.length > KINDS ? [make("li", { class: "soft" }, `and ${kinds.length - KINDS} more`)] : []),
    );
  }

  /** What else there is to say: why nothing is shown, or that there is more. */
  #note({ detections, asked }, objects) {
    const { score_threshold: threshold, max_detections: most } = thresholds();
    const enough = detections.filter(({ score }) => score > threshold).length;
    const limited = detections.length === asked.max_detections;
    if (enough > most) return [`These are the best ${most} of ${enough}${limited ? " or more" : ""}.`];
    if (enough === most && limited) return [`These are the best ${most}; there may be more.`];
    if (objects.length) return [];
    const [best] = detections;
    const none = `No box has a score above ${threshold.toFixed(2)}`;
    if (!best) return [asked.score_threshold < threshold ? `${none}, nor even above ${asked.score_threshold}.` : `${none}.`];
    return [
      `${none}. The best one is ${best.label}, ${best.score.toFixed(2)}. `,
      make("button", { type: "button", class: "quiet", on: { click: () => this.#onLower(best.score) } }, "Show it"),
    ];
  }

  #resize(width, height) {
    byId("stage").style.setProperty("--width", width);
    byId("stage").style.setProperty("--height", height);
    this.#offerLarge();
  }

  get #isLarge() {
    return this.#frame.classList.contains("large");
  }

  #setLarge(large) {
    this.#frame.classList.toggle("large", large);
    // What scrolls must be reached with the keyboard.
    for (const [name, value] of Object.entries({ role: "region", "aria-label": "The image in full size", tabindex: "0" }))
      large ? this.#frame.setAttribute(name, value) : this.#frame.removeAttribute(name);
    this.#enlarge.setAttribute("aria-pressed", String(large));
    this.#offerLarge();
  }

  /** Offer the photo's full size where that is larger. */
  #offerLarge() {
    const width = this.#size?.[0] ?? 0;
    this.#enlarge.hidden = !this.#isLarge && width < ENLARGED * byId("stage").getBoundingClientRect().width;
  }
}
