// The list of groups. Only the rows that can be seen are elements: a thousand groups scroll like ten.

import { el, name, number, rate, span } from "./dom.js";

const MARKS = { problem: ["✗", "problem"], notice: ["▲", "notice"] };
const MOVES = {
  holder: "the program's move", peer: "the peer's move", far: "the far side's move", path: "the network's move",
  kernel: "the kernel ends it", you: "your move", unknown: "whose move: unknown",
};
export const workload = (group) => group.workload || "unknown workload";
/** How sure the last diagnosis is: of a group of several findings, of how many connections. */
export function sureness(group) {
  const levels = Object.entries(group.confidences ?? {});
  return levels.length > 1 ? levels.map(([level, n]) => `${level}: ${number(n)}`).join(", ") : group.confidence;
}
export const whose = (kind) => MOVES[kind] ?? MOVES.unknown;

function row(group, k, total, chosen, open) {
  const [mark, word] = MARKS[group.severity] ?? ["·", group.severity];
  const grows = rate(group.rate);
  const limit = group.reached_s !== null ? `${group.limit} full in ${span(group.reached_s)}` : "";
  const item = el("div", {
    id: `group-${group.id}`, role: "option", class: `row ${group.severity}`, "aria-setsize": total, "aria-posinset": k + 1,
    "aria-selected": chosen ? "true" : "false",
  },
  el("span", { class: "mark", "aria-hidden": "true" }, mark), el("span", { class: "hidden" }, word),
  el("span", { class: "who" }, name(workload(group))),
  el("span", { class: "count" }, number(group.count)),
  el("span", { class: "age" }, span(group.oldest_s)),
  el("span", { class: "second" },
    el("span", { class: group.title ? "why said" : "why" }, group.title || group.rule),
    el("span", { class: "sure" }, [sureness(group), whose(group.whose)].filter(Boolean).join(" · ")),
    el("span", { class: "grow" }, [grows, limit].filter(Boolean).join(" · "))));
  item.addEventListener("click", () => open(group.id));
  return item;
}

export class GroupList {
  constructor(onOpen, onMove) {
    this.groups = [];
    this.at = 0;
    this.onOpen = onOpen;
    this.onMove = onMove;
    this.rows = el("div", { class: "rows" });
    this.box = el("div", { class: "list", role: "listbox", tabindex: "0", "aria-label": "Groups, the most harmful first" }, this.rows);
    this.root = el("div", { class: "groups" },
      el("div", { class: "heads", "aria-hidden": "true" }, el("span"), el("span", { class: "who" }, "workload · cause"),
        el("span", { class: "count" }, "stuck"), el("span", { class: "age" }, "oldest")),
      this.box);
    this.box.addEventListener("scroll", () => this.draw(), { passive: true });
    window.addEventListener("scroll", () => this.draw(), { passive: true });
    window.addEventListener("resize", () => this.draw());
    this.box.addEventListener("keydown", (event) => this.key(event));
  }

  show(groups, open) {
    const before = this.groups[this.at]?.id;
    this.groups = groups;
    this.open = open;
    const wanted = open || before;
    const place = groups.findIndex((group) => group.id === wanted);
    this.at = place >= 0 ? place : Math.min(this.at, Math.max(0, groups.length - 1));
    this.drawn = "";
    this.draw();
  }

  draw() {
    if (!this.box.isConnected) return;
    const height = parseFloat(getComputedStyle(this.box).getPropertyValue("--row")) || 60;
    this.rows.style.height = `${this.groups.length * height}px`;
    const box = this.box.getBoundingClientRect(), rows = this.rows.getBoundingClientRect();
    const top = Math.max(box.top, 0) - rows.top, bottom = Math.min(box.bottom, window.innerHeight) - rows.top;
    const from = Math.max(0, Math.floor(top / height) - 4), to = Math.min(this.groups.length, Math.ceil(bottom / height) + 4);
    const key = `${from} ${to} ${height} ${this.at} ${this.open}`;
    if (key === this.drawn) return;
    this.drawn = key;
    const items = [];
    const places = new Set();
    for (let k = from; k < to; k += 1) places.add(k);
    if (this.groups.length) places.add(this.at);
    for (const k of [...places].sort((a, b) => a - b)) {
      const item = row(this.groups[k], k, this.groups.length, this.groups[k].id === this.open, this.onOpen);
      item.style.transform = `translateY(${k * height}px)`;
      if (k === this.at) item.classList.add("at");
      items.push(item);
    }
    this.rows.replaceChildren(...items);
    const current = this.groups[this.at];
    if (current) this.box.setAttribute("aria-activedescendant", `group-${current.id}`);
    else this.box.removeAttribute("aria-activedescendant");
  }

  move(by) {
    if (!this.groups.length) return;
    this.at = Math.max(0, Math.min(this.groups.length - 1, this.at + by));
    const height = parseFloat(getComputedStyle(this.box).getPropertyValue("--row")) || 60;
    const top = this.at * height;
    if (this.box.scrollHeight > this.box.clientHeight + 1) {
      if (top < this.box.scrollTop) this.box.scrollTop = top;
      if (top + height > this.box.scrollTop + this.box.clientHeight) this.box.scrollTop = top + height - this.box.clientHeight;
    }
    this.draw();
    if (this.box.scrollHeight <= this.box.clientHeight + 1) this.rows.querySelector(".at")?.scrollIntoView({ block: "nearest" });
    this.onMove(this.groups[this.at].id);
  }

  key(event) {
    const page = Math.max(1, Math.floor(this.box.clientHeight / 60) - 1);
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -1e9, End: 1e9 };
    if (event.key in steps && !event.ctrlKey && !event.metaKey && !event.altKey) {
      event.preventDefault();
      this.move(steps[event.key]);
    } else if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      this.enter();
    }
  }

  enter() {
    const current = this.groups[this.at];
    if (current) this.onOpen(current.id);
  }
}
