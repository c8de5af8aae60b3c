"use strict";

// Tables: a head sorts, a field filters.
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  const rows = [...body.rows], text = (row, column) => row.cells[column].textContent.trim();
  const number = (row, column) => parseFloat(text(row, column).replaceAll(",", ""));
  const numeric = heads.map((_, column) => column > 0 && rows.some((row) => text(row, column)) && rows.every((row) => /^(-?[\d,]+(\.\d+)?(?= |$)|$)/.test(text(row, column))));
  heads.forEach((head, column) => {
    if (!numeric[column]) for (const row of [table.tHead.rows[0], ...rows]) row.cells[column].classList.add("text");
    head.firstChild.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const order = (a, b) => {
        const empty = (text(a, column) === "") - (text(b, column) === "");
        if (empty) return empty; // empty cells stay at the end
        const found = numeric[column] ? number(a, column) - number(b, column)
          : text(a, column).localeCompare(text(b, column), "en", { numeric: true });
        return down ? -found : found;
      };
      body.append(...rows.sort(order));
    });
  });
  const filter = table.parentElement.previousElementSibling, output = filter.querySelector("output");
  filter.querySelector("input").addEventListener("input", (event) => {
    const words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
    output.textContent = words.length ? `${rows.filter((row) => !row.hidden).length} of ${rows.length}` : "";
  });
}

// A link to a row opens what it lies in; fingerprints lead to their records.
const reveal = () => {
  const row = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!row) return;
  for (let at = row.closest("details"); at; at = at.parentElement.closest("details")) at.open = true;
  row.hidden = false;
  row.scrollIntoView({ block: "center" });
};
addEventListener("hashchange", reveal);
reveal();

// Figures: plotly's library is packed, and each figure is drawn when it comes near the screen.
const NARROW = 900, dark = matchMedia("(prefers-color-scheme: dark)"), charts = [...document.querySelectorAll(".chart")];
const library = (async () => {
  const packed = Uint8Array.from(atob(document.getElementById("library").textContent), (each) => each.charCodeAt(0));
  const plain = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(plain).text();
  document.head.append(script);
})();
const figuresOf = (chart) => JSON.parse(document.getElementById(chart.dataset.figures).textContent);
const selectOf = (chart) => document.querySelector(`select[data-figures="${chart.dataset.figures}"]`);

function draw(chart, width = chart.clientWidth, ink, line, height) {
  chart.figures ??= figuresOf(chart);
  const figure = structuredClone(chart.figures[selectOf(chart).value]), style = getComputedStyle(document.documentElement);
  const { layout, data } = figure, entries = data.filter((each) => each.showlegend !== false).length;
  layout.font = { ...layout.font, color: ink ?? style.getPropertyValue("--ink").trim() };
  for (const name of Object.keys(layout).filter((each) => /^[xy]axis/.test(each))) {
    Object.assign(layout[name], { gridcolor: line ?? style.getPropertyValue("--line").trim(), linecolor: "#888" });
  }
  layout.width = width;
  if (width < NARROW) { // the legend goes below, and a finger scrolls the page
    const below = 20 + 20 * entries;
    layout.margin.b += below;
    layout.legend = { ...layout.legend, orientation: "v", x: 0, xanchor: "left", y: -64 / (layout.height - 72), yanchor: "top" };
    layout.height += below;
    layout.dragmode = false;
  } else layout.height = Math.max(layout.height, 60 + 20 * entries);
  layout.height = height ?? layout.height;
  const config = { displaylogo: false, displayModeBar: width < NARROW ? false : undefined,
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] };
  Plotly.react(chart, data, layout, config);
  chart.drawn = width;
}

library.then(() => {
  const near = new IntersectionObserver((entries) => {
    for (const each of entries) if (each.isIntersecting && !each.target.drawn) draw(each.target);
  }, { rootMargin: "600px" });
  for (const chart of charts) {
    near.observe(chart);
    selectOf(chart).addEventListener("change", () => draw(chart));
  }
  const again = () => { for (const chart of charts) if (chart.drawn) draw(chart); };
  new ResizeObserver(() => {
    for (const chart of charts) if (chart.drawn && chart.clientWidth && chart.drawn !== chart.clientWidth) draw(chart);
  }).observe(document.body);
  dark.addEventListener("change", again);
  addEventListener("beforeprint", () => { for (const chart of charts) draw(chart, 940, "#000", "#bbb", 600); });
  addEventListener("afterprint", again);
}).catch((problem) => {
  for (const chart of charts) chart.textContent = `The figure cannot be drawn (${problem.message}).`;
});
