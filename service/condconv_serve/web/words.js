// What is said about one image's routing, in words for people who meet it for the first time.

import { count } from "./dom.js";
import { term } from "./tooltip.js";

export const ENTROPY = "how evenly a block's weights are spread over its experts. 0 if one expert has all the weight, 1 if all have the same.";

const SUMS_TO_ONE = 0.005;
const APART = 0.05; // from 0.5: of experts that all weigh the same, any two would pass for a pair
const FEWEST_PAIRS = 3;

/**
 * Whether experts 0 and 1, 2 and 3 and so on share their weight, in each block: they sum to 1 in each of the images.
 *
 * @param {Array<Object<string, number[]>>} routings of images of one model
 */
function inPairs(routings) {
  const blocks = routings.flatMap((routing) => Object.values(routing));
  if (blocks.some(({ length }) => length % 2)) return false;
  const firsts = blocks.flatMap((weights) => weights.filter((_, expert) => expert % 2 === 0));
  const seconds = blocks.flatMap((weights) => weights.filter((_, expert) => expert % 2));
  return (
    firsts.length >= FEWEST_PAIRS &&
    firsts.every((weight, pair) => Math.abs(weight + seconds[pair] - 1) < SUMS_TO_ONE) &&
    firsts.some((weight) => Math.abs(weight - 0.5) > APART)
  );
}

/** What the experts are, and how usual their mixture is for this image: text and elements. */
export function summary({ routing, insight }) {
  const blocks = Object.values(routing);
  if (!blocks.length) return ["This is a static network: every image gets the same filters, there are no experts."];
  const experts = blocks.map(({ length }) => length);
  const [fewest, most] = [Math.min(...experts), Math.max(...experts)];
  const held = `${fewest < most ? `${fewest} to ` : ""}${count(most, "expert")}`;
  const parts = [
    blocks.length === 1 ? `One block holds ${held}` : `Each of ${blocks.length} blocks holds ${held}`,
    `: sets of filters, which it mixes anew for every image. `,
  ];
  return [...parts, ...howUsual(insight ?? {})];
}

function howUsual({ reference_distance: distance, typical_distance: typical, unusual_above: limit, unusual, reference_images: images, class_distance: toClass, class_profile: profile }) {
  if (distance === undefined || !typical) return [];
  const photos = `the ${images.toLocaleString("en")} reference photos`;
  const times = (value) => (value / typical).toFixed(1);
  const meaning =
    `the distance is between this image's weights and the average of ${photos} that the model's profile was made of. Half of them are nearer than the typical distance` +
    (unusual === undefined ? "." : `; one in twenty is farther than ${(limit / typical).toFixed(2)} times that, which is called unlike most.`);
  const like = unusual === undefined ? `Compared with ${photos}: ` : unusual ? `Mixed unlike most of ${photos}: ` : `Mixed within the usual range of ${photos}: `;
  const class_ = toClass !== undefined && profile ? ` From the average of ${count(profile.images, "image")} of the same class: ${times(toClass)} times that distance.` : "";
  return [like, `${times(distance)} times their `, term("typical distance", meaning), `.${class_}`];
}

/** What the weights in the heat map mean. */
export function explanation(routings) {
  const most = Math.max(...Object.values(routings[0]).map(({ length }) => length));
  const pairs = Array.from({ length: Math.min(most / 2, 2) }, (_, pair) => `${2 * pair} with ${2 * pair + 1}`).join(", ") + (most > 4 ? " and so on" : "");
  return (
    "Each weight goes from 0 to 1 on its own: how much of an expert goes into the mixture. " +
    (inPairs(routings)
      ? `In this model experts come in pairs, ${pairs}: the weights of a pair sum to 1, so one rises as the other falls.`
      : "A block's weights needn't sum to 1.")
  );
}
