// What it does to a classifier's answer if an expert is switched off: to the probability of its first class.

import { make, percent, points, signed } from "./dom.js";

// One scale for all differences, of weights and of probabilities, so that a colour always means the same. Small ones
// would hardly be seen if it were even.
export const place = (difference) => 0.5 + (Math.sign(difference) * Math.sqrt(Math.abs(difference))) / 2;

/** What one variant of `POST /routing/ablation` did. */
const effectOf = ({ probability, difference, top, same_top: sameTop }, answer) => ({ before: answer.top, probability, difference, top, sameTop });

const changes = ({ sameTop }) => !sameTop;

function note(known, all) {
  if (!known.length) return "Change of the top class's probability without an expert, in percentage points. Choose single ones, or try them all.";
  const changed = known.filter(changes).length;
  return `Change of the probability of ${known[0].before.label} without an expert, in percentage points. ${known.length} of ${all} tried; ${changed || "none"} would change the answer.`;
}

function outcome(title, { before, probability, difference, top, sameTop }) {
  const line = (label, value, share, kind) =>
    make(
      "li",
      { class: kind },
      make("span", { class: "label" }, label),
      make("span", { class: "value" }, value),
      make("span", { class: "bar", "aria-hidden": "true", style: { "--share": share } }),
    );
  return make(
    "div",
    { class: "outcome" },
    make("h4", {}, title),
    make(
      "ul",
      { class: "classes small" },
      line(`${before.label}, as it is`, percent(before.probability), before.probability, "before"),
      line(before.label, percent(probability), probability, "after"),
      sameTop ? null : line(`now first: ${top.label}`, percent(top.probability), top.probability, "changed"),
    ),
    make("p", { class: sameTop ? "note" : "note strong" }, `${points(difference)}. ${sameTop ? "The answer stays the same." : "The answer changes."}`),
  );
}

export const CLASS_EFFECTS = {
  query: () => ({}), // the ablation's own parameters
  effectOf,
  scale: "diverging",
  legend: ["\u2212100", "\u221225", "0", "+25", "+100"],
  value: ({ difference }) => difference,
  place,
  text: (value) => signed(value * 100, 1),
  describe: ({ before, difference, top, sameTop }) => `${before.label} ${points(difference)}${sameTop ? "" : `, then ${top.label}`}`,
  note,
  outcome,
  announced: ({ before, probability, difference, top, sameTop }) =>
    `${before.label} ${percent(probability)}, ${points(difference)}${sameTop ? ", still the answer" : `; the answer would be ${top.label}`}`,
};
