// What a person can do about each kind of refusal, in addition to what the service says about it.

const ADVICE = {
  unreachable: "Is it running, and is the network up? The page keeps trying and goes on by itself.",
  not_readable: "Was it moved or changed since it was chosen? Choose it again.",
  not_sent: "It may be too large for something on the way. Try a smaller copy.",
  not_ready: "It is loading its models. The page waits and goes on by itself.",
  draining: "It is shutting down or restarting. The page waits and goes on by itself.",
  too_many_connections: "Many others are using it. The page tries again by itself.",
  engine_stalled: "The server is recovering. The page tries again by itself.",
  out_of_memory: "Try a smaller image, or try again later.",
  unauthenticated: "Enter a key that this server knows.",
  forbidden: "Ask whoever runs the server for a key that may do this.",
  rate_limited: "This key has used up its requests for now. The page tries again when there are new ones.",
  queue_full: "Many images are waiting. The page tries again by itself.",
  wait_too_long: "Many images are waiting. The page tries again by itself.",
  ablation_busy: "Others are trying experts, too. The page tries again by itself.",
  deadline_exceeded: "The server is busy. Try again.",
  request_timeout: "The upload was too slow. Try a smaller image, or a better connection.",
  body_too_large: "Save it smaller, or as a JPEG: the model looks at a few hundred pixels per side anyway.",
  image_too_large: "Scale it down: the model looks at a few hundred pixels per side anyway.",
  unsupported_image: "Save it as JPEG, PNG or WebP, and choose that.",
  unsupported_body: "Choose an image file.",
  corrupt_image: "The file is incomplete or damaged. Open it elsewhere to see if it is whole, and copy or save it anew.",
  missing_image: "The file is empty. Choose another one.",
  model_not_found: "Choose another model at the top.",
  version_not_found: "Choose another version at the top.",
  routing_not_found: "There is nothing to compare with here.",
  inference_failed: "Try again; if it stays so, tell whoever runs the server.",
  internal_error: "Try again; if it stays so, tell whoever runs the server.",
};

export const advice = (problem) =>
  ADVICE[problem.slug] ?? (problem.status >= 500 ? "Try again in a moment." : "Try another image.");

/** What to do where the page doesn't try again, or no longer. */
export const adviceByHand = (problem) => (isPassing(problem) || isOutage(problem) ? "Try again in a moment." : advice(problem));

/** Refusals that concern the server as a whole: everything waits until it is back. */
export const isOutage = (problem) =>
  ["unreachable", "not_ready", "draining"].includes(problem.slug) || [502, 503, 504].includes(problem.status) && problem.slug === "http_error";

/** Whether the same image may be answered another time; otherwise another try would be refused as well. */
export const canPass = ({ status, slug }) => (status === 0 ? slug !== "not_readable" : [408, 429].includes(status) || status >= 500);

/** Refusals after which a later try makes sense by itself. */
export const isPassing = (problem) =>
  ["queue_full", "wait_too_long", "rate_limited", "ablation_busy", "too_many_connections", "engine_stalled"].includes(problem.slug);
