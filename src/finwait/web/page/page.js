// The page: the headline, the views, the keys. What it shows comes from /api/v1, and is kept nowhere.

import { summed } from "./chart.js";
import { follow, get, setToken, takeToken } from "./data.js";
import { detail } from "./detail.js";
import { clean, copied, el, number, rate, some, span, svg } from "./dom.js";
import { diagram } from "./diagram.js";
import { GroupList, workload } from "./groups.js";
import { address, read, SPANS, views } from "./place.js";
import { aboutView, gapsView, historyView, journalView, settingsView } from "./views.js";

const TITLES = { now: "Now", history: "History", settings: "Settings", journal: "Journal", gaps: "Gaps", about: "About" };
const OTHERS = { history: historyView, settings: settingsView, journal: journalView, gaps: gapsView, about: aboutView };
const $ = (id) => document.getElementById(id);

let place = read();
let latest = null; // the last document of the stream
let shown = null; // the same, narrowed by the FILTER
let before = null; // the sockets of the look before
let changes = {};
let line = "connecting"; // live, lost, token, refused
let opened = null; // the group that is open
let pending = null; // what was asked for the view, to be given up
let wantsFocus = false;

// ── moving about ─────────────────────────────────────────────────────────────────────────────────────────

function go(change, replace) {
  const next = { ...place, ...change };
  const path = address(next);
  if (path !== address(place)) history[replace ? "replaceState" : "pushState"](null, "", path);
  const same = next.view === place.view && next.filter === place.filter && next.view === "now";
  place = next;
  if (same) openGroup();
  else show();
}

window.addEventListener("popstate", () => {
  place = read();
  $("filter").value = place.filter;
  show();
});

function tabs() {
  $("tabs").replaceChildren(...views.map((view, k) => el("li", null, el("a", {
    href: address({ ...place, view, group: "" }), "aria-current": view === place.view ? "page" : null, "aria-keyshortcuts": k + 1,
    onclick: (event) => {
      if (event.metaKey || event.ctrlKey || event.shiftKey) return;
      event.preventDefault();
      go({ view, group: "" });
    },
  }, TITLES[view], view === "gaps" && latest?.picture.gaps ? el("span", { class: "badge" }, latest.picture.gaps) : null))));
  document.title = `${TITLES[place.view]} · finwait`;
}

// ── the headline ─────────────────────────────────────────────────────────────────────────────────────────

function headline() {
  const picture = shown?.picture;
  if (line === "refused") return "This address serves no page without a token.";
  if (line === "token") return "A token is needed.";
  if (!picture) return line === "lost" ? "The agent does not answer." : "Waiting for the first look …";
  if (!picture.look_at_ns) return "Nothing is known yet: no look has succeeded.";
  const past = latest.looker !== "running" || line === "lost";
  const count = picture.stuck;
  const where = picture.filter ? " of this FILTER" : "";
  if (!count) {
    const seen = picture.gaps ? "that anybody could see " : "";
    return past ? `At the last look, no connection ${seen}was stuck${where}.` : `No connection ${seen}is stuck${where}.`;
  }
  const growing = picture.groups.reduce((sum, group) => sum + group.rate, 0);
  const trend = growing > 0 ? `, growing by ${rate(growing).slice(1).replace("/min", " a minute").replace("/h", " an hour")}` : "";
  const verb = past ? "did not finish closing at the last look" : count === 1 ? "does not finish closing" : "do not finish closing";
  return `${some(count, "connection", "connections")}${where} ${verb}${trend}.`;
}

function subline() {
  const picture = shown?.picture;
  if (!picture) return [];
  const parts = [];
  if (picture.stuck && picture.problems < picture.stuck) parts.push(`${number(picture.problems)} of them are problems`);
  const soonest = picture.groups.filter((group) => group.reached_s !== null).sort((a, b) => a.reached_s - b.reached_s)[0];
  if (soonest) parts.push(`${soonest.limit} of ${clean(workload(soonest))} is full in ${span(soonest.reached_s)}`);
  if (picture.undiagnosed) parts.push(`${number(picture.undiagnosed)} not diagnosed yet`);
  if (picture.gaps) parts.push(`${some(picture.gaps, "part", "parts")} of the machine could not be seen`);
  if (picture.untracked) parts.push(`${number(picture.untracked)} more than the agent can keep`);
  if (picture.unseen_s > Math.max(120, 4 * picture.interval_s)) parts.push(`a namespace was not looked at for ${span(picture.unseen_s)}`);
  if (picture.store_said) parts.push(`history: ${picture.store_said}`);
  return parts;
}

