// The views beside Now: history, settings, journal, gaps, about.

import { chart, countsTable, legend } from "./chart.js";
import { get } from "./data.js";
import { el, moment, name, number, prose, some, span, table } from "./dom.js";
import { SPANS } from "./place.js";

const ENDED = {
  closed: "closed", reset: "reset", cleared: "cleared by finwait", "owner-gone": "owner gone", vanished: "vanished", unknown: "unknown",
};

function choice(label, values, current, onPick) {
  return el("div", { class: "choice", role: "group", "aria-label": label },
    values.map(([value, text]) => el("button", {
      type: "button", "aria-pressed": value === current ? "true" : "false", onclick: () => onPick(value),
    }, text)));
}

function episodeRow(item, begin, end) {
  const from = Math.max(begin, Date.parse(item.first_seen) / 1000);
  const to = item.ended ? Date.parse(item.ended) / 1000 : end;
  const bar = el("span", { class: `bar-of ${item.ended ? "" : "lasts"}` });
  bar.style.marginLeft = `${(100 * (from - begin)) / (end - begin)}%`;
  bar.style.width = `${Math.max(0.6, (100 * (Math.min(end, to) - from)) / (end - begin))}%`;
  const most = item.age_s.at_most;
  return [el("div", { class: "lane", "aria-hidden": "true" }, bar), moment(item.first_seen),
    (most === null || span(most) === span(item.age_s.at_least)) ? span(item.age_s.at_least) : `${span(item.age_s.at_least)} to ${span(most)}`,
    item.how ? ENDED[item.how] ?? item.how : "lasts", item.state,
    [name(`${item.src}:${item.sport}`), " → ", name(`${item.dst}:${item.dport}`)],
    item.rule ?? "not diagnosed", item.holder === null ? "unknown" : item.holder ? name(item.holder) : "nobody"];
}

export async function historyView(place, go, signal) {
  const root = el("div", { class: "view history" });
  root.append(el("h2", { class: "hidden" }, "History"),
    el("div", { class: "controls" },
      choice("Time", SPANS.map((each) => [each, each]), place.since, (since) => go({ since })),
      choice("Series", [["rule", "by cause"], ["workload", "by workload"]], place.by, (by) => go({ by }))));
  const label = (each) => each || (place.by === "rule" ? "not diagnosed" : "unknown workload");
  const asked = (promise) => promise.catch((error) => { if (error.name === "AbortError") throw error; return error; });
  const [counts, journal, episodes] = await Promise.all([
    asked(get("counts", { since: place.since, by: place.by, filter: place.filter }, signal)),
    asked(get("journal", { limit: 200 }, signal)),
    asked(get("history", { since: place.since, filter: place.filter, limit: 200 }, signal)),
  ]);
  if (counts instanceof Error) {
    root.append(el("p", { class: "error" }, `No curve: ${counts.message}. ${counts.hint ?? ""}`));
  } else {
    root.append(curve(counts, journal.items ?? [], label));
  }
  root.append(el("h3", null, "Episodes"));
  if (episodes instanceof Error) {
    root.append(el("p", { class: "error" }, `${episodes.message} ${episodes.hint ?? ""}`));
    return root;
  }
  const end = Date.now() / 1000;
  const begin = counts instanceof Error ? end - 86400 : counts.at[0];
  if (!episodes.items.length) root.append(el("p", null, "No connection that anybody saw failed to close in this time."));
  else {
    root.append(table("Episodes", ["when", "first seen", "lasted", "ended", "state", "connection", "cause", "holder"],
      episodes.items.map((item) => episodeRow(item, begin, end)), { class: "episodes" }));
  }
  if (episodes.truncated) root.append(el("p", { class: "muted" }, "There are more. Narrow the FILTER, or use ", el("code", null, "finwait history"), "."));
  for (const gap of episodes.gaps) root.append(el("p", { class: "muted" }, `${gap.where}: could not ${gap.doing}`));
  return root;
}

function curve(counts, acts, label) {
  const box = el("div", { class: "plot", tabindex: "0", role: "group", "aria-label": "Curve; the arrow keys read it" });
  const side = legend(counts, label);
  let made = null, reading = null;
  const draw = () => {
    const width = Math.max(300, box.clientWidth || 900);
    made = chart(counts, {
      width, height: width < 600 ? 220 : 300, acts,
      onRead: (k, shown) => {
        reading = shown ? k : null;
        side.read(k, shown);
      },
      label: `Stuck connections over time, stacked, ${counts.series.map((series) => label(series.name)).join(", ") || "none"}. The table below has the numbers.`,
    });
    box.replaceChildren(made.root);
    if (reading === null) made.reset();
    else made.show(reading);
  };
  draw();
  new ResizeObserver(draw).observe(box);
  box.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1, Home: -1e9, End: 1e9 }[event.key];
    if (by === undefined) return;
    event.preventDefault();
    made.read(by);
  });
  box.addEventListener("blur", () => made.reset());
  return el("div", null, el("div", { class: "curve" }, box, side.root),
    acts.length ? el("p", { class: "muted" }, "▲ under the axis: an act of finwait") : null,
    el("details", null, el("summary", null, "The same as a table"), countsTable(counts, label)));
}

