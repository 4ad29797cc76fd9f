// Light or dark: as the system says, until the visitor chooses.

import { isDark } from "./colours.js";
import { byId } from "./dom.js";

const KEPT_AS = "condconv-theme";

/** Start; `onChange()` is called when the page has turned light or dark. */
export function theme({ onChange }) {
  const button = byId("theme");
  const show = () => {
    button.setAttribute("aria-pressed", String(isDark()));
    onChange();
  };
  const kept = localStorage.getItem(KEPT_AS);
  if (kept === "dark" || kept === "light") document.documentElement.dataset.theme = kept;
  button.addEventListener("click", () => {
    const chosen = isDark() ? "light" : "dark";
    document.documentElement.dataset.theme = chosen;
    localStorage.setItem(KEPT_AS, chosen);
    show();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
  show();
}
