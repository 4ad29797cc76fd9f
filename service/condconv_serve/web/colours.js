// Colours of heat maps, for light and dark pages, and of classes, and text that can be read on them.

const SCALES = {
  light: {
    sequential: ["#f4efe4", "#f8d692", "#e8934a", "#b23a48", "#4a1942"],
    diverging: ["#12416e", "#7fabd0", "#f4efe4", "#eeb27c", "#96370f"],
  },
  dark: {
    sequential: ["#23272f", "#4a2352", "#a8384f", "#ee8b45", "#ffe6ad"],
    diverging: ["#9ed2ff", "#3b6690", "#23272f", "#935427", "#ffbd8a"],
  },
};

export const isDark = () => {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
};

const channels = (hex) => [1, 3, 5].map((at) => Number.parseInt(hex.slice(at, at + 2), 16));

/** The colour at `place`, 0 to 1, of a scale, as [red, green, blue]. */
function mixed(scale, place) {
  const stops = SCALES[isDark() ? "dark" : "light"][scale];
  const at = Math.min(Math.max(place, 0), 1) * (stops.length - 1);
  const below = Math.min(Math.floor(at), stops.length - 2);
  const [from, to] = [channels(stops[below]), channels(stops[below + 1])];
  return from.map((value, i) => Math.round(value + (to[i] - value) * (at - below)));
}

const luminance = (rgb) => {
  const [r, g, b] = rgb.map((value) => {
    const share = value / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};

/** Background and text colour at a place of a scale; the text has a contrast of at least 4.5. */
export function paint(scale, place) {
  const rgb = mixed(scale, place);
  return { background: `rgb(${rgb.join(" ")})`, text: readable(rgb) };
}

const readable = (rgb) => (luminance(rgb) > 0.179 ? "#000" : "#fff");

export const gradient = (scale) =>
  `linear-gradient(to right, ${[0, 0.25, 0.5, 0.75, 1].map((place) => paint(scale, place).background).join(", ")})`;

// Colours of classes over any photo (Okabe and Ito): people who see few colours can tell them apart, too.
const CLASSES = ["#56b4e9", "#e69f00", "#cc79a7", "#f0e442", "#009e73", "#d55e00", "#0072b2"];

/**
 * A colour for each class, as `{background, text}` by its index. A class has the same colour in all images, unless
 * another class in the image has it already; of more than seven classes some share one.
 */
export function classColours(indices) {
  const wanted = [...new Set(indices)].toSorted((a, b) => a - b);
  const slots = new Map();
  const free = new Set(CLASSES.keys());
  const take = (index, slot) => {
    slots.set(index, slot);
    free.delete(slot);
  };
  for (const index of wanted) if (free.has(index % CLASSES.length)) take(index, index % CLASSES.length);
  for (const index of wanted) if (!slots.has(index)) take(index, [...free][0] ?? index % CLASSES.length);
  return new Map([...slots].map(([index, slot]) => [index, { background: CLASSES[slot], text: readable(channels(CLASSES[slot])) }]));
}
