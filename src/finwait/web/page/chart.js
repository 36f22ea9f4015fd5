// Counts over time: stacked by series, as SVG, with a table of the same. Where nobody looked there is a gap, never 0.

import { clock, el, number, some, svg, table } from "./dom.js";

const LEFT = 46, RIGHT = 12, TOP = 10, BOTTOM = 24;

function niceTop(most) {
  const unit = 10 ** Math.floor(Math.log10(Math.max(1, most)));
  const step = [1, 2, 2.5, 5, 10].find((k) => k * unit >= most && Number.isInteger(k * unit)) ?? 10;
  return Math.max(4, step * unit);
}

// Runs of steps in which somebody looked; of those in which nobody did.
function runs(counts) {
  const seen = [], unseen = [];
  counts.gaps.forEach((gaps, k) => {
    const place = gaps === null ? unseen : seen;
    const last = place[place.length - 1];
    if (last && last[1] === k - 1) last[1] = k;
    else place.push([k, k]);
  });
  return { seen, unseen };
}

function patterns() {
  const line = (d) => svg("path", { d, class: "weave" });
  const one = (k, ...children) => svg("pattern", { id: `weave-${k}`, width: 8, height: 8, patternUnits: "userSpaceOnUse" },
    svg("rect", { width: 8, height: 8, class: `series-${k}` }), children);
  return svg("defs", null,
    one(0), one(1, line("M0 8L8 0")), one(2, line("M0 4H8")), one(3, line("M4 0V8")),
    one(4, line("M0 0L8 8")), one(5, line("M0 2H8M2 0V8")), one(6, svg("circle", { cx: 4, cy: 4, r: 1.5, class: "weave" })),
    one(7, line("M0 8L4 0L8 8")), one(8, line("M0 4H4M4 0H8")),
    svg("pattern", { id: "unseen", width: 6, height: 6, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
      svg("rect", { width: 2, height: 6, class: "unseen-line" })));
}

function ticks(counts, x, width) {
  const span = counts.at[counts.at.length - 1] - counts.at[0];
  const steps = [300, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800, 604800, 1209600];
  const step = steps.find((s) => (span / s) * 74 <= width) ?? 2592000;
  const zone = new Date(counts.at[0] * 1000).getTimezoneOffset() * 60;
  const out = [];
  for (let at = Math.ceil((counts.at[0] - zone) / step) * step + zone; at <= counts.at[counts.at.length - 1]; at += step) {
    const date = new Date(at * 1000);
    out.push([x(at), step >= 86400 ? clock(date, true).slice(5, 10) : clock(date)]);
  }
  return out;
}

export const summed = (counts, k) =>
  counts.gaps[k] === null ? null : counts.series.reduce((sum, series) => sum + (series.values[k] ?? 0), 0);

export function chart(counts, { width, height, label, acts = [], onRead }) {
  const n = counts.at.length;
  const totals = counts.at.map((_, k) => summed(counts, k));
  const top = niceTop(Math.max(1, ...totals.map((total) => total ?? 0)));
  const begin = counts.at[0], end = counts.at[n - 1] + counts.step_s;
  const x = (at) => LEFT + ((at - begin) / (end - begin)) * (width - LEFT - RIGHT);
  const y = (count) => height - BOTTOM - (count / top) * (height - TOP - BOTTOM);
  const { seen, unseen } = runs(counts);
  const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, class: "chart", role: "img", "aria-label": label },
    patterns());
  for (const count of [0, top / 4, top / 2, (3 * top) / 4, top]) {
    root.append(svg("line", { x1: LEFT, x2: width - RIGHT, y1: y(count), y2: y(count), class: "grid" }),
      svg("text", { x: LEFT - 6, y: y(count) + 4, class: "tick end" }, number(count)));
  }
  for (const [place, text] of ticks(counts, x, width - LEFT - RIGHT)) {
    root.append(svg("line", { x1: place, x2: place, y1: height - BOTTOM, y2: height - BOTTOM + 4, class: "grid" }),
      svg("text", { x: place, y: height - 7, class: "tick middle" }, text));
  }
  for (const [from, to] of unseen) {
    const left = x(counts.at[from]), right = x(counts.at[to] + counts.step_s);
    root.append(svg("rect", { x: left, y: TOP, width: Math.max(1, right - left), height: height - TOP - BOTTOM, class: "unseen" }));
    if (right - left > 90) root.append(svg("text", { x: (left + right) / 2, y: TOP + 16, class: "tick middle" }, "nobody looked"));
  }
  const base = counts.at.map(() => 0);
  counts.series.forEach((series, number_) => {
    for (const [from, to] of seen) {
      const upper = [], lower = [];
      for (let k = from; k <= to; k += 1) {
        const left = x(counts.at[k]), right = x(counts.at[k] + counts.step_s), high = base[k] + (series.values[k] ?? 0);
        upper.push(`${left.toFixed(1)} ${y(high).toFixed(1)}`, `${right.toFixed(1)} ${y(high).toFixed(1)}`);
        lower.unshift(`${right.toFixed(1)} ${y(base[k]).toFixed(1)}`, `${left.toFixed(1)} ${y(base[k]).toFixed(1)}`);
        base[k] = high;
      }
      root.append(svg("path", { d: `M${upper.join("L")}L${lower.join("L")}Z`, class: "area", fill: `url(#weave-${number_ % 9})` }));
    }
  });
  for (const act of acts) {
    const at = Date.parse(act.at) / 1000;
    if (at < begin || at > end) continue;
    const place = x(at);
    root.append(svg("path", { d: `M${place - 5} ${height - BOTTOM + 9}l5 -9l5 9z`, class: "act" },
      svg("title", null, `${act.kind} of ${act.whom}: ${act.result}`)));
  }
  const cursor = svg("line", { y1: TOP, y2: height - BOTTOM, class: "cursor", visibility: "hidden" });
  root.append(cursor);
  let place = n - 1;
  const read = (k, show) => {
    place = Math.max(0, Math.min(n - 1, k));
    const middle = x(counts.at[place] + counts.step_s / 2);
    cursor.setAttribute("x1", middle);
    cursor.setAttribute("x2", middle);
    cursor.setAttribute("visibility", show ? "visible" : "hidden");
    onRead?.(place, show);
  };
  root.addEventListener("pointermove", (event) => {
    const box = root.getBoundingClientRect();
    const at = begin + (((event.clientX - box.left) * width) / box.width - LEFT) / (width - LEFT - RIGHT) * (end - begin);
    read(Math.floor((at - begin) / counts.step_s), true);
  });
  root.addEventListener("pointerleave", () => read(n - 1, false));
  return { root, read: (by) => read(place + by, true), show: (k) => read(k, true), reset: () => read(n - 1, false) };
}

