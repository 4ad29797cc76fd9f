// What an image's answer would have been without an expert: `POST /routing/ablation`.

import { isPassing } from "./advice.js";
import { send } from "./api.js";

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
async function ask(item, query, { signal, onWait }) {
  for (let tries = 0; ; tries += 1) {
    try {
      return await send("routing/ablation", item.file, {
        query: { model: item.model.name, version: item.model.version, ...query },
        signal,
      });
    } catch (problem) {
      if (!isPassing(problem) || tries === TRIES) throw problem;
      const seconds = Math.max(1, problem.retryAfter ?? 2);
      onWait?.(problem, seconds);
      await pause(seconds, signal);
    }
  }
}

function keep(item, answer) {
  for (const { changes, probability, difference, top, same_top: sameTop } of answer.variants) {
    const [{ block, off, uniform: alike }] = changes;
    const effect = { before: answer.top, probability, difference, top, sameTop, timings: answer.timings_ms };
    item.effects.set(alike ? uniform(block) : withoutExpert(block, off[0]), effect);
  }
}

/** Switch one expert off. */
export async function ablateExpert(item, block, expert, options) {
  keep(item, await ask(item, { variants: JSON.stringify([{ changes: [{ block, off: [expert] }] }]) }, options));
}

/** Give all experts of a block the same weight. */
export async function ablateBlock(item, block, options) {
  keep(item, await ask(item, { variants: JSON.stringify([{ changes: [{ block, uniform: true }] }]) }, options));
}

/** Switch every expert off, one by one; `onPart(done, all)` is told of progress. */
export async function ablateAll(item, { onPart, ...options }) {
  const blocks = Object.keys(item.routing);
  const experts = item.routing[blocks[0]].length;
  const perRequest = Math.max(1, Math.floor(VARIANTS_AT_ONCE / experts));
  const missing = blocks.filter((block) => item.routing[block].some((_, expert) => !item.effects.has(withoutExpert(block, expert))));
  for (let at = 0; at < missing.length; at += perRequest) {
    const part = missing.slice(at, at + perRequest);
    keep(item, await ask(item, { blocks: part.join(","), uniform: false }, options));
    onPart((Math.min(at + perRequest, missing.length) + blocks.length - missing.length) * experts, blocks.length * experts);
  }
}
