"use strict";
// Charts of memory and of baselines; every one has a table beside it.

const charts = (() => {
  const { kinds, bars, limit, courses, baselines, step_s: step } = report.data;
  const tops = (value) => value * 1.04 || 1;

  const holderWidth = () => document.getElementById("bars").clientWidth;

  function begin(holder, width, height, label) {
    holder.replaceChildren();
    return d3.select(holder).append("svg").attr("viewBox", `0 0 ${width} ${height}`)
      .attr("width", width).attr("height", height).attr("role", "img").attr("aria-label", label);
  }

  function keys(holder, names) {
    const list = element("ul", { class: "legend" });
    names.forEach(([name, at]) => list.append(element("li", { class: `o${at}` }, name)));
    holder.append(list);
  }

  function peaks(holder, width) {
    const row = 52;
    const most = d3.max(bars, ([, amounts]) => d3.sum(amounts));
    const nearly = limit <= 3 * most;
    const x = d3.scaleLinear([0, tops(nearly ? Math.max(most, limit) : most)], [8, width - 12]);
    const height = bars.length * row + 34;
    const svg = begin(holder, width, height, `Peak memory: ${bars.map(([name, a]) => `${name} ${bytes(d3.sum(a))}`).join("; ")}`);
    bars.forEach(([name, amounts], at) => {
      const y = at * row + 20;
      svg.append("text").attr("x", 8).attr("y", y - 5).text(`${name}: ${bytes(d3.sum(amounts))}`);
      let start = 0;
      amounts.forEach((amount, kind) => {
        if (!amount) return;
        const [left, right] = [x(start), x(start + amount)];
        start += amount;
        const share = svg.append("rect").attr("class", `kind o${kind}`).attr("x", left).attr("y", y)
          .attr("width", Math.max(0.5, right - left)).attr("height", 24);
        share.on("mousemove", (event) => tip.show(event, `${kinds[kind]}: ${bytes(amount)}`)).on("mouseleave", () => tip.hide());
        if (right - left > 62) {
          svg.append("text").attr("class", "inside").attr("x", (left + right) / 2).attr("y", y + 16).text(bytes(amount));
        }
      });
    });
    if (nearly) {
      svg.append("line").attr("class", "limit").attr("x1", x(limit)).attr("x2", x(limit)).attr("y1", 4).attr("y2", height - 24);
      svg.append("text").attr("class", "limit-name").attr("x", x(limit) - 5).attr("y", height - 27).attr("text-anchor", "end").text(`limit ${bytes(limit)}`);
    }
    svg.append("g").attr("class", "axis").attr("transform", `translate(0,${height - 22})`)
      .call(d3.axisBottom(x).ticks(Math.max(2, width / 140)).tickFormat(bytes));
    keys(holder, kinds.map((name, at) => [name, at]).filter(([, at]) => bars.some(([, amounts]) => amounts[at])));
  }

  let chosen = 0;
  function course(holder, width) {
    const { amounts, moments, phases } = courses[chosen];
    const height = Math.min(300, Math.max(210, width * 0.36));
    const margin = { left: 62, right: 12, top: 24, bottom: 20 };
    const totals = amounts.map((each) => d3.sum(each));
    const most = d3.max(totals);
    const x = d3.scaleLinear([0, Math.max(1, amounts.length - 1)], [margin.left, width - margin.right]);
    const y = d3.scaleLinear([0, tops(most)], [height - margin.bottom, margin.top]).nice(4);
    const peak = totals.indexOf(most);
    const svg = begin(holder, width, height, `Memory over a step: at most ${bytes(most)}, in ${moments[peak]}`);
    const layers = d3.stack().keys(d3.range(kinds.length))(amounts);
    const area = d3.area((_, at) => x(at), (d) => y(d[0]), (d) => y(d[1])).curve(d3.curveStepAfter);
    layers.forEach((layer) => svg.append("path").attr("class", `kind o${layer.key}`).attr("d", area(layer)));
    svg.append("g").attr("class", "axis").attr("transform", `translate(${margin.left},0)`).call(d3.axisLeft(y).ticks(4).tickFormat(bytes));
    phases.forEach(([name, at]) => {
      const left = x(at);
      svg.append("line").attr("class", "cursor").attr("opacity", 0.3).attr("x1", left).attr("x2", left).attr("y1", margin.top - 6).attr("y2", height - margin.bottom);
      const anchorEnd = left > width - 120;
      if (at) svg.append("text").attr("class", "soft").attr("x", anchorEnd ? left - 4 : left + 4).attr("y", 14).attr("text-anchor", anchorEnd ? "end" : "start").text(name);
    });
    svg.append("text").attr("class", "soft").attr("x", width - margin.right).attr("y", height - 4).attr("text-anchor", "end").text("op by op →");
    const cursor = svg.append("line").attr("class", "cursor").attr("y1", margin.top).attr("y2", height - margin.bottom).attr("x1", x(peak)).attr("x2", x(peak));
    svg.on("mousemove", (event) => {
      const at = Math.max(0, Math.min(amounts.length - 1, Math.round(x.invert(d3.pointer(event)[0]))));
      cursor.attr("x1", x(at)).attr("x2", x(at));
      const lines = kinds.map((name, kind) => [name, amounts[at][kind]]).filter(([, value]) => value).map(([name, value]) => `${name}: ${bytes(value)}`);
      tip.show(event, `${moments[at]}\n${bytes(totals[at])} together\n${lines.join("\n")}`);
    }).on("mouseleave", () => tip.hide());
    keys(holder, kinds.map((name, at) => [name, at]).filter(([, at]) => amounts.some((each) => each[at])));
    document.getElementById("course-note").textContent =
      `At most ${bytes(most)}, in ${moments[peak]}.${courses.length > 1 ? " A microbatch of this stage, with the others in flight." : ""} Read from left to right: ${report.data.training ? "what is ready before forward, forward, backward, the optimizer" : "what is ready before forward, forward"}.`;
    courseTable(courses[chosen], totals);
  }

  /** The course as numbers: the fullest moment of each phase. */
  function courseTable({ amounts, moments, phases }, totals) {
    const held = d3.range(kinds.length).filter((kind) => amounts.some((each) => each[kind]));
    const rows = phases.map(([name, from], number) => {
      const to = phases[number + 1]?.[1] ?? amounts.length;
      let at = from;
      for (let each = from; each < Math.max(to, from + 1); each += 1) if (totals[each] > totals[at]) at = each;
      return [name, moments[at], bytes(totals[at]), ...held.map((kind) => bytes(amounts[at][kind]))];
    });
    document.getElementById("course-table").replaceChildren(
      tableOf("The fullest moment of each phase", ["phase", "moment", "together", ...held.map((kind) => kinds[kind])], rows, d3.range(2, held.length + 3)));
  }

  function chooseCourse() {
    const box = document.getElementById("course-choice");
    if (courses.length < 2) return;
    courses.forEach(({ name }, at) => {
      const button = element("button", { type: "button", "aria-pressed": String(at === chosen) }, name);
      button.addEventListener("click", () => {
        chosen = at;
        [...box.children].forEach((each, n) => each.setAttribute("aria-pressed", String(n === at)));
        const holder = document.getElementById("course");
        course(holder, holder.clientWidth);
      });
      box.append(button);
    });
  }

  function compare(holder, width) {
    if (baselines.length < 2) return;
    const row = 44;
    const x = d3.scaleLinear([0, tops(d3.max(baselines, (each) => each[1]))], [8, width - 12]);
    const svg = begin(holder, width, baselines.length * row + 8, `Step times: ${baselines.map(([name, time]) => `${name} ${seconds(time)}`).join("; ")}`);
    baselines.forEach(([name, time, memory], at) => {
      const y = at * row + 18;
      const fits = memory <= limit;
      const ratio = at && step ? `, ${(time / step).toFixed(2)} ×` : "";
      svg.append("text").attr("x", 8).attr("y", y - 4).style("font-weight", at ? 400 : 650)
        .text(`${name}: ${seconds(time)}${ratio}, ${bytes(memory)}${fits ? "" : " (does not fit)"}`);
      svg.append("rect").attr("class", `kind ${at === 0 ? "o0" : "o7"}`).attr("x", 8).attr("y", y).attr("rx", 3)
        .attr("width", Math.max(1, x(time) - 8)).attr("height", 16).attr("opacity", fits ? 1 : 0.35);
    });
  }

  /** Room for a chart that is not drawn yet, so that the page does not jump. */
  function reserve(name, height) {
    const holder = document.getElementById(name);
    if (holder) holder.style.minHeight = `${height}px`;
  }

  function start() {
    chooseCourse();
    reserve("bars", bars.length * 52 + 66);
    if (courses.length) reserve("course", Math.min(300, Math.max(210, holderWidth() * 0.36)) + 36);
    if (baselines.length > 1) reserve("baselines-chart", baselines.length * 44 + 8);
    reserve("gantt", (report.data.gantt?.ranks?.length ?? 0) * 34 + 32);
    whenSeen(document.getElementById("bars"), (width) => peaks(document.getElementById("bars"), width));
    if (courses.length) whenSeen(document.getElementById("course"), (width) => course(document.getElementById("course"), width));
    whenSeen(document.getElementById("baselines-chart"), (width) => compare(document.getElementById("baselines-chart"), width));
  }

  return { start };
})();
