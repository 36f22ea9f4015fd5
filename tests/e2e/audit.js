// What a page owes everybody: names, roles, headings and contrast. Returns what is missing, as text.
(() => {
  const wrong = [];
  const seen = (e) => e.checkVisibility?.({ visibilityProperty: true, opacityProperty: false }) && e.getClientRects().length > 0;
  const say = (e, text) => wrong.push(`${text}: ${e.outerHTML.slice(0, 120)}`);
  const named = (e) => (e.getAttribute("aria-label") ?? "").trim()
    || (e.getAttribute("aria-labelledby") ?? "").split(/\s+/).map((id) => id && document.getElementById(id)?.textContent).join("").trim()
    || (e.labels?.length ? e.labels[0].textContent.trim() : "") || (e.getAttribute("title") ?? "").trim();
  const everything = [...document.querySelectorAll("body *")];

  if (!document.documentElement.lang) wrong.push("no language");
  if (!document.title.trim()) wrong.push("no title");
  for (const e of everything.filter(seen)) {
    const role = e.getAttribute("role");
    if (e.matches("button, a[href], summary") && !(e.textContent.trim() || named(e))) say(e, "no name");
    if (e.matches("input") && !named(e)) say(e, "no label");
    if (["img", "region", "listbox", "group", "search", "dialog"].includes(role) && !named(e) && e.localName !== "form") say(e, `no name for role ${role}`);
    if (role === "listbox") {
      const active = document.getElementById(e.getAttribute("aria-activedescendant"));
      if (active?.getAttribute("role") !== "option") say(e, "a listbox whose current entry is no option");
      if (!e.querySelector("[role=option][aria-selected][aria-setsize][aria-posinset]")) say(e, "a listbox whose options say no place");
    }
    if (role === "option" && !e.closest("[role=listbox]")) say(e, "option outside of a listbox");
    for (const pair of ["aria-activedescendant", "aria-labelledby", "aria-describedby"]) {
      for (const id of (e.getAttribute(pair) ?? "").split(/\s+/).filter(Boolean)) if (!document.getElementById(id)) say(e, `${pair} leads nowhere`);
    }
    if (e.closest("[aria-hidden=true]") && e.matches("a[href], button, input, [tabindex='0']")) say(e, "hidden, and can have the focus");
    if (e.matches("button") && e.closest("a[href]")) say(e, "a button in a link");
    if (e.matches("th") && !e.textContent.trim()) say(e, "an empty head");
    if (e.matches("table") && !e.querySelector("th")) say(e, "a table without heads");
    if (e.scrollWidth > e.clientWidth + 1 && /auto|scroll/.test(getComputedStyle(e).overflowX) && e.localName !== "svg"
      && e.tabIndex < 0 && !e.querySelector("a[href], button") && !e.contains(document.activeElement)) say(e, "scrolls, and the keyboard cannot get there");
  }
  const ids = everything.map((e) => e.id).filter(Boolean);
  for (const id of new Set(ids.filter((id, k) => ids.indexOf(id) !== k))) wrong.push(`id twice: ${id}`);
  let level = 0;
  for (const e of [...document.querySelectorAll("h1, h2, h3, h4")].filter((e) => e.getClientRects().length && !e.closest("dialog:not([open])"))) {
    const next = Number(e.localName[1]);
    if (next > level + 1) say(e, `a heading of level ${next} after ${level}`);
    level = next;
  }
  if (document.querySelectorAll("h1").length !== 1) wrong.push("not exactly one h1");
  if (document.querySelectorAll("main").length !== 1) wrong.push("not exactly one main");
  if ([...document.querySelectorAll("[aria-live]")].length !== 1) wrong.push("more than the headline is announced as it changes");

  // Contrast, WCAG 2.2: 4.5 of text, 3 of large text.
  const paint = (text) => {
    const canvas = paint.canvas ?? (paint.canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true }));
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = text;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const behind = (e) => {
    for (let at = e; at; at = at.parentElement) {
      const colour = paint(getComputedStyle(at).backgroundColor);
      if (colour[3] === 255) return colour;
    }
    return [255, 255, 255, 255];
  };
  const through = (e) => {
    let opacity = 1;
    for (let at = e; at; at = at.parentElement) opacity *= Number(getComputedStyle(at).opacity);
    return opacity;
  };
  for (const e of everything.filter(seen)) {
    if (![...e.childNodes].some((node) => node.nodeType === 3 && node.data.trim()) || e.closest(".hidden, option, title, noscript")) continue;
    const style = getComputedStyle(e), back = behind(e.closest("svg")?.parentElement ?? e);
    const ground = e.closest("svg .state") ? paint(getComputedStyle(e.closest(".state").querySelector("rect")).fill) : back;
    const ink = paint(e instanceof SVGElement ? style.fill : style.color), opacity = through(e) * (ink[3] / 255);
    const mixed = [0, 1, 2].map((k) => ink[k] * opacity + ground[k] * (1 - opacity));
    const [high, low] = [light(mixed), light(ground)].sort((a, b) => b - a);
    const size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    const ratio = (high + 0.05) / (low + 0.05);
    if (ratio < (large ? 3 : 4.5)) say(e, `contrast ${ratio.toFixed(2)}`);
  }
  if (document.documentElement.scrollWidth > window.innerWidth) wrong.push(`wider than the screen: ${document.documentElement.scrollWidth}`);
  return wrong;
})()