export function legend(counts, label) {
  const values = counts.series.map(() => el("td", { class: "num" }));
  const at = el("span");
  const rows = counts.series.map((series, k) => el("tr", null,
    el("td", null, svg("svg", { class: "swatch", viewBox: "0 0 16 16", "aria-hidden": "true" },
      svg("rect", { width: 16, height: 16, fill: `url(#weave-${k % 9})` }))),
    el("th", { scope: "row" }, el("bdi", null, label(series.name))), values[k]));
  const total = el("td", { class: "num" });
  const root = el("div", { class: "legend" }, el("p", { class: "muted" }, at),
    el("table", null, el("tbody", null, rows,
      el("tr", { class: "total" }, el("td"), el("th", { scope: "row" }, "all"), total))));
  const read = (k, show) => {
    counts.series.forEach((series, s) => (values[s].textContent = number(series.values[k])));
    total.textContent = number(summed(counts, k));
    const gaps = counts.gaps[k];
    at.textContent = (show ? "" : "last: ") + clock(new Date(counts.at[k] * 1000), counts.step_s >= 900 || show)
      + (gaps === null ? ", nobody looked" : gaps ? `, ${some(gaps, "part", "parts")} not seen` : "");
  };
  return { root, read };
}

export function countsTable(counts, label) {
  const every = Math.max(1, Math.ceil(counts.at.length / 60));
  const rows = [];
  for (let k = counts.at.length - 1; k >= 0; k -= every) {
    const values = counts.series.map((series) => number(series.values[k]));
    rows.push([clock(new Date(counts.at[k] * 1000), true), ...values, counts.gaps[k] === null ? "nobody looked" : number(summed(counts, k))]);
  }
  return table("Counts over time", ["time", ...counts.series.map((series) => label(series.name)), "all"], rows, { class: "counts" });
}
