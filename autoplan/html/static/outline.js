"use strict";
// The model as a list that the keyboard walks, and the search: both choose nodes.

const outline = (() => {
  const tree = document.getElementById("outline");
  const items = new Map();

  function made(node) {
    const item = element("li", { role: "treeitem", tabindex: "-1", "aria-selected": "false" });
    const twist = element("span", { class: "twist", "aria-hidden": "true" });
    const cost = model.total(node) ? seconds(model.total(node)) : "";
    const kind = node.k === "module" ? "" : ` — ${details.kinds[node.k]}`;
    item.append(element("div", { class: "row" }, twist, element("span", {}, name(node) + kind),
      element("span", { class: "cost" }, cost)));
    items.set(node, item);
    item.node = node;
    if (node.children.length) item.setAttribute("aria-expanded", "false");
    twist.textContent = node.children.length ? "▸" : "";
    item.firstChild.addEventListener("click", () => {
      workbench.choose(node, { reveal: true });
      expand(node, item.getAttribute("aria-expanded") === "false");
      focus(item);
    });
    return item;
  }

  function name(node) {
    if (!node.members) return node.name;
    return `${node.members[0]}–${node.members[node.members.length - 1]} (×${node.members.length})`;
  }

  function expand(node, open) {
    const item = items.get(node);
    if (!node.children.length || !item) return;
    item.setAttribute("aria-expanded", String(open));
    item.querySelector(".twist").textContent = open ? "▾" : "▸";
    item.querySelector(":scope > ul")?.remove();
    if (open) item.append(element("ul", { role: "group" }, ...node.children.map(made)));
  }

  function reveal(node) {
    const above = [];
    for (let each = node.parent; each; each = each.parent) above.unshift(each);
    above.forEach((each) => {
      if (items.get(each)?.getAttribute("aria-expanded") === "false") expand(each, true);
    });
    tree.querySelectorAll("[aria-selected=true]").forEach((each) => each.setAttribute("aria-selected", "false"));
    const item = items.get(node);
    item?.setAttribute("aria-selected", "true");
    if (item) tabbable(item);
    item?.firstChild.scrollIntoView?.({ block: "nearest" });
  }

  function tabbable(item) {
    tree.querySelectorAll("[tabindex='0']").forEach((each) => each.setAttribute("tabindex", "-1"));
    item.setAttribute("tabindex", "0");
  }

  function focus(item) {
    tabbable(item);
    item.focus({ preventScroll: true });
    item.firstChild.scrollIntoView({ block: "nearest" });
  }

  tree.addEventListener("keydown", (event) => {
    const item = event.target.closest("[role=treeitem]");
    if (!item) return;
    const all = [...tree.querySelectorAll("[role=treeitem]")];
    const at = all.indexOf(item);
    const open = item.getAttribute("aria-expanded");
    const next = {
      ArrowDown: () => all[at + 1], ArrowUp: () => all[at - 1], Home: () => all[0], End: () => all[all.length - 1],
      ArrowRight: () => (open === "false" ? expand(item.node, true) : open === "true" ? all[at + 1] : undefined),
      ArrowLeft: () => (open === "true" ? expand(item.node, false) : item.parentElement.closest("[role=treeitem]")),
      Enter: () => workbench.choose(item.node, { reveal: true }),
      " ": () => workbench.choose(item.node, { reveal: true }),
    }[event.key];
    if (!next) return;
    event.preventDefault();
    event.stopPropagation();
    const target = next();
    if (target) focus(target);
  });

  function start() {
    tree.append(made(model.root));
    items.get(model.root).setAttribute("tabindex", "0");
    expand(model.root, true);
  }

  return { start, reveal };
})();

(function search() {
  const input = document.getElementById("search");
  const results = document.getElementById("results");
  let hits = [];
  let at = -1;

  function close() {
    results.hidden = true;
    input.setAttribute("aria-expanded", "false");
    input.removeAttribute("aria-activedescendant");
  }

  function mark(number) {
    at = number;
    [...results.children].forEach((each, n) => each.setAttribute("aria-selected", String(n === at)));
    const item = results.children[at];
    if (item?.id) {
      input.setAttribute("aria-activedescendant", item.id);
      item.scrollIntoView({ block: "nearest" });
    }
  }

  function choose(hit) {
    if (!hit) return;
    input.value = hit.path;
    close();
    workbench.choose(hit.node, { reveal: true });
  }

  function show() {
    hits = model.search(input.value);
    results.replaceChildren(...hits.map((hit, number) => {
      const within = hit.path === hit.node.path ? "" : `, shown as ${model.fullPath(hit.node)}`;
      const item = element("li", { role: "option", id: `result-${number}`, "aria-selected": "false" },
        hit.path, element("small", {}, details.kinds[hit.node.k] + within));
      item.addEventListener("mousedown", (event) => event.preventDefault());
      item.addEventListener("click", () => choose(hit));
      return item;
    }));
    if (!hits.length && input.value.trim()) results.append(element("li", { role: "option", "aria-disabled": "true" }, "Nothing is called so."));
    results.hidden = !input.value.trim();
    input.setAttribute("aria-expanded", String(!results.hidden));
    mark(hits.length ? 0 : -1);
  }

  input.addEventListener("input", show);
  input.addEventListener("focus", () => input.value && show());
  input.addEventListener("blur", close);
  input.addEventListener("keydown", (event) => {
    if (event.key === "Escape") close();
    if (results.hidden) return;
    if (event.key === "ArrowDown") mark(Math.min(at + 1, hits.length - 1));
    else if (event.key === "ArrowUp") mark(Math.max(at - 1, 0));
    else if (event.key === "Enter") choose(hits[at]);
    else return;
    event.preventDefault();
  });
})();
