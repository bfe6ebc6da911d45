"use strict";
// Sortable tables, the mesh's groups, and the mark of the section that is read.

function sortBy(table, column) {
  const heads = [...table.tHead.rows[0].cells];
  const head = heads[column];
  const numeric = head.classList.contains("number");
  const now = head.getAttribute("aria-sort");
  const way = now === "none" ? (numeric ? "descending" : "ascending")
    : now === "ascending" ? "descending" : "ascending";
  heads.forEach((each) => each.setAttribute("aria-sort", each === head ? way : "none"));
  const key = (row) => {
    const cell = row.cells[column];
    return numeric ? Number(cell.dataset.value ?? -Infinity) : cell.textContent;
  };
  const compare = numeric ? (a, b) => a - b
    : (a, b) => a.localeCompare(b, "en", { numeric: true });
  const sign = way === "ascending" ? 1 : -1;
  const rows = [...table.tBodies[0].rows].map((row) => [key(row), row]);
  rows.sort((a, b) => sign * compare(a[0], b[0]));
  table.tBodies[0].append(...rows.map(([, row]) => row));
}

for (const button of document.querySelectorAll("th button")) {
  const head = button.closest("th");
  button.addEventListener("click", () => sortBy(head.closest("table"), head.cellIndex));
}

/** Colours ranks by their group on one axis, which also stands under their number. */
function showAxis(axis) {
  const groups = new Map();
  for (const cell of document.querySelectorAll("#meshgrid .rank")) {
    const at = cell.dataset.at.split(",");
    const others = at.filter((_, number) => number !== axis).join(",");
    if (!groups.has(others)) groups.set(others, groups.size);
    const group = groups.get(others);
    cell.className = `rank o${group % 8}`;
    cell.querySelector("small")?.remove();
    cell.append(element("small", {}, `group ${group}`));
  }
  document.querySelectorAll("#axes button").forEach((button, number) =>
    button.setAttribute("aria-pressed", String(number === axis)));
}

(function mesh() {
  const box = document.getElementById("axes");
  if (!box) return;
  box.hidden = false;
  box.append("Groups on: ");
  report.data.axes.forEach((name, axis) => {
    const button = element("button", { type: "button" }, name);
    button.addEventListener("click", () => showAxis(axis));
    box.append(button);
  });
  showAxis(report.data.axes.length - 1);
})();

(function sections() {
  const links = new Map([...document.querySelectorAll("nav a")].map((a) => [a.hash.slice(1), a]));
  const observer = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      links.forEach((link) => link.removeAttribute("aria-current"));
      links.get(entry.target.id)?.setAttribute("aria-current", "true");
    }
  }, { rootMargin: "-20% 0px -70% 0px" });
  document.querySelectorAll("main > section").forEach((each) => observer.observe(each));
})();
