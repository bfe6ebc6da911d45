"use strict";
// What is said of a chosen node: its facts, collectives, parameters and alternatives.

const details = (() => {
  const box = document.getElementById("details");
  const { texts } = model;
  const kinds = { module: "module", ops: "ops in a row", op: "op", parameter: "parameter", input: "argument" };

  function facts(pairs) {
    const list = element("dl");
    for (const [name, value] of pairs) {
      if (value !== undefined && value !== "") list.append(element("dt", {}, name), element("dd", {}, value));
    }
    return list;
  }

  function title(node) {
    const heading = element("h3", { tabindex: "-1" });
    model.fullPath(node).split(/(?<=[./_])/).forEach((part) => heading.append(part, element("wbr")));
    return heading;
  }

  function where(node) {
    if (!report.data.stages) return undefined;
    const at = [...node.at.keys()].sort((a, b) => a - b);
    return at.length ? at.join(", ") : String(node.stage);
  }

  const laid = (node) => `${texts[node.words]} – ${texts[node.layout]}`;

  function facing(node) {
    const count = model.occurrences(node);
    const times = count > 1 ? ` (${seconds(node.work)} each)` : "";
    const said = [["kind", kinds[node.k] + (count > 1 ? `, ${count} alike` : "")]];
    if (where(node) !== undefined) said.push(["stage", where(node)]);
    if (node.k === "op") {
      said.push(["op", texts[node.op]], ["strategy", texts[node.choice]]);
      said.push(["result", `${texts[node.shape]}, ${laid(node)}`]);
      said.push(["forward", seconds(node.f)], ["backward", seconds(node.b)]);
      if (count > 1) said.push(["all together", seconds(model.total(node))]);
      if (node.norule) said.push(["rule", "none: every rank runs all of it"]);
    } else if (node.k === "parameter" || node.k === "input") {
      said.push(["whole", texts[node.shape]], ["on a rank", `${texts[node.local]} at most`]);
      said.push(["stored", laid(node)]);
      if (node.use !== undefined) said.push(["read as", texts[node.use]]);
    } else {
      said.push(["work in a step", `${seconds(model.total(node))}${times}`]);
      if (model.moving(node)) said.push(["moves in a step", seconds(model.moving(node))]);
      const lay = report.data.layouts[node.main];
      if (lay) said.push(["mostly", `${lay.words} – ${lay.text}`]);
      if (node.again) said.push(["recomputed", "runs forward again in backward"]);
    }
    return facts(said);
  }

  function moves(node) {
    const lines = [];
    const add = (numbers) => numbers?.forEach((number) => lines.push(texts[number]));
    const inside = new Set();
    (function collect(each) {
      inside.add(each.id);
      each.children.forEach(collect);
    })(node);
    add(node.moves);
    add(node.between);
    for (const [from, to, , moved] of model.edges) {
      if (inside.has(to) && (!inside.has(from) || node.k !== "module")) {
        moved.forEach((text) => lines.push(`what it reads: ${texts[text]}`));
      } else if (inside.has(from) && !inside.has(to)) {
        moved.forEach((text) => lines.push(`its result: ${texts[text]}`));
      }
    }
    return [...new Set(lines)];
  }

  function list(name, lines, most = 12) {
    if (!lines.length) return [];
    const items = lines.slice(0, most).map((line) => element("li", {}, line));
    if (lines.length > most) items.push(element("li", {}, `and ${lines.length - most} more`));
    return [element("h4", {}, name), element("ul", {}, ...items)];
  }

  function alternatives(node) {
    if (!node.alt) return [];
    const largest = report.data.step_s * 1e-6;
    const rows = node.alt.map(([choice, layout, time, memory, fits, mine]) => {
      const row = element("tr", mine ? { class: "mine" } : {},
        element("td", {}, element("code", {}, texts[choice]), element("br"), element("small", {}, texts[layout])));
      if (mine) {
        row.append(element("td", { class: "number" }, "this plan"), element("td", { class: "number" }, ""));
      } else if (time === null) {
        row.append(element("td", { class: "number", colspan: "2" }, "not beside the other choices"));
      } else {
        row.append(element("td", { class: "number" }, change(time, seconds, largest)),
          element("td", { class: "number" }, change(memory, bytes, 1000) + (fits ? "" : ", does not fit")));
      }
      return row;
    });
    const head = ["choice", "step time", "peak memory"].map((text, at) =>
      element("th", { scope: "col", ...(at ? { class: "number" } : {}) }, text));
    const table = element("table", { class: "alternatives" },
      element("caption", {}, "Added at most, with the choices near it solved again"
        + (model.occurrences(node) > 1 ? "; in one of the equal blocks" : "")),
      element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...rows));
    const like = node.like ? [element("p", {}, `Found for the same decision of another block: ${node.like}.`)] : [];
    const more = node.more ? [element("p", {}, `${node.more} more choices, which cost more by themselves, were not tried.`)] : [];
    return [element("h4", {}, "Alternatives"), element("div", { class: "scroll" }, table), ...like, ...more];
  }

  /** A link to another node. */
  function link(node, text) {
    const button = element("button", { type: "button" }, text ?? model.label(node));
    button.addEventListener("click", () => workbench.choose(node, { reveal: true }));
    return button;
  }

  function parts(node) {
    const within = [];
    (function collect(each) {
      for (const child of each.children) {
        if (child.alt) within.push(child);
        collect(child);
      }
    })(node);
    if (!within.length) return [];
    within.sort((a, b) => model.total(b) - model.total(a));
    const items = within.slice(0, 12).map((each) => element("li", {}, link(each, each.path.slice(node.path.length).replace(/^[./]/, "") || each.name)));
    return [element("h4", {}, "Decisions in it, the longest first"), element("ul", { class: "links" }, ...items)];
  }

  function weights(node) {
    if (node.k !== "module") return [];
    const held = [];
    (function collect(each) {
      for (const child of each.children) {
        if (child.k === "parameter") held.push(child);
        collect(child);
      }
    })(node);
    if (!held.length) return [];
    const several = new Set(held.map((child) => child.stage)).size > 1;
    const rows = held.map((child) => {
      const name = child.path.slice(node.path.length).replace(/^\./, "");
      const also = [child.tied ? "tied" : "", several ? `stage ${child.stage}` : ""].filter(Boolean).join(", ");
      return [also ? `${name} (${also})` : name, texts[child.shape], texts[child.words],
        child.use === undefined ? "as stored" : texts[child.use]];
    });
    const shown = rows.slice(0, 24);
    const caption = `Parameters${rows.length > 24 ? `, the first 24 of ${rows.length}` : ""}`;
    return [element("h4", {}, "Parameters"), tableOf(caption, ["path", "whole", "stored", "read"], shown)];
  }

  function unknown(node) {
    if (node.alt || node.k === "module" || node.k === "ops" || node.k === "input") return [];
    const why = report.data.known
      ? (node.view ? "It only renames memory and takes no time; its alternatives were not asked for."
        : `It has no other choice${report.data.left_out ? ", or was left out to end in time" : ""}: plan.explain(path) says what was chosen, and why.`)
      : "Alternatives are not known: the plan was read from a file, without its model.";
    return [element("h4", {}, "Alternatives"), element("p", {}, why)];
  }

  function show(node) {
    const openable = workbench.canOpen(node);
    const buttons = element("p", { class: "buttons" });
    if (openable) {
      const button = element("button", { type: "button", id: "open-node" }, workbench.isOpen(node) ? "Fold" : "Open in the graph");
      button.addEventListener("click", () => workbench.toggle(node));
      buttons.append(button);
    }
    if (node.parent && node.parent !== model.root) buttons.append(link(node.parent, `Up to ${node.parent.name}`));
    box.replaceChildren(title(node), facing(node), buttons, ...alternatives(node), ...unknown(node),
      ...list("What moves", moves(node)), ...parts(node), ...weights(node));
    box.scrollTop = 0;
  }

  return { show, kinds };
})();
