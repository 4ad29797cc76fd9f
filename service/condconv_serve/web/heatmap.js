// A heat map of blocks by experts: a grid that a mouse, a keyboard and a screen reader can walk through.
//
// A table's cells are cheap enough: 40 blocks of 64 experts are built once and only recoloured afterwards.

import { gradient, paint } from "./colours.js";
import { make } from "./dom.js";
import { hideTooltip, showTooltip, term } from "./tooltip.js";

const ROOM_FOR_NUMBERS = 10; // experts; with more the cells get small and hold no text
const LONGEST_NAME = 14; // letters of a row's name that are shown

export class HeatMap {
  #box;
  #label;
  #onChoose;
  #cells = [];
  #sideCells = [];
  #shape = "";
  #at = [0, 0];
  #shown = null;
  #chosen = null;

  /**
   * Live in `box`; `label` names the grid, `onChoose(row, column, byPointer)` is called on click, Enter and Space.
   */
  constructor(box, { label, onChoose = null }) {
    this.#box = box;
    this.#label = label;
    this.#onChoose = onChoose;
    box.classList.add("heat-box");
    box.addEventListener("keydown", (event) => this.#key(event));
    box.addEventListener("click", (event) => this.#click(event));
    box.addEventListener("focusin", (event) => this.#point(event.target, true));
    box.addEventListener("focusout", hideTooltip);
    box.addEventListener("pointerover", (event) => this.#point(event.target, false));
    box.addEventListener("pointerleave", hideTooltip);
  }

  /**
   * Show values.
   *
   * @param {object} shown
   * @param {string[]} shown.rows names of the rows
   * @param {number[]} shown.columns how many columns each row has
   * @param {(row: number, column: number) => number | null} shown.value null where there is none
   * @param {(value: number) => number} shown.place of a value in the scale, 0 to 1
   * @param {(value: number) => string} shown.text of a value in its cell
   * @param {(row: number, column: number) => string} shown.describe a cell in words, its place included
   * @param {"sequential" | "diverging"} shown.scale
   * @param {{title: string, help: string, value: (row: number) => number | null, describe: (row: number) => string} |
   *   null} shown.side another figure of each row, 0 to 1, and what it is
   */
  show(shown) {
    const shape = JSON.stringify([shown.rows, shown.columns, Boolean(shown.side)]);
    this.#shown = shown;
    if (shape !== this.#shape) this.#build(shape);
    const numbers = Math.max(...shown.columns) <= ROOM_FOR_NUMBERS;
    this.#cells.forEach((row, r) =>
      row.forEach((cell, c) => {
        const value = shown.value(r, c);
        cell.classList.toggle("none", value === null);
        const { background, text } = value === null ? { background: "", text: "" } : paint(shown.scale, shown.place(value));
        cell.style.backgroundColor = background;
        cell.style.color = text;
        cell.textContent = numbers ? (value === null ? "\u2013" : shown.text(value)) : "";
        cell.setAttribute("aria-label", shown.describe(r, c));
      }),
    );
    this.#sideCells.forEach((cell, r) => {
      const value = shown.side.value(r);
      cell.firstChild.style.setProperty("--share", value ?? 0);
      cell.setAttribute("aria-label", shown.side.describe(r));
    });
    this.mark(this.#chosen);
  }

  /** Mark a cell, `[row, column]`, as the chosen one; none with null. */
  mark(chosen) {
    this.#box.querySelector("[aria-selected=true]")?.setAttribute("aria-selected", "false");
    this.#chosen = chosen;
    if (chosen) this.#cells[chosen[0]]?.[chosen[1]]?.setAttribute("aria-selected", "true");
  }

  /** Show nothing. */
  clear() {
    this.#box.replaceChildren();
    this.#cells = [];
    this.#sideCells = [];
    this.#shape = "";
    this.#shown = null;
    this.#chosen = null;
  }

  /** Colour anew, after the page turned dark or light. */
  repaint() {
    if (this.#shown) this.show(this.#shown);
  }

  #build(shape) {
    const { rows, columns, side } = this.#shown;
    const most = Math.max(...columns);
    this.#shape = shape;
    this.#at = [0, 0];
    this.#chosen = null;
    const head = make("tr", {}, make("th", { scope: "col", class: "corner" }, make("span", { class: "unseen" }, "block")));
    for (let c = 0; c < most; c += 1) head.append(make("th", { scope: "col", "aria-label": `expert ${c}` }, String(c)));
    // Without another figure its column stays, so that the experts keep their places.
    head.append(side ? make("th", { scope: "col", class: "side" }, term(side.title, side.help)) : make("td", { class: "side" }));
    this.#sideCells = [];
    this.#cells = rows.map(() => []);
    const body = rows.map((name, r) => {
      const line = make("tr", {}, make("th", { scope: "row", title: name.length > LONGEST_NAME ? name : null }, name));
      for (let c = 0; c < columns[r]; c += 1) {
        const cell = make("td", { tabindex: r + c === 0 ? 0 : -1, role: "gridcell", "aria-selected": "false" });
        cell.place = [r, c];
        this.#cells[r].push(cell);
        line.append(cell);
      }
      if (columns[r] < most) line.append(make("td", { class: "absent", colspan: most - columns[r] }));
      const cell = make("td", { role: "gridcell", class: "side" }, side ? make("span", { class: "side-bar" }) : null);
      if (side) this.#sideCells.push(cell);
      line.append(cell);
      return line;
    });
    const kind = most <= ROOM_FOR_NUMBERS ? "roomy" : "dense";
    const name = Math.min(Math.max(...rows.map(({ length }) => length)), LONGEST_NAME);
    this.#box.replaceChildren(
      make(
        "table",
        {
          role: "grid",
          class: `heat ${kind}${this.#onChoose ? " choosable" : ""}${side ? " sided" : ""}`,
          "aria-label": this.#label,
          style: { "--experts": most, "--name": name },
        },
        make("thead", {}, head),
        make("tbody", {}, body),
      ),
    );
  }

  #click(event) {
    const cell = event.target.closest("td[tabindex]");
    if (!cell) return;
    this.#moveTo(cell);
    this.#onChoose?.(...cell.place, true);
  }

  #key(event) {
    if (event.key === "Escape") return hideTooltip();
    const cell = event.target.closest("td[tabindex]");
    if (!cell || event.altKey || event.metaKey) return;
    const lastRow = this.#cells.length - 1;
    const [r, c] = cell.place;
    const to = {
      ArrowUp: [r - 1, c],
      ArrowDown: [r + 1, c],
      ArrowLeft: [r, c - 1],
      ArrowRight: [r, c + 1],
      Home: event.ctrlKey ? [0, 0] : [r, 0],
      End: event.ctrlKey ? [lastRow, Infinity] : [r, Infinity],
      PageUp: [0, c],
      PageDown: [lastRow, c],
    }[event.key];
    if (to) {
      event.preventDefault();
      const row = Math.min(Math.max(to[0], 0), lastRow);
      const column = Math.min(Math.max(to[1], 0), this.#cells[row].length - 1);
      this.#moveTo(this.#cells[row][column]);
      this.#cells[row][column].focus();
    } else if ((event.key === "Enter" || event.key === " ") && this.#onChoose) {
      event.preventDefault();
      this.#onChoose(r, c);
    }
  }

  #moveTo(cell) {
    const [r, c] = this.#at;
    if (this.#cells[r]?.[c]) this.#cells[r][c].tabIndex = -1;
    cell.tabIndex = 0;
    this.#at = cell.place;
  }

  #point(target, focused) {
    if (target.closest?.(".term")) return;
    const cell = target.closest?.("td");
    if (!cell?.hasAttribute("aria-label")) return hideTooltip();
    if (focused && !cell.matches(":focus-visible")) return;
    showTooltip(cell, cell.getAttribute("aria-label"));
  }
}

/** What the colours mean: a scale with values at equal distances below it. */
export const legend = (scale, values) => [
  make("span", { class: "ramp", style: { "background-image": gradient(scale) }, "aria-hidden": "true" }),
  make("span", { class: "ticks" }, ...values.map((value) => make("span", {}, value))),
];
