// What is asked of the agent. The token, where one is needed, stays in this tab: no cookie, no address.

let token = sessionStorage.getItem("finwait-token") ?? "";

export function takeToken() {
  const match = /^#token=(.+)$/.exec(location.hash);
  if (!match) return;
  setToken(decodeURIComponent(match[1]));
  history.replaceState(null, "", location.pathname + location.search);
}

export function setToken(text) {
  token = text;
  sessionStorage.setItem("finwait-token", text);
}

export class Failed extends Error {
  constructor(status, error, hint) {
    super(error);
    this.status = status;
    this.hint = hint ?? "";
  }
}

const headers = () => (token ? { Authorization: `Bearer ${token}` } : {});

export async function get(path, parameters, signal) {
  const query = new URLSearchParams();
  for (const [key, value] of Object.entries(parameters ?? {})) if (value) query.set(key, value);
  const text = query.toString();
  let answer;
  try {
    answer = await fetch(`/api/v1/${path}${text ? `?${text}` : ""}`, { headers: headers(), signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failed(0, "The agent does not answer.");
  }
  const body = await answer.json().catch(() => ({ error: "The answer is no JSON." }));
  if (!answer.ok) throw new Failed(answer.status, body.error, body.hint);
  return body;
}

// Server-sent events over fetch, which can send a token. Ends when the connection does.
async function readEvents(onDocument, onOpen) {
  const answer = await fetch("/api/v1/events", { headers: headers() });
  if (!answer.ok) throw new Failed(answer.status, answer.statusText);
  onOpen();
  const reader = answer.body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += decoder.decode(value, { stream: true });
    const parts = rest.split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const line = part.split("\n").find((each) => each.startsWith("data: "));
      if (line) onDocument(JSON.parse(line.slice(6)));
    }
  }
}

export async function follow(onDocument, onState) {
  for (let pause = 500; ; pause = Math.min(pause * 2, 8000)) {
    try {
      await readEvents(onDocument, () => {
        pause = 500;
        onState("live");
      });
      onState("lost");
    } catch (error) {
      onState(error.status === 401 ? "token" : error.status === 403 ? "refused" : "lost");
      if (error.status === 401 || error.status === 403) return;
    }
    await new Promise((resolve) => setTimeout(resolve, pause));
  }
}
