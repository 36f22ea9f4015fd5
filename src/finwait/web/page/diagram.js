// How TCP closes, with how many sockets of the machine are in each state, and the change since the look before.

import { el, number, svg } from "./dom.js";

const W = 132, H = 46;
const PLACES = {
  ESTABLISHED: [4, 92], FIN_WAIT1: [168, 4], FIN_WAIT2: [332, 4], CLOSING: [332, 92],
  CLOSE_WAIT: [168, 180], LAST_ACK: [332, 180], TIME_WAIT: [496, 4],
};
const ARROWS = [
  "M70 92V27H164", "M70 138V203H164", "M300 27H328", "M464 27H492", "M300 40H316V115H328",
  "M464 115H562V54", "M300 203H328", "M464 203H562V160",
];

export function diagram(sockets, changes, marked) {
  const label = Object.keys(PLACES).map((state) => `${state} ${number(sockets[state] ?? 0)}`).join(", ");
  const root = svg("svg", { viewBox: "0 0 632 232", class: "diagram", role: "img", "aria-label": `Sockets by state: ${label}` },
    svg("defs", null, svg("marker", { id: "tip", viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 7, markerHeight: 7, orient: "auto" },
      svg("path", { d: "M0 0L8 4L0 8z", class: "tip" }))),
    ARROWS.map((d) => svg("path", { d, class: "arrow", "marker-end": "url(#tip)" })),
    svg("text", { x: 76, y: 20, class: "note" }, "we close first"),
    svg("text", { x: 76, y: 220, class: "note" }, "the peer first"),
    svg("text", { x: 536, y: 150, class: "note" }, "closed"));
  for (const [state, [x, y]] of Object.entries(PLACES)) {
    const count = sockets[state] ?? 0, change = changes?.[state] ?? 0;
    root.append(svg("g", { class: `state${marked?.has(state) ? " marked" : ""}${count ? "" : " none"}` },
      svg("rect", { x, y, width: W, height: H, rx: 6 }),
      svg("text", { x: x + 10, y: y + 18, class: "state-name" }, state),
      svg("text", { x: x + 10, y: y + 37, class: "state-count" }, number(count)),
      change ? svg("text", { x: x + W - 10, y: y + 37, class: "state-change" }, `${change > 0 ? "+" : "−"}${number(Math.abs(change))}`) : null));
  }
  const others = Object.entries(sockets).filter(([state, count]) => !(state in PLACES) && count);
  return el("figure", { class: "figure" }, el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "States" }, root),
    el("figcaption", { class: "muted" }, marked ? "Outlined: the states of this group. " : "",
      "All sockets of this machine; small numbers are the change since the look before.",
      others.length ? ` Also ${others.map(([state, count]) => `${state} ${number(count)}`).join(", ")}.` : ""));
}
