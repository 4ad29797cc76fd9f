// Requests to the service. Addresses are relative, so the page also works behind a proxy that adds a prefix.

const KEY = "condconv-api-key";
let key = sessionStorage.getItem(KEY) ?? "";

export const apiKey = () => key;

/** Keep a key for this tab; an empty one forgets it. */
export function useKey(secret) {
  key = secret;
  if (secret) sessionStorage.setItem(KEY, secret);
  else sessionStorage.removeItem(KEY);
}

/** What the service refused, or why it could not be asked. */
export class Problem extends Error {
  constructor({ status = 0, slug = "http_error", title = "Something went wrong", detail = "", retryAfter = null }) {
    super(detail || title);
    Object.assign(this, { status, slug, title, detail, retryAfter });
  }

  /** As it stands in an answer's body. */
  static of(body, status = body.status, header = null) {
    const seconds = body.retry_after ?? (header === null ? null : Number(header));
    return new Problem({ ...body, status, retryAfter: Number.isFinite(seconds) ? seconds : null });
  }
}

async function refusal(response) {
  const header = response.headers.get("Retry-After");
  try {
    const body = await response.json();
    if (typeof body.slug === "string") return Problem.of(body, response.status, header);
  } catch {
    // no JSON: a proxy has answered
  }
  return Problem.of(
    { title: `Answer ${response.status}`, detail: `Something between here and the server answered ${response.status} ${response.statusText}`.trim() + "." },
    response.status,
    header,
  );
}

/** Fetch an answer that is neither a refusal nor a failure of the network. */
export async function ask(path, { query = {}, headers = {}, ...options } = {}) {
  const given = Object.entries(query).filter(([, value]) => value !== undefined && value !== null && value !== "");
  const address = given.length ? `${path}?${new URLSearchParams(given)}` : path;
  let response;
  try {
    response = await fetch(address, {
      credentials: "omit",
      cache: "no-store",
      ...options,
      headers: { Accept: "application/json", ...(key ? { "X-API-Key": encodable(key) } : {}), ...headers },
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem({ slug: "unreachable", title: "The server can't be reached", detail: "No answer came back." });
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

// Headers hold bytes; a key with other characters can only be a wrong one, and the server should say so.
const encodable = (secret) => (/^[\x21-\x7e]+$/.test(secret) ? secret : encodeURIComponent(secret));

export const askJson = async (path, options) => (await ask(path, options)).json();

/** Send one image as it is: its bytes tell its format. */
export async function send(path, file, options = {}) {
  let body;
  try {
    body = await file.arrayBuffer();
  } catch {
    throw new Problem({ slug: "not_readable", title: "The file can't be read", detail: `The browser can't read ${file.name}.` });
  }
  return askJson(path, { method: "POST", body, headers: { "Content-Type": "application/octet-stream" }, ...options });
}
