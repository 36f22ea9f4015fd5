// One group: what ends it, why, since when, and both ends of some of its connections.

import { command, el, moment, name, number, prose, rate, some, span, table } from "./dom.js";
import { diagram } from "./diagram.js";
import { sureness, whose, workload } from "./groups.js";

// What it costs meanwhile.
const HARMS = {
  outage: "clients are turned away or get no answer", stall: "data waits",
  leak: "descriptors and memory pile up", residue: "nobody misses anything",
};
const FATES = {
  never: "it never ends by itself", peer: "only the peer can end it", keepalive: "keepalive ends it if the peer is dead",
  retries: "it ends when the retries are used up", timer: "a timer ends it", unknown: "whether it ends by itself is unknown",
};

function fact(label, ...value) {
  return el("div", null, el("dt", null, label), el("dd", null, value));
}

function endCard(title, state, address, holder, netns, more) {
  return el("div", { class: "end" }, el("h4", null, title),
    el("p", { class: "address" }, name(address)),
    el("p", null, state ? el("span", { class: "chip" }, state) : null, " ",
      holder === null ? "held by: unknown" : holder === "" ? "held by nobody" : ["held by ", name(holder)]),
    netns ? el("p", { class: "muted" }, `netns ${netns}`, (more ?? []).map((each) => [" ", name(each)])) : null);
}

function pair(end) {
  const other = end.other_end;
  const age = end.age_s.at_most === null || span(end.age_s.at_most) === span(end.age_s.at_least)
    ? `${end.age_s.at_most === null ? "at least " : ""}${span(end.age_s.at_least)}`
    : `${span(end.age_s.at_least)} to ${span(end.age_s.at_most)}`;
  return el("li", { class: "pair" },
    el("p", { class: "muted" }, `in this state for ${age}, seen since `, moment(end.first_seen), ` · cookie ${end.cookie}`),
    el("div", { class: "ends" },
      endCard("this end", end.state, end.local, end.holder, end.netns, end.netns_names),
      el("span", { class: "between", "aria-hidden": "true" }, "⇄"),
      other
        ? endCard("other end, on this machine", other.state ?? "", end.peer, other.holder === "?" ? null : other.holder, other.netns)
        : endCard("other end", "", end.peer, null, 0)),
    end.translated ? el("p", { class: "muted" }, "translated to ", name(end.translated.local), " ⇄ ", name(end.translated.peer)) : null);
}

function remedies(cause, group) {
  if (!cause) {
    return group.command ? [el("h3", null, "What ends it"), el("p", null, prose(group.ends_it)), command(group.command)] : [];
  }
  return [
    el("h3", null, "What ends it"),
    cause.about < group.count ? el("p", { class: "muted" },
      `Evidence and commands are about ${number(cause.about)} of the ${number(group.count)}: those of one process, as of the diagnosis.`) : null,
    el("ul", { class: "remedies" }, cause.ends_it.map((remedy) => el("li", null,
      el("p", null, prose(remedy.text), remedy.kind === "destructive" ? el("span", { class: "chip warn" }, "destructive") : null),
      remedy.command ? command(remedy.command) : null))),
    cause.does_not.length ? [el("h3", null, "What does not help"),
      el("dl", { class: "not" }, cause.does_not.map((advice) => [el("dt", null, prose(advice.text)), el("dd", null, prose(advice.reason))]))] : [],
  ];
}

function done(acts, group) {
  const mine = acts.filter((act) => act.why === group.rule).slice(0, 3);
  return [el("h3", null, "What was done"), mine.length
    ? table("Acts for this cause", ["when", "who", "what", "to", "result"], mine.map((act) =>
      [moment(act.at), name(act.user), act.kind, name(act.whom), name(act.result)]))
    : el("p", { class: "muted" }, "The journal has no act for this cause.")];
}

export function detail(document, sockets, changes, acts, onClose) {
  const { group, cause, ends, more } = document.item;
  const close = el("button", { type: "button", class: "quiet close", onclick: onClose }, "Close ", el("kbd", null, "Esc"));
  const several = Object.keys(group.confidences ?? {}).length > 1;
  const reason = cause?.reason ? [": ", prose(cause.reason)] : "";
  const sure = several ? [el("strong", null, sureness(group)), cause ? ["; of the largest part ", cause.confidence, reason] : ""]
    : cause ? [el("strong", null, cause.confidence), reason] : group.confidence || "not diagnosed yet";
  const others = cause?.others ? el("p", { class: "muted" },
    `This is said of the largest part, ${some(cause.about, "end", "ends")}. ${some(cause.others, "other finding has", "other findings have")} the same cause and may say something else. This shows each: `,
    el("code", null, `finwait rule = ${group.rule}`)) : null;
  return el("article", { class: "detail", "aria-labelledby": "detail-title" },
    close,
    el("p", { class: `eyebrow ${group.severity}` }, group.severity, " · ", el("code", null, group.rule)),
    el("h2", { id: "detail-title", tabindex: "-1" }, name(workload(group))),
    el("p", { class: "lead" }, prose(cause?.title || group.title || "No diagnosis has seen these connections yet.")),
    others,
    el("p", null, el("span", { class: "label" }, "How sure "), sure),
    el("dl", { class: "facts" },
      fact("stuck", number(group.count), group.rate ? el("span", { class: "grow" }, ` ${rate(group.rate)}`) : ""),
      fact("oldest", span(group.oldest_s)),
      fact("move", whose(group.whose), group.act ? [": ", prose(`\`${group.act}\``)] : ""),
      group.reached_s !== null ? fact("limit", `${group.limit} full in ${span(group.reached_s)}`) : null,
      fact("held by", group.holders.length ? group.holders.map((each, k) => [k ? ", " : "", name(each)]) : "nobody, or unknown")),
    cause?.ends || group.harm ? el("p", null, el("span", { class: "label" }, "If nobody acts "), [
      cause?.ends ? [FATES[cause.ends] ?? cause.ends, cause.ends_why ? [": ", prose(cause.ends_why)] : ""] : "",
      cause?.ends && HARMS[group.harm] ? "; meanwhile " : "", HARMS[group.harm] ?? ""]) : null,
    remedies(cause, group),
    acts ? done(acts, group) : null,
    cause?.evidence.length ? [el("h3", null, "Evidence"),
      table("Evidence", ["observed", "value", "which says", "read from"],
        cause.evidence.map((e) => [el("code", null, e.column), name(e.value), prose(e.says), e.read_from]))] : null,
    el("h3", null, "Connections"),
    el("ul", { class: "pairs" }, ends.map(pair)),
    more ? el("p", { class: "muted" }, `${some(more, "more end", "more ends")}: `, el("code", null, `finwait list rule = ${group.rule}`)) : null,
    el("h3", null, "States"),
    diagram(sockets, changes, new Set(Object.keys(group.states))),
    cause ? el("p", { class: "muted" }, "Diagnosed ", moment(cause.at), ".") : null);
}
