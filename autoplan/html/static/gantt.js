"use strict";
// The pipeline's schedule: a lane for each group of ranks, an event for each box, time to the right.

const schedule = (() => {
  const data = report.data.gantt;
  const names = ["forward", "backward", "backward of inputs", "backward of weights"];
  const colours = [0, 2, 2, 6];
  const once = report.data.training ? "parameters, gradients, optimizer" : "parameters";

  function draw(holder, width) {
    const narrow = 560;
    const wide = Math.max(width, narrow);
    const margin = { left: 92, right: 14, top: 6, bottom: 26 };
    const lane = 34;
    const several = data.stages > data.ranks.length;
    const height = data.ranks.length * lane + margin.top + margin.bottom;
    const x = d3.scaleLinear([0, data.end_s], [margin.left, wide - margin.right]);
    holder.replaceChildren();
    const scroller = element("div", { class: "gantt-scroll", tabindex: "0", role: "region", "aria-label": "Schedule of a step" });
    holder.append(scroller);
    const svg = d3.select(scroller).append("svg").attr("viewBox", `0 0 ${wide} ${height}`).attr("role", "img")
      .attr("aria-label", "Gantt chart of a step; the table after it says how long each rank works and waits")
      .style("width", `${wide}px`).style("height", `${height}px`);
    svg.append("g").attr("class", "axis").attr("transform", `translate(0,${height - margin.bottom + 4})`)
      .call(d3.axisBottom(x).ticks(Math.max(3, wide / 130)).tickFormat(seconds));
    data.ranks.forEach((events, rank) => {
      const y = margin.top + rank * lane;
      const ranks = data.names[rank];
      const label = ranks.length > 1 ? `ranks ${ranks[0]}–${ranks[ranks.length - 1]}` : `rank ${ranks[0]}`;
      svg.append("text").attr("x", 4).attr("y", y + 20).text(label);
      svg.append("rect").attr("class", "lane").attr("x", x(0)).attr("y", y + 3).attr("width", x(data.end_s) - x(0)).attr("height", lane - 8);
      const piece = (start, end, own, text, said) => {
        if (end <= start) return;
        svg.append("rect").attr("class", `kind o${own}`).attr("x", x(start)).attr("y", y + 3)
          .attr("width", Math.max(0.6, x(end) - x(start))).attr("height", lane - 8)
          .on("mousemove", (event) => tip.show(event, `${said}\n${seconds(start)} to ${seconds(end)}, ${seconds(end - start)}`))
          .on("mouseleave", () => tip.hide());
        if (text && x(end) - x(start) > 9 + 6 * text.length) {
          svg.append("text").attr("class", "inside").attr("x", (x(start) + x(end)) / 2).attr("y", y + 20).text(text);
        }
      };
      piece(0, data.before[rank], 7, "", "before the first microbatch");
      for (const [kind, stage, microbatch, start, end] of events) {
        piece(start, end, colours[kind], `${"FBBW"[kind]}${microbatch}${several ? ` s${stage}` : ""}`, `${names[kind]} of microbatch ${microbatch}, stage ${stage}`);
      }
      piece(data.ends[rank] - data.after[rank], data.ends[rank], 3, report.data.training ? "step" : "", once);
    });
    const kinds = new Set(data.ranks.flat().map(([kind]) => kind));
    const legend = element("ul", { class: "legend" });
    kinds.forEach((kind) => legend.append(element("li", { class: `o${colours[kind]}` }, `${"FBBW"[kind]} ${names[kind]}`)));
    legend.append(element("li", { class: "o3" }, `once a step: ${once}`), element("li", {}, "grey: waiting"));
    holder.append(legend, table());
  }

  function table() {
    const rows = data.ranks.map((events, rank) => {
      const idle = data.end_s - data.busy[rank];
      return [data.names[rank].join(", "), seconds(data.busy[rank]), seconds(idle), `${(100 * idle / data.end_s).toFixed(1)} %`, String(events.length)];
    });
    return tableOf("What each group of ranks does in a step", ["ranks", "works", "waits", "waiting", "events"], rows, [1, 2, 3, 4]);
  }

  function start() {
    const holder = document.getElementById("gantt");
    if (!holder || !data) return;
    if (data.many) {
      holder.append(element("p", { class: "note" }, `A step of ${data.many} microbatches has too many events to be drawn.`));
      return;
    }
    whenSeen(holder, (width) => draw(holder, width));
  }

  return { start };
})();
