// One tooltip for the page: for cells of heat maps, and for words that need a sentence.

import { byId, make } from "./dom.js";

export function showTooltip(cell, text) {
  const tooltip = byId("tooltip");
  tooltip.textContent = text;
  tooltip.hidden = false;
  const at = cell.getBoundingClientRect();
  const { width, height } = tooltip.getBoundingClientRect();
  const page = document.documentElement;
  const left = Math.min(Math.max(at.left + at.width / 2 - width / 2, 8), page.clientWidth - width - 8);
  const above = at.top - height - 8;
  tooltip.style.left = `${left}px`;
  tooltip.style.top = `${above > 8 ? above : at.bottom + 8}px`;
}

export function hideTooltip() {
  byId("tooltip").hidden = true;
}

/** A word that says more when it is pointed at, tapped, or reached with the keyboard. */
export function term(word, meaning) {
  const show = (event) => showTooltip(event.currentTarget, meaning);
  return make(
    "button",
    {
      type: "button",
      class: "term",
      "aria-label": `${word}: ${meaning}`,
      on: { click: show, focus: show, pointerenter: show, blur: hideTooltip, pointerleave: hideTooltip, keydown: (event) => event.key === "Escape" && hideTooltip() },
    },
    word,
  );
}

addEventListener("scroll", hideTooltip, { capture: true, passive: true });
