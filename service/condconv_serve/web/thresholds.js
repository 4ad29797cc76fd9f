// Which boxes of a detector are shown: the lowest score, how much two boxes may overlap, and how many.
//
// Of the boxes that an answer keeps at a low threshold, those above a higher one are just what that one keeps, since a
// box only ever gives way to boxes with higher scores. So more is asked for than is shown, and raising the threshold
// needs no other answer.

import { byId } from "./dom.js";
import { term } from "./tooltip.js";

const DEFAULTS = { score_threshold: 0.5, iou_threshold: 0.5, max_detections: 100 }; // as the API has them
const [LOW_SCORE, MANY] = [0.05, 300];
const MEANINGS = {
  score_threshold: ["Score above", "only boxes with a higher score are shown. A score is how sure the model is, from 0 to 1."],
  iou_threshold: [
    "Overlap up to",
    "of two boxes of the same class that overlap by more, the one with the lower score is left out. 0 is no overlap, 1 is the same box (intersection over union).",
  ],
  max_detections: ["At most", "the most boxes that are shown: those with the highest scores."],
};

let chosen = { ...DEFAULTS };

/** What is chosen: `score_threshold`, `iou_threshold`, `max_detections`. */
export const thresholds = () => chosen;

/** What to ask for, to be able to show what is chosen. */
export const asked = ({ score_threshold: score, iou_threshold, max_detections: most }) => ({
  score_threshold: Math.min(score, LOW_SCORE),
  iou_threshold,
  max_detections: Math.max(most, MANY),
});

/** Whether an answer holds all that is to be shown. */
export const suffices = ({ asked: given }) =>
  given.score_threshold <= chosen.score_threshold && given.iou_threshold === chosen.iou_threshold && given.max_detections >= chosen.max_detections;

/** Those of some objects, highest score first, that are to be shown. */
export const above = (objects) => objects.filter(({ score }) => score > chosen.score_threshold).slice(0, chosen.max_detections);

/** The objects of an image's answer that are to be shown. */
export const shownOf = ({ detections }) => above(detections);

export class Thresholds {
  #fields = Object.fromEntries(Object.keys(DEFAULTS).map((name) => [name, byId(name)]));
  #error = byId("thresholds-error");
  #reset = byId("thresholds-reset");
  #onChange;

  /** `onChange(settled)` is called when something else is chosen; while a slider is being moved it isn't settled. */
  constructor({ onChange }) {
    this.#onChange = onChange;
    for (const [name, field] of Object.entries(this.#fields)) {
      byId(`${name}-term`).replaceChildren(term(...MEANINGS[name]));
      field.addEventListener("input", () => this.#take(name, false));
      field.addEventListener("change", () => this.#take(name, true));
    }
    this.#reset.addEventListener("click", () => {
      this.#choose(DEFAULTS);
      this.#fields.score_threshold.focus();
    });
    this.#show();
  }

  /** Lower the threshold as little as it takes to show a box of this score. */
  lowerTo(score) {
    const steps = Math.round(1 / this.#fields.score_threshold.step);
    this.#choose({ score_threshold: Math.max(0, Math.ceil(score * steps - 1) / steps) });
    this.#fields.score_threshold.focus();
  }

  #choose(some) {
    chosen = { ...chosen, ...some };
    this.#show();
    this.#onChange(true);
  }

  #take(name, settled) {
    const field = this.#fields[name];
    const valid = field.validity.valid && field.value !== "";
    field.setAttribute("aria-invalid", String(!valid));
    if (settled || valid) this.#error.textContent = valid ? "" : `Give a whole number from ${field.min} to ${field.max}.`;
    if (!valid) return;
    chosen = { ...chosen, [name]: Number(field.value) };
    this.#show({ except: name });
    this.#onChange(settled);
  }

  #show({ except = null } = {}) {
    for (const [name, field] of Object.entries(this.#fields)) {
      if (name !== except) {
        field.value = chosen[name];
        field.setAttribute("aria-invalid", "false");
      }
      const output = byId(`${name}-value`);
      if (output) output.textContent = chosen[name].toFixed(2);
    }
    if (!except) this.#error.textContent = "";
    this.#reset.hidden = Object.entries(DEFAULTS).every(([name, value]) => chosen[name] === value);
  }
}
