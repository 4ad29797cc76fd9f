// What an image's answer would have been without an expert: `POST /routing/ablation`.

import { isPassing } from "./advice.js";
import { send } from "./api.js";
import { sumOf } from "./dom.js";

const VARIANTS_AT_ONCE = 64; // so that the grid fills while it is computed, and others get their turn
const TRIES = 8;

export const withoutExpert = (block, expert) => `${block}/${expert}`;
export const uniform = (block) => `${block}/uniform`;

const pause = (seconds, signal) =>
  new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });

/** Ask, and again while others are being served; `onWait(problem, seconds)` is told of each wait. */
async function ask(item, query, { kind, signal, onWait }) {
  const { effects } = item; // others are wanted if the thresholds change meanwhile
  const whole = { model: item.model.name, version: item.model.version, ...kind.query(), ...query };
  for (let tries = 0; ; tries += 1) {
    try {
      const answer = await send("routing/ablation", item.file, { query: whole, signal });
      for (const variant of answer.variants) {
        const [{ block, off, uniform: alike }] = variant.changes;
        effects.set(alike ? uniform(block) : withoutExpert(block, off[0]), kind.effectOf(variant, answer));
      }
      return;
    } catch (problem) {
      if (!isPassing(problem) || tries === TRIES) throw problem;
      const seconds = Math.max(1, problem.retryAfter ?? 2);
      onWait?.(problem, seconds);
      await pause(seconds, signal);
    }
  }
}

/** Switch one expert off. */
export async function ablateExpert(item, block, expert, options) {
  await ask(item, { variants: JSON.stringify([{ changes: [{ block, off: [expert] }] }]) }, options);
}

/** Give all experts of a block the same weight. */
export async function ablateBlock(item, block, options) {
  await ask(item, { variants: JSON.stringify([{ changes: [{ block, uniform: true }] }]) }, options);
}

/** Switch every expert off, one by one; `onPart(done, all)` is told of progress. */
export async function ablateAll(item, { onPart, ...options }) {
  const weights = Object.entries(item.routing);
  const all = sumOf(weights.map(([, experts]) => experts.length));
  let missing = weights.filter(([block, experts]) => experts.some((_, expert) => !item.effects.has(withoutExpert(block, expert))));
  while (missing.length) {
    const part = [];
    let variants = 0;
    for (const [block, experts] of missing) {
      if (part.length && variants + experts.length > VARIANTS_AT_ONCE) break;
      part.push(block);
      variants += experts.length;
    }
    await ask(item, { blocks: part.join(","), uniform: false }, options);
    missing = missing.slice(part.length);
    onPart(all - sumOf(missing.map(([, experts]) => experts.length)), all);
  }
}
