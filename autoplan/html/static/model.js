"use strict";
// The model as a tree of nodes, which of them are drawn, and how they are found.

const model = (() => {
  const { nodes: rows, edges, texts, layouts } = report.data;
  const nodes = rows.map((row, id) => ({ ...row, id, children: [], text: (n) => texts[n] }));
  for (const node of nodes) {
    if (node.up !== undefined) {
      node.parent = nodes[node.up];
      node.parent.children.push(node);
    }
  }
  const root = nodes[0];
  const isNumber = (name) => /^\d+$/.test(name);

  /** The innermost node that holds two: what passes between them runs inside of it. */
  function common(one, other) {
    const above = new Set();
    for (let each = one; each; each = each.parent) above.add(each);
    let found = other;
    while (!above.has(found)) found = found.parent;
    return found;
  }
  for (const [from, to, time] of edges) {
    const node = common(nodes[from], nodes[to]);
    node.inside = (node.inside ?? 0) + (time ?? 0);
  }

  // Sums, from the leaves up: a parent stands before its children.
  for (let at = nodes.length - 1; at >= 0; at -= 1) {
    const node = nodes[at];
    node.count = node.members ? node.members.length : 1;
    node.work = (node.f ?? 0) + (node.b ?? 0);
    node.comm = ((node.moves_s ?? 0) + (node.between_s ?? 0) + (node.inside ?? 0)) / occurrences(node);
    node.drawn = node.k === "input" || (node.k === "op" && !node.view);
    node.spent = new Map(node.lay === undefined ? [] : [[node.lay, node.work + 1e-12]]);
    node.at = new Map(node.k === "op" || node.k === "input" ? [[node.stage ?? 0, node.work + 1e-12]] : []);
    for (const child of node.children) {
      node.work += child.work * child.count;
      node.comm += child.comm * child.count;
      node.drawn ||= child.drawn;
      child.spent.forEach((s, lay) => node.spent.set(lay, (node.spent.get(lay) ?? 0) + s * child.count));
      child.at.forEach((s, stage) => node.at.set(stage, (node.at.get(stage) ?? 0) + s * child.count));
    }
    node.main = [...node.spent].sort((a, b) => b[1] - a[1])[0]?.[0];
  }

  /** How many of the model's own places a node stands for. */
  function occurrences(node) {
    let count = 1;
    for (let each = node; each; each = each.parent) count *= each.members?.length ?? 1;
    return count;
  }

  const total = (node) => node.work * occurrences(node);
  const moving = (node) => node.comm * occurrences(node);

  /** Containers of numbered blocks are open from the beginning, and have no frame. */
  const plain = new Set();
  (function open(node) {
    const holds = (each) => each.k === "module"
      && (isNumber(each.name) || each.children.some(holds));
    if (node !== root && (isNumber(node.name) || !node.children.some(holds))) return;
    if (node.k !== "module") return;
    plain.add(node);
    node.children.forEach(open);
  })(root);

  function label(node) {
    if (node === root) return node.name;
    const parent = node.parent;
    const above = parent === root ? "" : parent.path.split(".").slice(-2).join(".");
    if (node.k === "module" && isNumber(node.name)) {
      const members = node.members;
      const which = members ? `${members[0]}–${members[members.length - 1]}` : node.name;
      const within = parent === root ? "layer" : plain.has(parent) ? above : parent.name;
      return members ? `${within} ${which} (×${members.length})` : `${within} ${which}`;
    }
    if (node.k === "op") return node.name.replace(/#1$/, "");
    if (node.k === "ops") return `${node.name}`;
    return plain.has(parent) && parent !== root ? `${parent.name}.${node.name}` : node.name;
  }

  /** The path, with the numbers of all blocks that it stands for. */
  function fullPath(node) {
    if (node === root) return node.name;
    const parts = [];
    for (let each = node; each.parent; each = each.parent) {
      if (each.members) {
        const spelled = `{${each.members[0]}..${each.members[each.members.length - 1]}}`;
        parts.push([each.path, `${each.path.slice(0, -each.name.length)}${spelled}`]);
      }
    }
    let path = node.path;
    for (const [from, to] of parts) {
      if (path.startsWith(from)) path = to + path.slice(from.length);
    }
    return path;
  }

  /** Every real path with its node, those of folded blocks, too. */
  function index() {
    const found = [];
    (function visit(node, paths) {
      if (node !== root) paths.slice(0, 4000).forEach((path) => found.push({ path, node, low: path.toLowerCase() }));
      for (const child of node.children) {
        let own = paths.map((path) => (child.path.startsWith(node.path) && node !== root
          ? path + child.path.slice(node.path.length) : child.path));
        if (node.k === "ops") own = [child.path];
        if (child.members) {
          own = own.flatMap((path) => child.members.map((name) => path.slice(0, path.length - child.name.length) + name));
        }
        visit(child, found.length > 60000 ? own.slice(0, 1) : own);
      }
    })(root, [""]);
    return found;
  }

  let known;
  function search(text, most = 40) {
    known ??= index();
    const words = text.toLowerCase().trim().split(/\s+/).filter(Boolean);
    if (!words.length) return [];
    const hits = known.filter((each) => words.every((word) => each.low.includes(word)));
    const rank = (each) => (each.node.k === "module" ? 0 : each.node.k === "parameter" ? 2 : 1)
      + (each.low.endsWith(words[words.length - 1]) ? -3 : 0) + each.path.length / 1000;
    return hits.map((each) => [rank(each), each]).sort((a, b) => a[0] - b[0])
      .slice(0, most).map(([, each]) => each);
  }

  /** What is drawn while the nodes of `open` are: nodes, frames around them, and edges. */
  function view(open) {
    const shown = [];
    const frames = [];
    const standsFor = new Map();
    (function visit(node, frame) {
      if (!node.drawn) return;
      if ((open.has(node) || plain.has(node)) && node.children.length) {
        let inside = frame;
        if (!plain.has(node)) {
          frames.push({ node, frame });
          inside = node;
        }
        node.children.forEach((child) => visit(child, inside));
        return;
      }
      shown.push({ node, frame });
      (function mark(each) {
        standsFor.set(each.id, node);
        each.children.forEach(mark);
      })(node);
    })(root, null);
    const between = new Map();
    for (const [from, to, time, moved] of edges) {
      const [a, b] = [standsFor.get(from), standsFor.get(to)];
      if (!a || !b || a === b) continue;
      const key = `${a.id} ${b.id}`;
      if (!between.has(key)) between.set(key, { a, b, time: 0, moved: new Map() });
      const edge = between.get(key);
      edge.time += time;
      moved.forEach((text) => edge.moved.set(text, (edge.moved.get(text) ?? 0) + 1));
    }
    return { shown, frames, edges: [...between.values()] };
  }

  return { nodes, root, layouts, texts, edges, plain, label, fullPath, search, view, total, moving, occurrences };
})();
