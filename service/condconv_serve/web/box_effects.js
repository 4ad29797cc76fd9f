// What it does to a detector's answer if an expert is switched off: which boxes vanish, which are new, and how the scores
// change.

import { drawBox } from "./boxes.js";
import { classColours } from "./colours.js";
import { count, make, signed } from "./dom.js";
import { thresholds } from "./thresholds.js";

const MOST = 500; // boxes that are compared: an ablation holds so many for each of some 65 experts
const NAMED = 4; // boxes of each kind that are named; the picture shows all

/** What one variant of `POST /routing/ablation` did. */
const effectOf = ({ kept, lost, new: found, similarity }, { detections: before }) => ({
  before,
  kept: kept.map((one) => ({ ...before[one.detection], difference: one.difference })),
  lost: lost.map((one) => ({ ...before[one.detection], left: one.score })),
  found,
  change: 1 - similarity,
});

const otherBoxes = ({ lost, found }) => lost.length + found.length;

function said({ before, lost, found }) {
  const all = count(before.length, "box", "boxes");
  const one = before.length === 1;
  const old = !before.length
    ? "There was no box before"
    : lost.length
      ? one ? "The box vanishes" : `${lost.length} of ${all} ${lost.length === 1 ? "vanishes" : "vanish"}`
      : one ? "The box stays" : `All ${all} stay`;
  return `${old}${found.length ? `, ${found.length} ${found.length === 1 ? "is" : "are"} new` : ""}.`;
}

function note(known, all) {
  const what = "How much the scores of the boxes change without an expert: 0 if none does, 1 if nothing is left.";
  if (!known.length) return `${what} Choose single ones, or try them all.`;
  const others = known.filter(otherBoxes).length;
  return `${what} ${known.length} of ${all} tried; ${others || "none"} would take boxes away or add some.`;
}

/** The score that stays and changes most. */
function largestChange({ kept }) {
  const [most] = kept.toSorted((a, b) => Math.abs(b.difference) - Math.abs(a.difference));
  return most && Number(most.difference.toFixed(2)) ? `The largest change of another score: ${most.label} ${most.score.toFixed(2)}, ${signed(most.difference, 2)}.` : "";
}

function outcome(title, effect, item) {
  const change = largestChange(effect);
  return make(
    "div",
    { class: "outcome" },
    make("h4", {}, title),
    picture(effect, item),
    make("p", { class: otherBoxes(effect) ? "note strong" : "note" }, said(effect)),
    list(effect.lost, "lost", ({ label, score, left }) => `${label} ${score.toFixed(2)}: ${left.toFixed(2)} is left`),
    list(effect.found, "new", ({ label, score }) => `new: ${label} ${score.toFixed(2)}`),
    change ? make("p", { class: "note" }, change) : null,
  );
}

/** The image with its boxes: those that vanish are dashed, new ones are filled. */
function picture(effect, item) {
  const { kept, lost, found } = effect;
  const colours = classColours([...item.detections, ...found].map(({ index }) => index));
  const photo = make("img", { src: item.url, alt: "" });
  photo.addEventListener("error", () => photo.remove());
  return make(
    "div",
    { class: "small-stage", role: "img", "aria-label": `${item.name}: ${said(effect)}`, style: { "--width": item.width, "--height": item.height } },
    photo,
    ...Object.entries({ kept, lost, new: found }).flatMap(([kind, objects]) => objects.map((object) => drawBox(object, colours.get(object.index), { class: kind }))),
  );
}

const list = (objects, kind, words) =>
  objects.length
    ? make(
        "ul",
        { class: `changed-boxes ${kind}` },
        ...objects.slice(0, NAMED).map((object) => make("li", {}, words(object))),
        objects.length > NAMED ? make("li", {}, `and ${objects.length - NAMED} more`) : null,
      )
    : null;

export const BOX_EFFECTS = {
  query() {
    const chosen = thresholds();
    return { ...chosen, max_detections: Math.min(chosen.max_detections, MOST) };
  },
  effectOf,
  scale: "sequential",
  legend: ["0", "0.25", "1"],
  value: ({ change }) => change,
  place: Math.sqrt, // as for all effects: small ones would hardly be seen if it were even
  text: (value) => value.toFixed(2),
  describe: (effect) => `scores change by ${effect.change.toFixed(3)}. ${said(effect)}`,
  note,
  outcome,
  announced: said,
};
