// What is shown, in the address: a link to a view can be sent, and Back works.

const VIEWS = ["now", "history", "settings", "journal", "gaps", "about"];
export const SPANS = ["1h", "6h", "24h", "2d", "7d", "30d", "90d"];

export const views = VIEWS;

export function read() {
  const query = new URLSearchParams(location.search);
  const view = query.get("view"), since = query.get("since"), by = query.get("by");
  return {
    view: VIEWS.includes(view) ? view : "now",
    filter: (query.get("filter") ?? "").slice(0, 2000),
    group: /^[0-9a-f]{16}$/.test(query.get("group") ?? "") ? query.get("group") : "",
    since: SPANS.includes(since) ? since : "24h",
    by: by === "workload" ? "workload" : "rule",
  };
}

export function address(place) {
  const query = new URLSearchParams();
  if (place.view !== "now") query.set("view", place.view);
  if (place.filter) query.set("filter", place.filter);
  if (place.group && place.view === "now") query.set("group", place.group);
  if (place.view === "history") {
    query.set("since", place.since);
    if (place.by !== "rule") query.set("by", place.by);
  }
  const text = query.toString();
  return text ? `/?${text}` : "/";
}
