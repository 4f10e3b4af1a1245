// Questions to the server. A newer question of a view takes the place of the older one.

const token = new URLSearchParams(location.search).get("token") ?? "";
const tab = String(crypto.getRandomValues(new Uint32Array(4))); // randomUUID needs HTTPS or localhost
const running = new Map();

export class Stale extends Error {}

async function told(response) {
  if (response.ok) return response;
  const body = await response.json().catch(() => ({}));
  if (response.status === 409) throw new Stale();
  throw new Error(body.message ?? `The server answered with status ${response.status}.`);
}

async function send(path, options) {
  const headers = { Authorization: `Bearer ${token}`, "Lensbridge-Tab": tab, ...options.headers };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (options.signal?.aborted) throw new Stale();
    throw new Error("The server does not answer. Is lensbridge serve still running?");
  }
  return told(response);
}

export async function model() {
  return (await send("/api/model", {})).json();
}

function begun(view, question) {
  running.get(view)?.abort();
  const control = new AbortController();
  running.set(view, control);
  return send(`/api/${view}`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(question),
    signal: control.signal,
  });
}

export async function ask(view, question) {
  const response = await begun(view, question);
  try {
    return await response.json();
  } catch (error) {
    throw new Stale();
  }
}

// Calls `each` for every event of a stream, as they come.
export async function follow(view, question, each) {
  const response = await begun(view, question);
  const mine = running.get(view);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        const event = JSON.parse(line);
        if (event.type === "error" && event.status === 409) throw new Stale();
        if (event.type === "error") throw new Error(event.message);
        each(event);
      }
    }
  } catch (error) {
    if (mine?.signal.aborted) throw new Stale();
    throw error;
  }
}

export function cancel(view) {
  running.get(view)?.abort();
}
