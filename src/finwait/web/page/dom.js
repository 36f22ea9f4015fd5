// Elements and words. Text is set as text and never as markup: processes choose their names.

const HIDDEN = /[\u0000-\u001f\u007f-\u009f\u00ad\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g;

// What cannot be seen, or turns the text around it, is shown as a mark.
export const clean = (text) => String(text).replace(HIDDEN, "\ufffd");

const SVG = "http://www.w3.org/2000/svg";

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat(3)) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : document.createTextNode(clean(child)));
  }
  return element;
}

export const el = (name, attributes, ...children) => filled(document.createElement(name), attributes, children);
export const svg = (name, attributes, ...children) => filled(document.createElementNS(SVG, name), attributes, children);

// A name that somebody else chose: kept apart from what stands around it.
export const name = (text, attributes) => el("bdi", attributes, text);

// Sentences of the rules have commands in backticks.
export const prose = (text) => String(text).split("`").map((part, k) => (k % 2 ? el("code", null, part) : part));

const WHOLE = new Intl.NumberFormat("en");
export const number = (n) => (n === null || n === undefined ? "?" : WHOLE.format(n));
export const some = (n, one, many) => `${number(n)} ${n === 1 ? one : many}`;

export function span(seconds) {
  if (seconds === null || seconds === undefined) return "?";
  const s = Math.max(0, Math.floor(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  const both = (large, unit, small, part) => (small ? `${large} ${unit} ${small} ${part}` : `${large} ${unit}`);
  if (s < 86400) return both(Math.floor(s / 3600), "h", Math.floor((s % 3600) / 60), "min");
  return both(Math.floor(s / 86400), "d", Math.floor((s % 86400) / 3600), "h");
}

export function rate(perSecond) {
  const minute = perSecond * 60;
  if (!perSecond) return "";
  if (minute >= 1) return `+${minute >= 10 ? Math.round(minute) : minute.toFixed(1)}/min`;
  return `+${Math.max(1, Math.round(minute * 60))}/h`;
}

const two = (n) => String(n).padStart(2, "0");
export function clock(date, withDay) {
  const time = `${two(date.getHours())}:${two(date.getMinutes())}`;
  return withDay ? `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())} ${time}` : time;
}
export const moment = (text) => {
  const date = new Date(text);
  return el("time", { datetime: text, title: text }, `${clock(date, true)}:${two(date.getSeconds())}`);
};

export async function copied(text, from) {
  try {
    await navigator.clipboard.writeText(text);
    return "copied";
  } catch {
    const range = document.createRange();
    range.selectNodeContents(from);
    const selection = window.getSelection();
    selection.removeAllRanges();
    selection.addRange(range);
    return "selected: press Ctrl+C";
  }
}

export const command = (text) => {
  const code = el("code", null, text);
  const button = el("button", { type: "button", class: "copy" }, "Copy");
  button.addEventListener("click", async () => {
    const result = await copied(text, code);
    button.textContent = result === "copied" ? "Copied" : "Ctrl+C";
    document.getElementById("said").textContent = result;
    setTimeout(() => (button.textContent = "Copy"), 2000);
  });
  return el("div", { class: "command" }, code, button);
};

export function table(caption, heads, rows, attributes) {
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    el("table", attributes,
      el("caption", { class: "hidden" }, caption),
      el("thead", null, el("tr", null, heads.map((head) => el("th", { scope: "col" }, head)))),
      el("tbody", null, rows.map((cells) => el("tr", null, cells.map((cell) => el("td", null, cell)))))));
}