function drawTop() {
  const text = headline();
  if ($("headline").textContent !== text) $("headline").textContent = text; // announced only when it changes
  $("subline").textContent = subline().join(" · ");
  const worst = shown?.picture.problems ? "problem" : shown?.picture.stuck ? "notice" : "fine";
  document.body.dataset.state = line === "live" && latest?.looker === "running" && latest.picture.look_at_ns ? worst : "past";
  tabs();
}

function drawLive() {
  const age = latest?.picture.look_at_ns ? Date.now() / 1000 - latest.picture.look_at_ns / 1e9 : null;
  const ago = age === null ? "" : `look ${span(age)} ago`;
  const [state, text] = line === "lost" ? ["lost", `connection lost${ago ? `, ${ago}` : ""}`]
    : line === "token" ? ["lost", "token needed"] : line === "refused" ? ["lost", "refused"]
      : !latest ? ["wait", "connecting"]
        : latest.looker === "gone" ? ["lost", `the agent has ended, ${ago}`]
          : latest.looker === "slow" ? ["lost", `no look succeeds, ${ago}`] : ["live", ago];
  $("live").className = `live ${state}`;
  if ($("live-text").textContent !== text) $("live-text").textContent = text;
}

async function drawTrend() {
  let counts;
  try {
    counts = await get("counts", { since: "1h", filter: place.filter });
  } catch {
    $("trend").replaceChildren();
    return;
  }
  const totals = counts.at.map((_, k) => summed(counts, k));
  const top = Math.max(1, ...totals.map((total) => total ?? 0));
  const root = svg("svg", { viewBox: "0 0 120 36", class: "spark", "aria-hidden": "true", preserveAspectRatio: "none" });
  let d = "", fill = "", open = false, x = 0;
  [...totals, null].forEach((total, k) => {
    if (total === null) {
      if (open) fill += `L${x.toFixed(1)} 36Z`;
      open = false;
      return;
    }
    x = ((k + 0.5) / totals.length) * 120;
    const at = `${x.toFixed(1)} ${(33 - (total / top) * 30).toFixed(1)}`;
    if (!open) fill += `M${x.toFixed(1)} 36`;
    d += `${open ? "L" : "M"}${at}`;
    fill += `L${at}`;
    open = true;
  });
  root.append(svg("path", { d: fill, class: "spark-fill" }), svg("path", { d, class: "spark-line" }));
  const known = totals.map((total, k) => [total, counts.at[k]]).filter(([total]) => total !== null);
  const [first, last] = [known[0], known[known.length - 1]];
  const change = known.length > 1 ? last[0] - first[0] : null;
  const words = change === null ? "no trend yet"
    : `${change === 0 ? "unchanged" : `${change > 0 ? "+" : "−"}${number(Math.abs(change))}`} in ${span(last[1] - first[1])}`;
  $("trend").replaceChildren(root, el("span", { class: `trend-text ${change > 0 ? "up" : ""}` }, change > 0 ? "▲ " : change < 0 ? "▼ " : "", words));
}

// ── now ──────────────────────────────────────────────────────────────────────────────────────────────────

const list = new GroupList((id) => { wantsFocus = true; go({ group: id }); }, () => {});
const side = el("section", { class: "side", "aria-label": "Group" });
const nothing = el("p", { class: "empty" });
const nowView = el("div", { class: "now" }, el("h2", { class: "hidden" }, "Groups"), el("div", { class: "left" }, list.root, nothing), side);

function limits(picture) {
  const full = picture.limits.filter((limit) => limit.reached_s !== null || limit.used / limit.most > 0.2).slice(0, 8);
  if (!full.length) return null;
  return el("div", null, el("h3", null, "Limits"), el("ul", { class: "limits" }, full.map((limit) => {
    const share = Math.min(1, limit.used / Math.max(1, limit.most));
    const inner = el("span");
    inner.style.width = `${100 * share}%`;
    return el("li", null, el("span", { class: "limit-name" }, `${limit.limit} `, el("bdi", null, limit.subject || limit.workload)),
      el("span", { class: "meter", "aria-hidden": "true" }, inner),
      el("span", { class: "num" }, `${Math.round(100 * share)} %${limit.reached_s !== null ? `, full in ${span(limit.reached_s)}` : ""}`));
  })));
}

