// Small help with the document: elements by id, elements made, words and numbers as people read them.

export const byId = (id) => document.getElementById(id);

/** Make an element. Text is always text: labels and file names can't become markup. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "class") element.className = value;
    else if (name === "on") for (const [event, handler] of Object.entries(value)) element.addEventListener(event, handler);
    else if (name === "style") for (const [key, to] of Object.entries(value)) element.style.setProperty(key, to);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** Put children into an element, unless it says the same already: what has the focus in it would lose it. */
export function replaceIfOther(element, children) {
  const fresh = make("div", {}, ...children);
  if (fresh.textContent !== element.textContent) element.replaceChildren(...fresh.childNodes);
}

export const announce = (text) => {
  byId("announcer").textContent = text;
};

const ROOM = 16; // pixels between what was scrolled to and the edge of the window
const calm = matchMedia("(prefers-reduced-motion: reduce)");

/** How to scroll: not as a motion for people who don't want that. */
export const scrolling = () => (calm.matches ? "auto" : "smooth");

/** Scroll as little as it takes to see `atLeast` pixels of an element, or all of it. Returns whether that was needed. */
export function reveal(element, { atLeast }) {
  const { top, height } = element.getBoundingClientRect();
  const bottom = top + Math.min(height, atLeast);
  if (top >= 0 && bottom <= innerHeight) return false;
  const toBeginning = top - ROOM;
  const down = bottom + ROOM - innerHeight;
  scrollBy({ top: top < 0 ? toBeginning : Math.min(toBeginning, down), behavior: scrolling() });
  return true;
}

export const percent = (share) => {
  const value = share * 100;
  if (value > 0 && value < 0.1) return "< 0.1 %";
  return `${value.toFixed(value >= 99.95 ? 0 : 1)} %`;
};

/** A difference of probabilities in points of a hundred, with its sign. */
export const points = (difference) => `${signed(difference * 100, 1)} points`;

export const signed = (value, digits) => {
  const text = Math.abs(value).toFixed(digits);
  return Number(text) === 0 ? text : `${value < 0 ? "\u2212" : "+"}${text}`;
};

export const milliseconds = (ms) => (ms >= 1000 ? `${(ms / 1000).toFixed(2)} s` : `${ms.toFixed(ms < 10 ? 1 : 0)} ms`);

export const count = (number, one, many = `${one}s`) => `${number.toLocaleString("en")} ${number === 1 ? one : many}`;

export const sumOf = (numbers) => numbers.reduce((sum, one) => sum + one, 0);

/** `block_8` as `block 8`. */
export const blockName = (block) => block.replaceAll("_", " ");
