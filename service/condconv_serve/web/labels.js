// Labels of boxes, where they neither cover each other, nor much of the photo, nor leave its frame. Others are only seen
// while their box is marked.

const COVERED = 0.15; // at most so much of the photo
const ALWAYS = 6; // labels that are shown even so, if they have room

export class Labels {
  #layer;
  #frame;
  #pairs = [];

  /** Live in `layer`, which lies over the photo, inside of `frame`. */
  constructor({ layer, frame }) {
    this.#layer = layer;
    this.#frame = frame;
    new ResizeObserver(() => this.#place()).observe(layer);
  }

  /** Show labels, as `{box, label}` of elements; the first ones get their places first. */
  show(pairs) {
    this.#pairs = pairs;
    this.#layer.replaceChildren(...pairs.map(({ label }) => label));
    this.#place();
  }

  #place() {
    const origin = this.#layer.getBoundingClientRect();
    if (!origin.width) return;
    const outer = this.#frame.getBoundingClientRect();
    const room = {
      left: Math.min(0, outer.left - origin.left),
      top: Math.min(0, outer.top - origin.top),
      right: Math.max(origin.width, outer.right - origin.left),
      bottom: Math.max(origin.height, outer.bottom - origin.top),
    };
    // All is measured before anything is moved, so the page is laid out once.
    const measured = this.#pairs.map(({ box, label }) => {
      const { left, top, width, height } = box.getBoundingClientRect();
      return { label, width: label.offsetWidth, height: label.offsetHeight, box: { left: left - origin.left, top: top - origin.top, width, height } };
    });
    const placed = [];
    let left = COVERED * origin.width * origin.height;
    for (const { label, width, height, box } of measured) {
      const places = candidates(box, { width, height, room });
      const many = placed.length >= ALWAYS && left < width * height;
      const place = many ? null : places.find((one) => !placed.some((other) => overlap(one, other)));
      label.classList.toggle("crowded", !place);
      label.style.translate = `${(place ?? places[0]).left}px ${(place ?? places[0]).top}px`;
      if (place) {
        placed.push(place);
        left -= width * height;
      }
    }
  }
}

/** Where a label may go, the best first: above its box, at its top, below it, at its bottom, beside it. */
function candidates(box, { width, height, room }) {
  const inside = (least, value, most) => Math.max(least, Math.min(value, most));
  const places = [
    [box.left, box.top - height],
    [box.left, box.top],
    [box.left, box.top + box.height],
    [box.left, box.top + box.height - height],
    [box.left + box.width, box.top],
    [box.left - width, box.top],
  ].map(([left, top]) => ({ left: inside(room.left, left, room.right - width), top, width, height }));
  const seen = places.filter(({ top }) => top >= room.top && top + height <= room.bottom);
  return seen.length ? seen : [{ ...places[0], top: inside(room.top, places[0].top, room.bottom - height) }];
}

const overlap = (a, b) => a.left < b.left + b.width && b.left < a.left + a.width && a.top < b.top + b.height && b.top < a.top + a.height;
