"use strict";
// The graph: dagre lays out what is visible, D3 zooms, and everything is SVG.

const workbench = (() => {
  const holder = document.getElementById("graph");
  const open = new Set();
  let picked = null;
  let colour = report.data.stages ? "stage" : "layout";
  let zoom;
  let placed = new Map();
  let canvas;
  let far = [];
  const measure = document.createElement("canvas").getContext("2d");

  const MANY = 5; // readers of one node from which on their lines are drawn on demand alone

  const canOpen = (node) => !model.plain.has(node) && node.drawn && node.children.some((each) => each.drawn);
  const isOpen = (node) => open.has(node);
  const letter = (at) => (at < 26 ? String.fromCharCode(65 + at) : String(at));

  function width(text, font) {
    measure.font = font;
    return measure.measureText(text).width;
  }

  /** The colour of a node, 0 to 7, and the letter or number that says the same. */
  function mark(node) {
    if (colour === "stage") {
      const [first, ...others] = [...node.at].sort((a, b) => b[1] - a[1]);
      return { own: first[0] % 8, letter: `${first[0]}${others.length ? "+" : ""}` };
    }
    if (node.k === "input") return { own: 7, letter: "→" };
    if (colour === "time") {
      const part = model.total(node) / (model.total(model.root) || 1);
      const step = part > 0.3 ? 0 : part > 0.1 ? 1 : part > 0.02 ? 2 : 3;
      return { own: [5, 1, 4, 7][step], letter: ["+++", "++", "+", "·"][step] };
    }
    return node.main === undefined ? { own: 7, letter: "–" } : { own: Math.min(node.main, 7), letter: letter(node.main) };
  }

  function under(node, others = []) {
    if (node.k === "input") return `argument ${model.texts[node.shape]}`;
    const parts = [seconds(model.total(node))];
    if (model.moving(node) > 0) parts.push(`moves ${seconds(model.moving(node))}`);
    if (node.again) parts.push("recomputed");
    const count = others.filter((edge) => edge.a === node).length;
    if (count) parts.push(`read by ${count + 1} nodes`);
    return parts.join(" · ");
  }

  function labelOf(edge) {
    if (!edge.time) return "";
    const kinds = [...edge.moved.keys()].map((text) => model.texts[text].match(/× ([a-z-]+)/)?.[1]);
    const names = [...new Set(kinds)];
    return `${names[0]}${names.length > 1 ? ` +${names.length - 1}` : ""} ${seconds(edge.time)}`;
  }

  function layOut() {
    const view = model.view(open);
    const graph = new dagre.graphlib.Graph({ compound: true });
    graph.setGraph({ rankdir: "TB", nodesep: 26, ranksep: 30, edgesep: 12, marginx: 12, marginy: 12 });
    graph.setDefaultEdgeLabel(() => ({}));
    const order = new Map(view.shown.map(({ node }, at) => [node, at]));
    const readers = d3.group(view.edges, (edge) => edge.a);
    for (const { node } of view.frames) graph.setNode(`f${node.id}`, { paddingTop: 22 });
    for (const { node, frame } of view.frames) if (frame) graph.setParent(`f${node.id}`, `f${frame.id}`);
    for (const { node, frame } of view.shown) {
      const name = width(model.label(node), "600 13px system-ui");
      const second = width(`${under(node)}${(readers.get(node)?.length ?? 0) > MANY ? " · read by 00 nodes" : ""}`, "11.5px system-ui");
      graph.setNode(`n${node.id}`, { node, width: Math.max(110, Math.max(name, second) * 1.04 + 50 + (canOpen(node) ? 24 : 0)), height: 46 });
      if (frame) graph.setParent(`n${node.id}`, `f${frame.id}`);
    }
    view.far = [];
    for (const edge of view.edges) {
      const several = readers.get(edge.a);
      if (several.length > MANY && edge !== several[0] && !edge.time) {
        view.far.push(edge);
        continue;
      }
      const text = labelOf(edge);
      const size = text ? { width: width(text, "11.5px system-ui") * 1.05 + 10, height: 18, labelpos: "c" } : {};
      graph.setEdge(`n${edge.a.id}`, `n${edge.b.id}`, { edge, text, weight: order.get(edge.b) - order.get(edge.a) === 1 ? 8 : 1, ...size });
    }
    dagre.layout(graph);
    return { view, graph };
  }

  function draw() {
    const { view, graph } = layOut();
    const { width: wide, height: high } = graph.graph();
    canvas.selectAll("*").remove();
    placed = new Map();
    const line = d3.line((p) => p.x, (p) => p.y).curve(d3.curveBasis);
    for (const { node } of view.frames) {
      const at = graph.node(`f${node.id}`);
      const group = canvas.append("g").attr("class", "cluster node-box").datum(node);
      const top = at.y - at.height / 2 - 20;
      group.append("rect").attr("x", at.x - at.width / 2).attr("y", top)
        .attr("width", at.width).attr("height", at.height + 20).attr("rx", 8);
      group.append("text").attr("class", "name").attr("x", at.x - at.width / 2 + 10).attr("y", top + 17)
        .text(shortened(model.label(node), at.width - 50));
      opener(group, node, at.x + at.width / 2 - 14, top + 14, "−");
      placed.set(node, { x: at.x, y: top, width: at.width, height: at.height + 20 });
    }
    for (const { v, w } of graph.edges()) {
      const { points, edge, text, x, y, width: size } = graph.edge(v, w);
      const crosses = report.data.stages && colour === "stage" && mark(edge.a).own !== mark(edge.b).own;
      const group = canvas.append("g").attr("class", `edge${edge.time ? " moving" : ""}${crosses ? " stages" : ""}`);
      group.append("path").attr("d", line(points)).attr("marker-end", "url(#arrow)");
      if (text) {
        group.append("rect").attr("x", x - size / 2).attr("y", y - 9).attr("width", size).attr("height", 18).attr("rx", 4);
        group.append("text").attr("x", x).attr("y", y + 4).text(text);
      }
      const said = [...edge.moved.keys()].map((number) => model.texts[number]);
      if (said.length) {
        group.on("mousemove", (event) => tip.show(event, said.slice(0, 8).join("\n"))).on("mouseleave", () => tip.hide());
      }
    }
    for (const { node } of view.shown) box(graph.node(`n${node.id}`), node, view.far);
    canvas.append("g").attr("class", "far");
    far = view.far;
    drawFar();
    return { wide, high };
  }

  /** Lines to the many readers of one node: drawn while an end of them is chosen. */
  function drawFar() {
    const lines = far.filter((edge) => edge.a === picked || edge.b === picked);
    const path = ({ a, b }) => {
      const [from, to] = [placed.get(a), placed.get(b)];
      const side = Math.sign(from.x - to.x) || 1;
      const [x, y] = [to.x + side * to.width / 2, to.y];
      const bend = side * Math.max(side * from.x, side * x + 30);
      return `M${from.x},${from.y + from.height / 2}C${from.x},${from.y + 60} ${bend},${y} ${x},${y}`;
    };
    canvas.select("g.far").selectAll("path").data(lines).join("path").attr("d", path).attr("marker-end", "url(#arrow)");
  }

  function shortened(text, most) {
    let cut = text;
    while (cut.length > 4 && width(cut, "600 13px system-ui") > most) cut = cut.slice(0, -2);
    return cut === text ? text : `${cut}…`;
  }

  function box(at, node, others) {
    const { own, letter: sign } = mark(node);
    const left = at.x - at.width / 2;
    const top = at.y - at.height / 2;
    const said = [model.label(node), details.kinds[node.k], under(node), `${colour} ${sign}`, canOpen(node) ? "Enter opens it" : ""];
    const group = canvas.append("g").datum(node).attr("class", `node-box o${own}${node === picked ? " picked" : ""}`)
      .attr("tabindex", node === picked || (!picked && !placed.size) ? 0 : -1)
      .attr("role", "button").attr("aria-label", said.filter(Boolean).join(", "));
    if (node.members) {
      group.append("rect").attr("class", "stack").attr("x", left + 5).attr("y", top + 5)
        .attr("width", at.width).attr("height", at.height).attr("rx", 7);
    }
    group.append("rect").attr("class", "box").attr("x", left).attr("y", top)
      .attr("width", at.width).attr("height", at.height).attr("rx", 7);
    group.append("path").attr("class", "strip")
      .attr("d", `M${left + 7},${top + 1}h17v${at.height - 2}h-17a6,6 0 0 1 -6,-6v${14 - at.height}a6,6 0 0 1 6,-6z`);
    group.append("text").attr("class", "letter").attr("x", left + 12.5).attr("y", at.y + 4).text(sign);
    group.append("text").attr("class", "name").attr("x", left + 33).attr("y", at.y - 4).text(model.label(node));
    group.append("text").attr("class", "under").attr("x", left + 33).attr("y", at.y + 13).text(under(node, others));
    if (canOpen(node)) opener(group, node, left + at.width - 16, at.y, "+");
    group.on("click", () => choose(node)).on("dblclick", (event) => {
      event.stopPropagation();
      toggle(node);
    });
    placed.set(node, { x: at.x, y: at.y, width: at.width, height: at.height, group });
  }

  function opener(group, node, x, y, sign) {
    const button = group.append("g").attr("class", "opener");
    button.append("circle").attr("cx", x).attr("cy", y).attr("r", 10);
    button.append("text").attr("x", x).attr("y", y + 5).text(sign);
    button.on("click", (event) => {
      event.stopPropagation();
      toggle(node);
    }).on("dblclick", (event) => event.stopPropagation());
  }

  const svg = d3.select(holder).append("svg");

  function move(transform, smooth = true) {
    const target = smooth && !report.reducedMotion ? svg.transition().duration(250) : svg;
    target.call(zoom.transform, transform);
  }

  function fit(size, smooth = true) {
    const { clientWidth: w, clientHeight: h } = holder;
    const scale = Math.min(1.15, Math.max(Math.min(w / size.wide, h / size.high), Math.min(0.62, w / size.wide)));
    const y = Math.max(0, (h - size.high * scale) / 2);
    move(d3.zoomIdentity.translate((w - size.wide * scale) / 2, y).scale(scale), smooth);
  }

  function centre(node) {
    const at = placed.get(node);
    if (!at) return;
    const scale = Math.max(0.8, d3.zoomTransform(svg.node()).k);
    const { clientWidth: w, clientHeight: h } = holder;
    const y = at.height * scale > h ? 20 - (at.y - at.height / 2) * scale : h / 2 - at.y * scale;
    move(d3.zoomIdentity.translate(w / 2 - at.x * scale, y).scale(scale));
  }

  let size;
  function redraw() {
    size = draw();
    legend();
  }

  function toggle(node) {
    if (!canOpen(node)) return;
    if (open.has(node)) open.delete(node);
    else open.add(node);
    picked = node;
    redraw();
    details.show(node);
    if (open.has(node)) {
      const at = placed.get(node);
      const { clientWidth: w, clientHeight: h } = holder;
      const scale = Math.min(1, Math.max(0.55, Math.min(w / (at.width + 40), h / (at.height + 40))));
      const y = at.height * scale > h - 20 ? 14 - at.y * scale : h / 2 - (at.y + at.height / 2) * scale;
      move(d3.zoomIdentity.translate(w / 2 - at.x * scale, y).scale(scale));
    } else {
      centre(node);
    }
  }

  /** Shows the details of a node; `reveal`: opens what is around it, and brings it into view. */
  function choose(node, { reveal = false } = {}) {
    picked = node;
    if (reveal) {
      for (let each = node.parent; each; each = each.parent) if (canOpen(each)) open.add(each);
      redraw();
      let at = node;
      while (at && !placed.has(at)) at = at.parent;
      if (at) centre(at);
      outline.reveal(node);
    } else {
      drawFar();
      canvas.selectAll(".node-box").classed("picked", (each) => each === node).attr("tabindex", (each) => (each === node ? 0 : -1));
    }
    details.show(node);
  }

  function legend() {
    const chips = document.getElementById("legend");
    const seen = new Map();
    for (const node of placed.keys()) if (!open.has(node)) seen.set(mark(node).letter, mark(node));
    const words = (sign) => {
      if (colour === "stage") return sign.endsWith("+") ? `mostly stage ${parseInt(sign, 10)}` : `stage ${sign}`;
      if (colour === "time") return { "+++": "over 30 % of the work", "++": "over 10 %", "+": "over 2 %", "·": "less" }[sign];
      if (sign === "→") return "argument of the model";
      if (sign === "–") return "no tensor";
      const lay = report.data.layouts.find((_, at) => letter(at) === sign);
      return lay ? `${lay.words}${lay.text && lay.text !== "()" ? ` ${lay.text}` : ""}` : "";
    };
    chips.replaceChildren(...[...seen].sort((a, b) => (a[0] < b[0] ? -1 : 1)).map(([sign, { own }]) =>
      element("span", { class: `chip o${own}` }, element("b", {}, sign), words(sign))));
  }

  holder.addEventListener("keydown", (event) => {
    const node = d3.select(event.target).datum();
    if (!node?.children) return;
    const order = [...placed.keys()].filter((each) => !open.has(each));
    const step = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
    if (step) {
      const next = order[order.indexOf(node) + step];
      if (next) {
        choose(next);
        placed.get(next).group.node().focus();
        centre(next);
      }
    } else if (event.key === "Enter" || event.key === " ") {
      if (canOpen(node) && node === picked) toggle(node);
      else choose(node);
    } else return;
    event.preventDefault();
  });

  /** The wheel alone scrolls the page. */
  const movesGraph = (event) => (event.type === "wheel" ? event.ctrlKey || event.metaKey : !event.button);

  function start() {
    svg.append("defs").append("marker").attr("id", "arrow").attr("viewBox", "0 0 8 8").attr("refX", 7).attr("refY", 4)
      .attr("markerWidth", 7).attr("markerHeight", 7).attr("orient", "auto")
      .append("path").attr("d", "M0,0L8,4L0,8z").attr("fill", "var(--soft)");
    canvas = svg.append("g");
    zoom = d3.zoom().scaleExtent([0.08, 3]).filter(movesGraph).on("zoom", ({ transform }) => canvas.attr("transform", transform));
    svg.call(zoom).on("dblclick.zoom", null);
    const select = document.getElementById("colour");
    select.value = colour;
    select.addEventListener("change", () => {
      colour = select.value;
      redraw();
    });
    const on = (id, act) => document.getElementById(id).addEventListener("click", act);
    on("zoom-in", () => svg.call(zoom.scaleBy, 1.3));
    on("zoom-out", () => svg.call(zoom.scaleBy, 1 / 1.3));
    on("zoom-fit", () => fit(size));
    on("fold-all", () => {
      open.clear();
      redraw();
      fit(size);
    });
    const longest = [...model.view(open).shown].sort((a, b) => model.total(b.node) - model.total(a.node))[0];
    picked = longest?.node ?? null;
    redraw();
    fit(size, false);
    if (picked) details.show(picked);
    let wide = holder.clientWidth;
    new ResizeObserver(() => {
      if (holder.clientWidth !== wide) fit(size, false);
      wide = holder.clientWidth;
    }).observe(holder);
  }

  return { start, choose, toggle, canOpen, isOpen };
})();