export async function settingsView(_place, _go, signal) {
  const made = await get("settings", {}, signal);
  const root = el("div", { class: "view" }, el("h2", null, "Settings"));
  if (made.at === null) {
    root.append(el("p", null, "Not read yet: the agent reads settings with a diagnosis, which it makes when something is stuck."));
    return root;
  }
  root.append(el("p", { class: "muted" }, "Read ", moment(made.at), ". Harmful ones come first, then those that were changed. ",
    el("code", null, "finwait tune explain KEY"), " has everything."));
  root.append(el("ul", { class: "cards" }, made.items.filter((item) => item.verdict !== "default").map((item) =>
    el("li", { class: `card ${item.verdict === "HARMFUL" ? "problem" : ""}` },
      el("h3", null, el("code", null, item.key), " = ", name(item.value), " ", el("span", { class: "chip" }, item.verdict)),
      el("p", null, item.title),
      el("p", null, prose(item.why)), item.instead ? el("p", null, "Instead: ", prose(item.instead)) : null,
      item.on_stuck ? el("p", null, "Now: ", prose(item.on_stuck)) : null,
      el("p", { class: "muted" }, `default ${item.default ?? "by memory"}, unit ${item.unit}, in ${some(item.namespaces, "namespace", "namespaces")}: `,
        item.where.map((each, k) => [k ? ", " : "", name(each)]))))));
  const plain = made.items.filter((item) => item.verdict === "default");
  if (plain.length) root.append(el("h3", null, "At their defaults"), table("Settings at their defaults", ["setting", "value", "what it is", "if it were changed now"],
    plain.map((item) => [el("code", null, item.key), name(item.value), item.title, prose(item.on_stuck || "")])));
  return root;
}

export async function journalView(_place, _go, signal) {
  const made = await get("journal", { limit: 200 }, signal);
  const root = el("div", { class: "view" }, el("h2", null, "Journal"));
  if (made.error) root.append(el("p", { class: "error" }, `The journal cannot be read: ${made.error}`));
  else if (!made.items.length) root.append(el("p", null, "Nothing was done on this machine by finwait."));
  else {
    root.append(el("p", { class: "muted" }, "What finwait did here, the latest first. ", el("code", null, "finwait undo ID"), " takes back what can be."),
      table("Acts", ["when", "who", "what", "to", "result", "why", "act"], made.items.map((item) => [moment(item.at), name(item.user), item.kind,
        name(item.whom), el("span", { class: item.failed ? "failed" : "" }, item.failed ? "✗ " : "", name(item.result)), name(item.why), item.id])));
  }
  return root;
}

export async function gapsView(_place, _go, signal) {
  const made = await get("gaps", {}, signal);
  const root = el("div", { class: "view" }, el("h2", null, "Gaps"));
  if (!made.items.length) {
    root.append(el("p", null, "Every part of the machine could be seen at the last looks."));
    return root;
  }
  root.append(el("p", null, "These parts of the machine could not be seen. What is stuck there is not in any number of this page."),
    table("Gaps", ["where", "could not", "needs"], made.items.map((gap) => [name(gap.where), name(gap.doing), gap.needs || "nothing would have helped"])));
  if (made.dropped) root.append(el("p", { class: "muted" }, `and ${some(made.dropped, "more", "more")}`));
  return root;
}

export async function aboutView(_place, _go, signal) {
  const made = await get("about", {}, signal);
  const up = (Date.parse(made.at) - Date.parse(made.started)) / 1000;
  const fact = (label, ...value) => el("div", null, el("dt", null, label), el("dd", null, value));
  return el("div", { class: "view" }, el("h2", null, "About this agent"),
    el("dl", { class: "facts wide" },
      fact("version", made.version), fact("process", `pid ${made.pid}, up ${span(up)}`),
      fact("processor", `${((100 * made.cpu_s) / Math.max(1, up)).toFixed(2)} % of one since the start; its share is ${(100 * made.share).toFixed(2)} %`),
      fact("looks", `${some(made.rounds, "round", "rounds")}, ${some(made.namespaces, "network namespace", "network namespaces")}, the longest unseen for ${span(made.unseen_s)}`),
      fact("open episodes", number(made.open), made.undiagnosed ? `, ${number(made.undiagnosed)} not diagnosed yet` : "",
        made.untracked ? `, ${number(made.untracked)} more than it can keep` : ""),
      fact("history", made.store ? [el("code", null, made.store), ` ${(made.store_bytes / 1e6).toFixed(1)} MB, ${some(made.store_errors, "failed write", "failed writes")}`] : "none"),
      made.store_said ? fact("history says", made.store_said) : null,
      fact("boot", el("code", null, made.boot_id))),
    el("p", null, "The same for programs: ", el("a", { href: "/api/v1/openapi.json" }, "/api/v1/openapi.json"), ", ", el("a", { href: "/metrics" }, "/metrics"), "."),
    el("p", { class: "muted" }, "This page only reads. Nothing here acts, and no question makes anybody look."));
}
