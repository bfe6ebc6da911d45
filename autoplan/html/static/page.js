"use strict";
// What all scripts share: the plan's data, units, elements, the tip, and the theme.

const report = {
  data: JSON.parse(document.getElementById("plan-data").textContent),
  reducedMotion: matchMedia("(prefers-reduced-motion: reduce)").matches,
};

/** Three digits, without an exponent. */
function digits(value) {
  return String(Number(value.toPrecision(value >= 1000 ? 4 : 3)));
}

function seconds(value) {
  const size = Math.abs(value);
  for (const [unit, scale] of [["s", 1], ["ms", 1e-3], ["us", 1e-6]]) {
    if (size >= scale) return `${digits(value / scale)} ${unit}`;
  }
  return size ? `${Number((value / 1e-6).toPrecision(2))} us` : "0 s";
}

function bytes(value) {
  const size = Math.abs(value);
  for (const [unit, scale] of [["TB", 1e12], ["GB", 1e9], ["MB", 1e6], ["kB", 1e3]]) {
    if (size >= scale) return `${Number((value / scale).toPrecision(4))} ${unit}`;
  }
  return `${Math.round(value)} B`;
}

/** With a sign, and "no change" for what is nothing beside `least`. */
function change(value, spell, least = 0) {
  if (Math.abs(value) <= least) return "±0";
  return (value > 0 ? "+" : "−") + spell(Math.abs(value));
}

/** An element: attributes, then children, which are elements or plain text. */
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== null) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

/** A table with a caption; `numeric`: columns flush right. */
function tableOf(caption, head, rows, numeric = []) {
  const kind = (at) => (numeric.includes(at) ? { class: "number" } : {});
  return element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    element("table", {},
      element("caption", {}, caption),
      element("thead", {}, element("tr", {},
        ...head.map((text, at) => element("th", { scope: "col", ...kind(at) }, text)))),
      element("tbody", {}, ...rows.map((row) => element("tr", {},
        ...row.map((text, at) => element("td", kind(at), text)))))));
}

const tip = {
  box: document.getElementById("tip"),
  show(event, text) {
    this.box.textContent = text;
    this.box.hidden = false;
    const { offsetWidth: width, offsetHeight: height } = this.box;
    const left = Math.min(event.clientX + 14, innerWidth - width - 8);
    const top = event.clientY + 18 + height > innerHeight ? event.clientY - height - 10 : event.clientY + 18;
    this.box.style.left = `${Math.max(8, left)}px`;
    this.box.style.top = `${Math.max(8, top)}px`;
  },
  hide() {
    this.box.hidden = true;
  },
};

/** Runs `draw` when `target` comes near the screen, and again after its width changed. */
function whenSeen(target, draw) {
  if (!target) return;
  let width = 0;
  let seen = false;
  const again = () => {
    const now = Math.floor(target.clientWidth);
    if (seen && now && now !== width) {
      width = now;
      draw(now);
    }
  };
  new IntersectionObserver((entries, observer) => {
    if (entries.some((entry) => entry.isIntersecting)) {
      seen = true;
      observer.disconnect();
      again();
    }
  }, { rootMargin: "300px" }).observe(target);
  new ResizeObserver(again).observe(target);
  addEventListener("beforeprint", () => { seen = true; again(); });
}

(function theme() {
  const button = document.getElementById("theme");
  const isDark = () => {
    const set = document.documentElement.dataset.theme;
    return set ? set === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  };
  const show = () => button.setAttribute("aria-pressed", String(isDark()));
  button.addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    show();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
  show();
})();
