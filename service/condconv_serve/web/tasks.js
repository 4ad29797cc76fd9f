// What is asked about an image, and said about its answer, by the task of the chosen model.

import { count, percent } from "./dom.js";
import { asked, shownOf, thresholds } from "./thresholds.js";

const TOP = 50;

export const CLASSIFICATION = {
  path: "routing",
  query: (model) => ({ top_k: Math.min(TOP, model.num_classes ?? TOP) }),
  running: "classifying",
  begun: "being classified",
  drop: "Drop to classify",
  footer: "Probabilities are the softmax over all classes.",
  title: ({ classes }) => classes[0].label,
  said: ({ classes: [best] }) => `${best.label} ${percent(best.probability)}`,
  announced: ({ classes: [best] }) => `${best.label}, ${percent(best.probability)}`,
};

export const DETECTION = {
  path: "routing", // answers as `/detect` does, and says more about the routing
  query: () => asked(thresholds()),
  running: "looking for objects",
  begun: "being searched for objects",
  drop: "Drop to find objects",
  footer: "A score is how sure the model is of one object, from 0 to 1.",
  title: (item) => found(item),
  said: (item) => found(item),
  announced: (item) => [found(item), ...kindsOf(shownOf(item)).map(({ label, objects }) => `${label} ${objects}`)].join(", "),
};

const BY_NAME = { classification: CLASSIFICATION, detection: DETECTION };

/** The task of a model as `GET /models` describes it. */
export const taskOf = (model) => BY_NAME[model?.task] ?? CLASSIFICATION;

function found(item) {
  const { length } = shownOf(item);
  return length ? count(length, "object") : "nothing found";
}

/** The classes of some objects, each with how many there are, the most frequent first. */
export function kindsOf(objects) {
  const kinds = new Map();
  for (const { index, label } of objects) {
    if (!kinds.has(index)) kinds.set(index, { index, label, objects: 0 });
    kinds.get(index).objects += 1;
  }
  return [...kinds.values()].toSorted((a, b) => b.objects - a.objects || a.index - b.index);
}