function drawNow() {
  if (place.view !== "now") return;
  if ($("main").firstChild !== nowView) $("main").replaceChildren(nowView);
  const picture = shown?.picture;
  list.root.hidden = !picture?.groups.length;
  nothing.hidden = Boolean(picture?.groups.length);
  if (!picture) {
    nothing.textContent = "";
    side.replaceChildren(line === "token" ? tokenForm() : "");
    return;
  }
  nothing.textContent = !picture.look_at_ns ? "No look has succeeded, so nothing can be said."
    : picture.filter ? "No stuck connection matches the FILTER." : picture.gaps
      ? "Nothing stuck was seen. Parts of the machine could not be seen: Gaps lists them." : "Nothing is stuck.";
  list.show(picture.groups, place.group);
  nowView.classList.toggle("opened", Boolean(place.group));
  document.body.classList.toggle("opened", Boolean(place.group));
  if (!place.group) {
    side.replaceChildren(el("div", { class: "overview" }, el("h3", null, "States"), diagram(picture.sockets, changes), limits(picture),
      picture.groups_dropped ? el("p", { class: "muted" }, `${some(picture.groups_dropped, "group", "groups")} more than the page shows; narrow the FILTER`) : null));
    opened = null;
  }
}

async function openGroup() {
  drawNow();
  if (!place.group) {
    list.box.focus({ preventScroll: true });
    return;
  }
  const id = place.group;
  let made;
  const journal = get("journal", { limit: 200 }).catch(() => null);
  try {
    made = await get(`group/${id}`, { filter: place.filter });
  } catch (error) {
    if (place.group !== id) return;
    const known = shown?.picture.groups.find((group) => group.id === id);
    if (known && error.status !== 404) made = { item: { group: known, cause: null, ends: [], more: 0 } };
    else {
      side.replaceChildren(el("article", { class: "detail" }, el("p", null, error.status === 404 ? "This group has ended, or nothing of it matches the FILTER." : error.message),
        el("button", { type: "button", class: "quiet", onclick: () => go({ group: "" }) }, "Close")));
      return;
    }
  }
  const acts = (await journal)?.items;
  if (place.group !== id || place.view !== "now") return;
  const key = JSON.stringify([made.item, acts?.length, latest?.picture.rounds]);
  if (opened === key && side.firstChild) return;
  opened = key;
  const active = side.contains(document.activeElement) ? document.activeElement : null;
  const index = active ? [...side.querySelectorAll("a,button,[tabindex]")].indexOf(active) : -1;
  const scroll = side.scrollTop, selection = String(window.getSelection());
  if (selection && side.contains(window.getSelection().anchorNode) && !wantsFocus) return; // somebody is copying
  side.replaceChildren(detail(made, shown?.picture.sockets ?? {}, changes, acts, () => go({ group: "" })));
  side.scrollTop = wantsFocus ? 0 : scroll;
  if (wantsFocus) $("detail-title").focus();
  else if (index >= 0) [...side.querySelectorAll("a,button,[tabindex]")][index]?.focus({ preventScroll: true });
  wantsFocus = false;
}

function tokenForm() {
  const input = el("input", { id: "token", type: "password", autocomplete: "off", required: true });
  return el("form", {
    class: "token", onsubmit: (event) => {
      event.preventDefault();
      setToken(input.value.trim());
      location.reload();
    },
  }, el("label", { for: "token" }, "Token"), input, el("button", { type: "submit" }, "Open"),
  el("p", { class: "muted" }, "It is in the file that the agent was given by --token-file. It stays in this tab."));
}

// ── showing ──────────────────────────────────────────────────────────────────────────────────────────────

async function narrow() {
  $("filter-error").textContent = "";
  if (!place.filter) {
    shown = latest;
    return;
  }
  try {
    const made = await get("picture", { filter: place.filter });
    if (made.picture.filter === place.filter) shown = made;
  } catch (error) {
    $("filter-error").textContent = `${error.message}${error.hint ? ` (${error.hint})` : ""}`;
    if (error.status === 400) shown = latest;
  }
}

async function show() {
  $("filter").value = place.filter;
  await narrow();
  drawTop();
  drawTrend();
  pending?.abort();
  document.body.classList.toggle("opened", place.view === "now" && Boolean(place.group));
  if (place.view === "now") {
    drawNow();
    if (place.group) openGroup();
    return;
  }
  if (line === "token") {
    $("main").replaceChildren(tokenForm());
    return;
  }
  pending = new AbortController();
  const { view } = place;
  try {
    const made = await OTHERS[view](place, go, pending.signal);
    if (place.view !== view) return;
    const pressed = document.activeElement?.closest?.(".choice")?.getAttribute("aria-label");
    $("main").replaceChildren(made);
    if (pressed) $("main").querySelector(`.choice[aria-label="${pressed}"] [aria-pressed=true]`)?.focus();
  } catch (error) {
    if (error.name === "AbortError") return;
    $("main").replaceChildren(el("p", { class: "error view" }, `${error.message} ${error.hint ?? ""}`,
      error.status === 503 ? " The view comes back when the agent answers." : ""));
  }
}

