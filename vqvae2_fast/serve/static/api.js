// Requests to the server, and its answers as they come.

// A plus sign, as base64 has them, would be read as a space.
export const token = new URLSearchParams(location.hash.slice(1).replaceAll("+", "%2B")).get("token");

export class Refused extends Error {
  constructor({ field, expected, remedy }) {
    super(remedy ? `${expected} ${remedy}` : expected);
    this.field = field;
  }
}

// The server was started anew, with a pipeline whose maps may have other sizes.
export class Outdated extends Refused {
  constructor() {
    super({ field: "", expected: "The server has been started with other models.", remedy: "Save what you want to keep, then load the page again." });
  }
}

let served; // the pipeline for which this page was loaded

async function send(path, options = {}) {
  const headers = { ...options.headers };
  if (token) headers.Authorization = `Bearer ${token}`;
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused({ field: "", expected: "The server does not answer.", remedy: "Is it still running?" });
  }
  const pipeline = answer.headers.get("Vqvae2-Pipeline"); // none where a proxy answers
  if (pipeline && pipeline !== (served ??= pipeline)) {
    answer.body?.cancel();
    throw new Outdated();
  }
  if (!answer.ok) {
    const body = await answer.json().catch(() => null);
    throw new Refused(body?.error ?? { field: "", expected: `The server answered ${answer.status}.`, remedy: "" });
  }
  return answer;
}

export const get = async (path) => (await send(path)).json();

const posted = (body, signal) => ({
  method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" }, signal,
});

export const post = async (path, body) => (await send(path, posted(body))).json();

export const encode = async (file, label, signal) => {
  const query = label === null ? "" : `?label=${label}`;
  const headers = { "Content-Type": "application/octet-stream" };
  return (await send(`v1/encode${query}`, { method: "POST", body: file, headers, signal })).json();
};

const brokenOff = () => new Refused({ field: "", expected: "The server stopped answering.", remedy: "Is it still running?" });

// The server-sent events of a request, as [name, content]. The last one is done or error.
export async function* stream(path, body, signal) {
  const answer = await send(path, posted({ ...body, stream: true }, signal));
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "", ended = false;
  for (;;) {
    const { done, value } = await reader.read().catch((error) => {
      throw error.name === "AbortError" ? error : brokenOff();
    });
    if (done && !ended) throw brokenOff();
    if (done) return;
    text += value;
    const blocks = text.split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const [event, data] = block.split("\n");
      const name = event.slice("event: ".length);
      ended ||= name === "done" || name === "error";
      yield [name, JSON.parse(data.slice("data: ".length))];
    }
  }
}

export async function bitmap(png) {
  const bytes = Uint8Array.from(atob(png), (c) => c.charCodeAt(0));
  return createImageBitmap(new Blob([bytes], { type: "image/png" }));
}
