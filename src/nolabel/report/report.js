// The page reads without this script: it puts live curves in the place of still ones and a slider on the snapshots.
(() => {
  "use strict";
  const root = document.documentElement;
  root.classList.add("js");
  const charts = JSON.parse(document.getElementById("data").textContent);
  const color = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const DASH = [undefined, [7, 3], [2, 3]], LEVEL_DASH = [[5, 4], [2, 4]];

  const text = (value) => {
    if (value === null || value === undefined) return "–";
    if (Number.isInteger(value) || Math.abs(value) >= 1e4) {
      return Math.round(value).toLocaleString("en-US").replaceAll(",", "\u202f");
    }
    const short = Number(value.toPrecision(4));
    return Math.abs(short) < 1e-3 ? short.toExponential() : short.toString();  // 0.000025 is wider than the axis
  };

  const draw = (plot, legend, where, chart) => {
    const names = Object.keys(chart.series), levels = Object.entries(chart.levels);
    const axis = { stroke: color("--faint"), grid: { stroke: color("--grid"), width: 1 }, ticks: { show: false }, font: "11px system-ui" };
    const marks = [...legend.querySelectorAll("b")];
    const last = marks.map((mark) => mark.textContent);
    const few = chart.steps.length <= 60;
    const line = (name, i) => ({
      label: name, stroke: color("--s" + i % 3), width: 1.8, dash: DASH[i % 3], spanGaps: false, points: { show: few, size: 5 },
    });
    const level = ([name], i) => ({ label: name, stroke: color("--l" + i % 2), width: 1.5, dash: LEVEL_DASH[i % 2], points: { show: false } });
    const show = (u) => {
      const at = u.cursor.idx;
      marks.forEach((mark, i) => {
        mark.textContent = at === null || at === undefined || i >= names.length ? last[i] : text(u.data[i + 1][at]);
      });
      where.textContent = at === null || at === undefined ? "" : "step " + text(u.data[0][at]);
    };
    const size = () => ({ width: plot.clientWidth, height: Math.round(Math.min(240, Math.max(170, plot.clientWidth * 0.45))) });
    const u = new uPlot({
      ...size(),
      padding: [8, 16, 0, 0],
      legend: { show: false },
      cursor: { sync: { key: "step" }, y: false, drag: { x: true, y: false }, points: { size: 7 } },
      scales: { x: { time: false } },
      axes: [
        { ...axis, size: 26, gap: 6, values: (_, ticks) => ticks.map((step) => Number.isInteger(step) ? text(step) : "") },
        { ...axis, size: 50, gap: 6, values: (_, ticks) => ticks.map(text) },
      ],
      series: [{}, ...names.map(line), ...levels.map(level)],
      hooks: { setCursor: [show] },
    }, [chart.steps, ...Object.values(chart.series), ...levels.map(([, value]) => chart.steps.map(() => value))], plot);
    return { resize: () => u.setSize(size()), destroy: () => u.destroy() };
  };

  const alive = [];
  const drawAll = () => {
    alive.splice(0).forEach((chart) => chart.destroy());
    document.querySelectorAll("[data-chart]").forEach((figure) => {
      const chart = charts[figure.dataset.chart];
      if (chart.steps.length < 2) return;
      const plot = figure.querySelector(".plot"), still = plot.querySelector("svg"), legend = plot.querySelector(".legend");
      let place = plot.querySelector(".live");
      if (!place) {
        place = document.createElement("div");
        place.className = "live";
        figure.querySelector("h3").append(Object.assign(document.createElement("span"), { className: "at" }));
        place.setAttribute("role", "img");
        place.setAttribute("aria-label", still.getAttribute("aria-label"));
        plot.replaceChild(place, still);
      }
      alive.push(draw(place, legend, figure.querySelector(".at"), chart));
    });
  };
  drawAll();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  addEventListener("resize", () => alive.forEach((chart) => chart.resize()));

  const slider = document.getElementById("slider");
  if (slider) {
    const frames = [...document.querySelectorAll("#frames figure")];
    const input = document.getElementById("step"), play = document.getElementById("play"), shown = document.getElementById("shown");
    document.getElementById("frames").removeAttribute("tabindex");
    let timer = 0;
    const show = () => {
      frames.forEach((frame, i) => { frame.hidden = i !== Number(input.value); });
      shown.textContent = "Step " + frames[input.value].dataset.step;
      input.setAttribute("aria-valuetext", shown.textContent);
    };
    const stop = () => { clearInterval(timer); timer = 0; play.textContent = "Play"; };
    input.addEventListener("input", () => { stop(); show(); });
    play.addEventListener("click", () => {
      if (timer) return stop();
      if (input.value === input.max) input.value = 0;
      show();
      play.textContent = "Stop";
      timer = setInterval(() => {
        input.value = Number(input.value) + 1;
        show();
        if (input.value === input.max) stop();
      }, 500);
    });
    slider.hidden = frames.length < 2;
    show();
  }
})();