let trendAt = 0;
async function look(made) {
  if (made.picture.rounds !== latest?.picture.rounds) {
    const sockets = made.picture.sockets;
    changes = before ? Object.fromEntries(Object.keys(sockets).map((state) => [state, sockets[state] - (before[state] ?? 0)])) : {};
    before = sockets;
  }
  latest = made;
  await narrow();
  drawTop();
  drawLive();
  drawNow();
  if (place.view === "now" && place.group) openGroup();
  if (Date.now() - trendAt > 30000) {
    trendAt = Date.now();
    drawTrend();
  }
}

// ── keys ─────────────────────────────────────────────────────────────────────────────────────────────────

const KEYS = [
  ["1 … 6", "views"], ["j k", "next and previous group"], ["Enter", "open a group"], ["Esc", "close; leave the filter"],
  ["c", "copy the command that ends it"], ["/", "filter"], ["[ ]", "shorter and longer time, in History"], ["← →", "read the curve"], ["?", "these keys"],
];

function help() {
  const dialog = $("help");
  if (dialog.open) {
    dialog.close();
    return;
  }
  dialog.replaceChildren(el("h2", { id: "help-title" }, "Keys"),
    el("dl", { class: "keys" }, KEYS.map(([key, text]) => [el("dt", null, key.split(" ").map((part) => (part === "…" ? " … " : [el("kbd", null, part), " "]))), el("dd", null, text)])),
    el("h2", null, "FILTER"),
    el("p", null, "The grammar of ", el("code", null, "finwait"), " and ", el("code", null, "ss"), ", as far as an episode knows it:"),
    ["state close-wait", "dport = :443 and age > 10m", "rule = fin-wait2-held or comm = nginx", "severity = problem"].map((text) => el("p", null, el("code", null, text))),
    el("button", { type: "button", onclick: () => dialog.close() }, "Close"));
  dialog.showModal();
}

async function copyCommand() {
  const code = side.querySelector(".command code");
  const current = list.groups[list.at];
  if (code) code.parentNode.querySelector("button").click();
  else if (current?.command) $("said").textContent = await copied(current.command, list.rows.querySelector(".at"));
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const field = event.target instanceof HTMLInputElement;
  if (event.key === "Escape" && field) {
    $("filter").value = place.filter;
    event.target.blur();
    if (place.view === "now") list.box.focus({ preventScroll: true });
    return;
  }
  if (field || $("help").open) return;
  const acts = {
    "?": help, "/": () => $("filter").select(), c: copyCommand,
    j: () => place.view === "now" && (list.box.focus({ preventScroll: true }), list.move(1)),
    k: () => place.view === "now" && (list.box.focus({ preventScroll: true }), list.move(-1)),
    Escape: () => place.group && go({ group: "" }),
    "[": () => place.view === "history" && go({ since: SPANS[Math.max(0, SPANS.indexOf(place.since) - 1)] }),
    "]": () => place.view === "history" && go({ since: SPANS[Math.min(SPANS.length - 1, SPANS.indexOf(place.since) + 1)] }),
  };
  const view = views[Number(event.key) - 1];
  if (view) go({ view, group: "" });
  else if (event.key === "Enter" && event.target === document.body && place.view === "now") list.enter();
  else if (acts[event.key]) acts[event.key]();
  else return;
  event.preventDefault();
});

$("help-button").addEventListener("click", help);
$("filter-form").addEventListener("submit", (event) => {
  event.preventDefault();
  go({ filter: $("filter").value.trim() });
});

// ── begin ────────────────────────────────────────────────────────────────────────────────────────────────

takeToken();
tabs();
show();
setInterval(drawLive, 1000);
setInterval(() => { if (place.view !== "now" && line === "live" && document.visibilityState === "visible" && !["settings"].includes(place.view) && !$("main").contains(document.activeElement)) show(); }, 30000);
follow(look, (state) => {
  const returned = state === "live" && line === "lost";
  line = state;
  drawTop();
  drawLive();
  if (state === "token" || state === "refused" || (returned && place.view !== "now")) show();
  else drawNow();
});
